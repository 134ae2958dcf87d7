"""Random adapters, as diffusers' training example writes them."""

import numpy as np
import safetensors.numpy

from farm.formats.adapter_file import adapter_targets
from farm.spec import ModelSizes, TextEncoderSizes, TransformerSizes

SIZES = ModelSizes(  # of the tests' checkpoints that have no weights
    transformer=TransformerSizes(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_res_blocks=1,
        block_out_channels=8, cond_embed_dim=8, micro_cond_embed_dim=10, encoder_hidden_size=8,
    ),
    text_encoder=TextEncoderSizes(hidden_size=8, intermediate_size=16, num_hidden_layers=1),
)  # fmt: skip


def adapter_file(
    seed: int,
    sizes: ModelSizes = SIZES,
    *,
    rank: int = 2,
    size: float = 0.3,
    ending: str = ".attn1.to_q",
    alpha: float | None = None,
) -> bytes:
    """Matrices of normal numbers for the layers whose names end so.

    Args:
        size: standard deviation of what is drawn.
        alpha: in the file's header, where there is one.
    """
    rng = np.random.default_rng(seed)
    targets = adapter_targets(sizes.transformer.model_dump(), sizes.text_encoder.model_dump())
    tensors = {}
    for layer, (inputs, outputs) in targets.items():
        if layer.endswith(ending):
            for name, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                drawn = rng.normal(0, size, shape).astype(np.float32)
                tensors[f"{layer}.lora_{name}.weight"] = drawn
    assert tensors
    return safetensors.numpy.save(tensors, None if alpha is None else {"lora_alpha": f"{alpha}"})
