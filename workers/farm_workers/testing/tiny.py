"""A real five-component checkpoint with random weights, small enough to draw on one core."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from farm.checkpoints.layout import WEIGHTS
from farm_workers.engine.amused.tokenizer import Tokenizer
from farm_workers.testing.random_weights import random_tensors


def make_tiny(
    path: str | Path,
    *,
    seed: int = 0,
    size: int = 64,
    downsample: bool = False,
    **transformer: Any,
) -> None:
    """Write it; the same arguments give the same bytes. ``transformer`` overrides its config."""
    found = _configs(size, downsample, transformer)
    tensors = random_tensors(found, seed=seed)
    write_checkpoint(Path(path), found, tensors, f"random weights, seed {seed}; draws noise")


def write_checkpoint(
    path: Path,
    configs: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, dict[str, Tensor]],
    description: str,
) -> None:
    """Parts with these configurations and weights, and a tokenizer of bytes."""
    for name, config in configs.items():
        _write(path / name / "config.json", config)
        weights = save(tensors[name], {"format": "pt"})
        (path / name / f"{WEIGHTS[name]}.safetensors").write_bytes(weights)
    scheduler = {
        "_class_name": "AmusedScheduler",
        "mask_token_id": int(configs["transformer"]["vocab_size"]) - 1,
        "masking_schedule": "cosine",
    }
    _write(path / "scheduler/scheduler_config.json", scheduler)
    _write_tokenizer(path / "tokenizer")
    _write(path / "model_index.json", MODEL_INDEX)
    _write(path / "farm.json", {"name": path.name, "description": description})


def _transformer_config(size: int, downsample: bool, changes: Mapping[str, Any]) -> dict[str, Any]:
    codebook = int(changes.get("codebook_size", 1024))
    return {
        "_class_name": "UVit2DModel",
        "use_bias": False,
        "layer_norm_eps": 1e-6,
        "ln_elementwise_affine": True,
        "hidden_size": 128,
        "cond_embed_dim": 64,
        "micro_cond_encode_dim": 32,
        "micro_cond_embed_dim": 160,
        "encoder_hidden_size": 64,
        "vocab_size": codebook + 64,
        "codebook_size": codebook,
        "in_channels": 64,
        "block_out_channels": 64,
        "num_res_blocks": 1,
        "block_num_heads": 2,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "sample_size": size // 8,
        "downsample": downsample,
        "upsample": downsample,
        **changes,
    }


def _configs(size: int, downsample: bool, changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The three with weights, by their folders, as diffusers and transformers read them."""
    transformer = _transformer_config(size, downsample, changes)
    vqvae = {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 16, 32, 32],
        "layers_per_block": 1,
        "latent_channels": 16,
        "num_vq_embeddings": transformer["codebook_size"],
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
        "force_upcast": True,
    }
    text = {
        "architectures": ["CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": 514,
        "hidden_size": transformer["encoder_hidden_size"],
        "projection_dim": transformer["cond_embed_dim"],
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    }
    return {"transformer": transformer, "vqvae": vqvae, "text_encoder": text}


MODEL_INDEX = {
    "_class_name": "AmusedPipeline",
    "scheduler": ["diffusers", "AmusedScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "UVit2DModel"],
    "vqvae": ["diffusers", "VQModel"],
}


def _write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with every byte as a symbol and no merges: any text has tokens."""
    symbols = _byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    vocab = {word: index for index, word in enumerate(words)}
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    _write(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    _write(folder / "special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    _write(folder / "tokenizer_config.json", config)


def byte_tokenizer() -> Tokenizer:
    """The same tokenizer without a checkpoint around it."""
    with tempfile.TemporaryDirectory() as folder:
        _write_tokenizer(Path(folder))
        return Tokenizer(Path(folder))


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of its vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in set(kept)]
    return [chr(byte) for byte in kept] + [chr(256 + index) for index in range(len(rest))]


def _write(file: Path, data: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
