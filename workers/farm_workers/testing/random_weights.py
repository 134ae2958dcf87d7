"""Full-size models with random weights, from the configurations that the project ships."""

import json
from importlib.resources import files
from typing import Any

import torch
from diffusers import UVit2DModel, VQModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from farm.spec import CheckpointInfo
from farm_workers.testing.tiny import byte_tokenizer

CONFIGURATIONS = ("amused-256", "amused-512")


def random_modules(
    name: str, device: torch.device, dtype: torch.dtype
) -> tuple[CheckpointInfo, dict[str, Any]]:
    """For measurements: the real shapes, no files, pictures of noise."""
    config = json.loads((files("farm_workers") / "configs" / f"{name}.json").read_text("utf-8"))
    text = {key: value for key, value in config["text_encoder"].items() if key[0] != "_"}
    with torch.device(device):
        modules: dict[str, nn.Module] = {
            "transformer": UVit2DModel.from_config(config["transformer"]),
            "vqvae": VQModel.from_config(config["vqvae"]),
            "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**text)),
        }
    transformer, vqvae = config["transformer"], config["vqvae"]
    factor = 2 ** (len(vqvae["block_out_channels"]) - 1)
    native = transformer["sample_size"] * factor
    info = CheckpointInfo(
        id=f"random-{name}",
        revision="0" * 12,
        pixel_factor=factor,
        size_multiple=factor * (2 if transformer["downsample"] else 1),
        native_height=native,
        native_width=native,
        default_guidance=10.0 if transformer["downsample"] else 4.0,
        vocab_size=transformer["vocab_size"],
        codebook_size=transformer["codebook_size"],
        mask_token_id=config["scheduler"]["mask_token_id"],
        text_tokens=text["max_position_embeddings"],
        pooled_dim=transformer["cond_embed_dim"],
        hidden_dim=transformer["encoder_hidden_size"],
    )
    ready = {key: module.to(dtype).eval() for key, module in modules.items()}
    return info, {**ready, "tokenizer": byte_tokenizer()}
