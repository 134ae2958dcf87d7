"""Trains the shapes checkpoints, from drawings to diffusers directories."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import checkpoint
import torch
import transformer
import vq
from diffusers import VQModel
from log import Log

PLAN = transformer.Plan(steps=5000, batch=32, pool=12_000)
GUIDANCE = 2.0  # of 1, 1.5, 2, 3, 5 and 10 it shows the most right shapes: docs/shapes.md
CHECKPOINTS = Path(__file__).resolve().parents[2] / "workers" / "farm_workers" / "checkpoints"


def train_vq(folder: Path, steps: int) -> VQModel:
    return vq.Trainer(folder, Log(folder / "vq.log")).run(steps)


def train_enlarged(folder: Path) -> VQModel:
    """Needs the small model's codes; how far its decoder is does not matter."""
    small = train_vq(folder, vq.CODE_STEPS)
    return vq.Enlarged(small, folder, Log(folder / "vq-128.log")).run(vq.ENLARGED_STEPS)


def train_transformer(folder: Path) -> transformer.Trainer:
    """Needs the small model's codes as well."""
    model = train_vq(folder, vq.CODE_STEPS)
    return transformer.Trainer(PLAN, model, folder, Log(folder / "transformer.log"))


def save(folder: Path, out: Path) -> None:
    models = {64: train_vq(folder, vq.STEPS), 128: train_enlarged(folder)}
    trainer = train_transformer(folder)
    trained = trainer.run()
    for side, model in models.items():
        checkpoint.save(side, model, trained, trainer.tokenizer, out, GUIDANCE)


def train_all(folder: Path, out: Path, threads: int) -> None:
    """The VQ model's codes first; then the transformer, and beside it the decoders.

    At this size a second thread speeds one training up by a fifth only; a second training
    beside it costs nothing.
    """
    train_vq(folder, vq.CODE_STEPS)
    command = [sys.executable, __file__, "--scratch", str(folder)]
    command += ["--threads", str(max(1, threads // 2)), "--part"]
    tokens = subprocess.Popen([*command, "transformer"])
    decoders = [
        subprocess.run([*command, part], check=False).returncode for part in ("decoder", "enlarged")
    ]
    if tokens.wait() or any(decoders):
        sys.exit("error: a training failed; the same command goes on from its last save")
    save(folder, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="states and logs, to resume")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    parts = ["all", "codes", "decoder", "enlarged", "transformer", "save"]
    parser.add_argument("--part", choices=parts, default="all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    match options.part:
        case "all":
            train_all(options.scratch, options.out, options.threads)
        case "codes":
            train_vq(options.scratch, vq.CODE_STEPS)
        case "decoder":
            train_vq(options.scratch, vq.STEPS)
        case "enlarged":
            train_enlarged(options.scratch)
        case "transformer":
            train_transformer(options.scratch).run()
        case "save":
            save(options.scratch, options.out)


if __name__ == "__main__":
    main()
