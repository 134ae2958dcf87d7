"""Trains the shapes checkpoints, from drawings to diffusers directories."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import checkpoint
import torch
import transformer
import vq
from diffusers import VQModel
from log import Log

PLANS = {
    "64": transformer.Plan(side=64, steps=4000, batch=32, pool=8_000, handover=500),
    "128": transformer.Plan(side=128, steps=2500, batch=32, pool=3_500, origin="shapes-64"),
}
GUIDANCE = {"64": 3.0, "128": 3.0}  # not tuned yet: docs/shapes.md
CHECKPOINTS = Path(__file__).resolve().parents[2] / "workers" / "farm_workers" / "checkpoints"


def train_vq(folder: Path, steps: int) -> VQModel:
    return vq.Trainer(folder, Log(folder / "vq.log")).run(steps)


def train_transformer(name: str, folder: Path) -> transformer.Trainer:
    """Needs the VQ model's codes; how far its decoder is does not matter."""
    model = train_vq(folder, vq.CODE_STEPS)
    log = Log(folder / f"{name}.log")
    return transformer.Trainer(PLANS[name], model, folder, log)


def save(folder: Path, out: Path) -> None:
    model = train_vq(folder, vq.STEPS)
    for name, plan in PLANS.items():
        trainer = train_transformer(name, folder)
        checkpoint.save(plan, model, trainer.run(), trainer.tokenizer, out, GUIDANCE[name])


def train_all(folder: Path, out: Path, threads: int) -> None:
    """The VQ model's codes first; then, two at a time, its decoder and the transformers.

    At this size a second thread speeds one training up by a fifth only; a second training
    beside it costs nothing.
    """
    train_vq(folder, vq.CODE_STEPS)
    command = [sys.executable, __file__, "--scratch", str(folder)]
    command += ["--threads", str(max(1, threads // 2)), "--part"]
    small = subprocess.Popen([*command, "64"])
    decoder = subprocess.run([*command, "decoder"], check=False)
    start = transformer.handover_file(folder, PLANS["64"].name)
    while small.poll() is None and not start.exists():
        time.sleep(1)
    large = subprocess.run([*command, "128"], check=False)
    if small.wait() or decoder.returncode or large.returncode:
        sys.exit("error: a training failed; the same command goes on from its last save")
    save(folder, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="states and logs, to resume")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    parser.add_argument(
        "--part", choices=["all", "codes", "decoder", *PLANS, "save"], default="all"
    )
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
        case "save":
            save(options.scratch, options.out)
        case name:
            train_transformer(name, options.scratch).run()


if __name__ == "__main__":
    main()
