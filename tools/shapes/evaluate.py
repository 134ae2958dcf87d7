"""Measures a shapes checkpoint: the judge's verdicts on held-out prompts, round trips, times."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AmusedPipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import vq
from caption import prompt
from judge import Match, judge, matches, objects
from scene import Pixels, Scene, combinations, pair, single

STEPS = (4, 8, 12, 20)
GUIDANCES = (1.0, 2.0, 3.0, 5.0, 10.0)
BATCH = 50


def load(folder: Path) -> AmusedPipeline:
    pipeline = AmusedPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def side_of(pipeline: AmusedPipeline) -> int:
    """Pixels of the pictures that the checkpoint was trained for."""
    return int(pipeline.vqvae.config.sample_size)


def held_out_scenes(count: int) -> list[Scene]:
    """One-object scenes with different prompts; none of their combinations was trained on."""
    rng = Random("evaluation")
    kept = list(combinations(kept_out=True))
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = single(rng, *kept[len(scenes) % len(kept)])
        scenes.setdefault(prompt(scene), scene)
    return list(scenes.values())


def held_out_pairs(count: int) -> list[Scene]:
    rng = Random("pairs")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = pair(rng)
        if scene.held_out:
            scenes.setdefault(prompt(scene), scene)
    return list(scenes.values())


def render(
    pipeline: AmusedPipeline,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float,
    negative: str | None = None,
    score: int = 6,
    crop: tuple[int, int] = (0, 0),
) -> list[Pixels]:
    """Pictures as uint8 arrays, the same for the same seed and list."""
    pictures: list[Pixels] = []
    for start in range(0, len(prompts), BATCH):
        texts = list(prompts[start : start + BATCH])
        out = pipeline(
            texts,
            negative_prompt=None if negative is None else [negative] * len(texts),
            micro_conditioning_aesthetic_score=score,
            micro_conditioning_crop_coord=crop,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(start),
        )
        pictures += [np.asarray(image) for image in out.images]
    return pictures


def share(found: list[Match]) -> dict[str, float]:
    return {
        name: sum(getattr(match, name) for match in found) / len(found) for name in Match._fields
    }


def accuracy(
    pipeline: AmusedPipeline, scenes: list[Scene], *, steps: int, guidance: float
) -> dict[str, float]:
    pictures = render(pipeline, [prompt(s) for s in scenes], steps=steps, guidance=guidance)
    return share([matches(judge(p), s) for p, s in zip(pictures, scenes, strict=True)])


def pair_accuracy(
    pipeline: AmusedPipeline, scenes: list[Scene], *, steps: int, guidance: float
) -> dict[str, float]:
    """Each thing is compared with the object found at its place."""
    pictures = render(pipeline, [prompt(s) for s in scenes], steps=steps, guidance=guidance)
    found = []
    for picture, scene in zip(pictures, scenes, strict=True):
        verdicts = {v.position: v for v in reversed(objects(picture))}
        for thing in scene.things:
            verdict = verdicts.get(thing.place, judge(picture)._replace(colour=None, shape=None))
            found.append(matches(verdict, scene, thing))
    return share(found)


def seconds(pipeline: AmusedPipeline, batch: int) -> float:
    """Time per picture at 12 steps, the best of three."""
    words = ["a large red circle on a blue background"] * batch
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        pipeline(words, num_inference_steps=12, guidance_scale=2.0)
        best = min(best, time.perf_counter() - start)
    return best / batch


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = ["| steps | guidance | background | colour | shape | position | size |"]
    lines.append("|---|---|---|---|---|---|---|")
    for key, values in figures.items():
        cells = [f"{100 * values[name]:.1f} %" for name in Match._fields]
        lines.append(f"| {key.replace(' ', ' | ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--prompts", type=int, default=200)
    options = parser.parse_args()
    pipeline = load(options.checkpoint)
    default = json.loads((options.checkpoint / "farm.json").read_text())["default_guidance_scale"]
    side = side_of(pipeline)
    scenes = held_out_scenes(options.prompts)
    knobs = [(12, default), *((s, g) for s in STEPS for g in GUIDANCES if (s, g) != (12, default))]
    figures = {}
    for steps, guidance in knobs:
        figures[f"{steps} {guidance:g}"] = accuracy(
            pipeline, scenes, steps=steps, guidance=guidance
        )
        print(steps, guidance, figures[f"{steps} {guidance:g}"], flush=True)
    pairs = pair_accuracy(
        pipeline, held_out_pairs(options.prompts // 4), steps=12, guidance=default
    )
    result = {
        "checkpoint": options.checkpoint.name,
        "default_guidance_scale": default,
        "accuracy": figures,
        "pairs": pairs,
        "psnr": vq.psnr(pipeline.vqvae, vq.held_out_scenes(200), side),
        "seconds_alone": seconds(pipeline, 1),
        "seconds_in_32": seconds(pipeline, 32),
    }
    print(table(figures))
    print({key: value for key, value in result.items() if key != "accuracy"})
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
