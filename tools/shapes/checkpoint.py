"""Writes the trained parts as diffusers directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import AmusedPipeline, AmusedScheduler, VQModel
from transformer import MASK, Model
from transformers import CLIPTokenizer


def save(
    side: int,
    vqvae: VQModel,
    model: Model,
    tokenizer: CLIPTokenizer,
    folder: Path,
    guidance: float,
) -> None:
    """A complete directory in half precision, replaced as a whole."""
    name = f"shapes-{side}"
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    pipeline = AmusedPipeline(
        vqvae=vqvae.half(),
        tokenizer=tokenizer,
        text_encoder=model.text.half(),
        transformer=model.transformer.half(),
        scheduler=AmusedScheduler(mask_token_id=MASK, masking_schedule="cosine"),
    )
    pipeline.save_pretrained(target, safe_serialization=True)
    _save_words(tokenizer, target / "tokenizer")
    facts = {
        "name": name,
        "description": f"Plain shapes at {side} x {side} pixels, trained on drawings.",
        "default_guidance_scale": guidance,
    }
    (target / "farm.json").write_text(json.dumps(facts, indent=2) + "\n")


def _save_words(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The files of CLIP's slow tokenizer too: amused-256 has them, and older readers want them."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
