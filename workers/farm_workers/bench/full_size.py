"""Full-size models with random weights, from the configurations that the project ships."""

import json
from importlib.resources import files
from typing import Any

import torch

from farm.checkpoints.layout import WEIGHTS
from farm.spec import CheckpointInfo
from farm_workers.engine.amused.parts import Part, Parts
from farm_workers.testing.random_weights import random_tensors
from farm_workers.testing.tiny import byte_tokenizer

CONFIGURATIONS = ("amused-256", "amused-512")


def configuration(name: str) -> dict[str, Any]:
    """Of each part, by its folder's name."""
    text = (files("farm_workers") / "configs" / f"{name}.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def random_parts(
    name: str, device: torch.device, dtype: torch.dtype
) -> tuple[CheckpointInfo, Parts]:
    """For measurements: the real shapes, no files, pictures of noise."""
    config = configuration(name)
    configs = {part: config[part] for part in WEIGHTS}
    parts = {
        part: Part(configs[part], {key: one.to(dtype) for key, one in tensors.items()})
        for part, tensors in random_tensors(configs, seed=0, device=device).items()
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
        text_tokens=config["text_encoder"]["max_position_embeddings"],
        pooled_dim=transformer["cond_embed_dim"],
        hidden_dim=transformer["encoder_hidden_size"],
    )
    return info, Parts(**parts, tokenizer=byte_tokenizer())
