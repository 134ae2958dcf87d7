"""Full-size models on a CPU: the engine's tokens beside diffusers', in three modes.

    make full-size                # amused-256 and amused-512 with random weights; minutes, 6 GiB

Two steps each, guided, on one thread. On two, 5 of 1,024 tokens of one picture differed: the engine
computes fewer rows of some products than diffusers does, and threads presumably share them out in
another way. Exit code 1 where a token differs.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from cases import Case, row_of, run
from oracle import Pipelines

from farm.spec import CheckpointInfo
from farm_workers.bench.full_size import CONFIGURATIONS, random_parts
from farm_workers.bench.pipelines import upstream_modules
from farm_workers.engine import Engine
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.device import Device

ASSET = "0" * 64


def cases(info: CheckpointInfo) -> dict[str, Case]:
    """One of each mode, by its name."""
    size = {"height": info.native_height, "width": info.native_width}
    noise = np.random.default_rng(0)
    small = noise.integers(0, 256, (size["height"] // 8, size["width"] // 8, 3), dtype=np.uint8)
    image = np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    mask[size["height"] // 4 :, : size["width"] // 2] = 255
    common = {**size, "seed": 7, "rng": "torch"}  # the draws of diffusers
    image_of = {**common, "image": ASSET}
    return {
        "text2img": Case(row_of(info, **common, num_inference_steps=2)),
        # Two of three steps: at strength 1 the pipeline masks nothing.
        "img2img": Case(
            row_of(info, **image_of, num_inference_steps=3, strength=0.7), {"image": image}
        ),
        "inpaint": Case(
            row_of(info, **image_of, mask_image=ASSET, num_inference_steps=2, strength=1.0),
            {"image": image, "mask": mask},
        ),
    }


def compare(name: str) -> bool:
    """Whether all tokens of that configuration are diffusers'; tells each mode's count."""
    torch.set_num_threads(1)
    device = Device("cpu")
    info, parts = random_parts(name, device.torch, torch.float32)
    with torch.inference_mode():
        engine = Engine(AmusedModel(info, parts, device, torch.float32), tile=2)
    oracle, equal = Pipelines(upstream_modules(parts), info.mask_token_id), True
    wanted = cases(info)
    for mode, case in wanted.items():
        engine.add(mode, case.row, **case.inputs)
    started = time.perf_counter()
    found = run(engine)  # all three in one tile
    seconds = time.perf_counter() - started
    for mode, case in wanted.items():
        expected = oracle.tokens(case.row, **case.inputs)
        tokens = found[mode].tokens
        assert tokens is not None, found[mode].error
        same = int((tokens == expected).sum())
        equal &= same == expected.size
        print(f"{name} {mode:8} {same:,} of {expected.size:,} tokens equal", flush=True)
    print(f"{name} {seconds:.0f} s for the engine's three pictures", flush=True)
    return equal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", choices=CONFIGURATIONS, action="append", dest="models")
    models = options.parse_args(arguments).models or CONFIGURATIONS
    results = [compare(name) for name in models]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
