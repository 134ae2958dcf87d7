"""The sizes of a checkpoint's models, under the names of their ``config.json``."""

from pydantic import BaseModel, ConfigDict


class TransformerSizes(BaseModel):
    """Of ``UVit2DModel``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_res_blocks: int
    block_out_channels: int
    cond_embed_dim: int
    micro_cond_embed_dim: int
    encoder_hidden_size: int


class TextEncoderSizes(BaseModel):
    """Of ``CLIPTextModelWithProjection``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int


class ModelSizes(BaseModel):
    """What the layers of a checkpoint follow from, and so what an adapter for it can change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transformer: TransformerSizes
    text_encoder: TextEncoderSizes
