"""Random rows of every mode and parameter, and the arrays that their specs name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from farm.spec import CheckpointInfo, RenderRequest, RenderSpec, Row
from farm_workers.engine import Engine, Result

MakeCheckpoint = Callable[..., Path]  # the fixture make_checkpoint

ASSET = "0" * 64  # the engine gets arrays, never looks an asset up
WORDS = ["a", "red", "bicycle", "on", "the", "moon,", "oil painting", "of two cats", "自転車", "é?"]


class Embeds(NamedTuple):
    prompt_embeds: Any
    encoder_hidden_states: Any
    negative_prompt_embeds: Any
    negative_encoder_hidden_states: Any


@dataclass(frozen=True)
class Case:
    row: Row
    inputs: dict[str, Any] = field(default_factory=dict)


def spec_of(info: CheckpointInfo, **request: Any) -> RenderSpec:
    picture = (request["height"], request["width"]) if "height" in request else None
    return RenderRequest.parse(request).resolve(info, seed=0, picture=picture)


def row_of(info: CheckpointInfo, **request: Any) -> Row:
    return Row.of(spec_of(info, **{"prompt": "a red bicycle", **request}), 0)


def random_case(
    random: Random,
    info: CheckpointInfo,
    *,
    rng: str,
    mode: str,
    small: bool = False,
    most_steps: int = 20,
) -> Case:
    """Sizes are such that upstream's mask processor does not round the token grid."""
    unit = info.size_multiple
    sides = [64, 128] if mode == "inpaint" else [unit * n for n in range(3, 11)]
    if small:
        sides = [unit * n for n in (2, 3, 5)]
    height, width = random.choice(sides), random.choice(sides)
    steps = random.randint(1, 6 if small else most_steps)
    request: dict[str, Any] = {
        "mode": mode,
        "prompt": " ".join(random.choices(WORDS, k=random.randint(1, 30))),
        "height": height,
        "width": width,
        "num_inference_steps": steps,
        "guidance_scale": random.choice([0, 0.5, 1, 1.01, 2.5, 4, 7, 10, 20]),
        "temperature": random.choice([0, 1, 2, 4.5, (2, 0), (0, 1), (3.7, 0.2)]),
        "seed": random.choice([random.getrandbits(64), random.getrandbits(16)]),
        "micro_conditioning_aesthetic_score": random.choice([6, 2.5, 9]),
        "micro_conditioning_crop_coord": random.choice([(0, 0), (16, 48)]),
        "rng": rng,
    }
    noise = np.random.default_rng(random.getrandbits(32))
    inputs: dict[str, Any] = {}
    if random.random() < 0.2:
        inputs["embeds"] = _embeds(noise, info)
        request |= {"embeds": f"{random.getrandbits(256):064x}", "prompt": None}
    elif random.random() < 0.5:
        request["negative_prompt"] = random.choice(["", "blurry", "text " * 40])
    if mode == "text2img":
        if random.random() < 0.3:
            request["latents"] = ASSET
            inputs["latents"] = _latents(noise, info, height, width)
    else:
        inputs["image"] = _picture(noise, height, width)
        request["image"] = ASSET
        # Strength 1 of img2img masks nothing upstream; a test of its own shows it.
        top = 0.99 if mode == "img2img" else 1.0
        request["strength"] = min(max(random.uniform(0.05, 1.3), 1.01 / steps), top)
        if steps == 1 and mode == "img2img":
            request["num_inference_steps"] = 2
            request["strength"] = 0.6
    if mode == "inpaint":
        request["mask_image"] = ASSET
        inputs["mask"] = _mask(random, height, width)
    return Case(Row.of(spec_of(info, **request), 0), inputs)


def _embeds(noise: np.random.Generator, info: CheckpointInfo) -> Embeds:
    pooled, hidden = (1, info.pooled_dim), (1, info.text_tokens, info.hidden_dim)
    shapes = (pooled, hidden, pooled, hidden)
    return Embeds(*(noise.standard_normal(shape, dtype=np.float32) for shape in shapes))


def _latents(noise: np.random.Generator, info: CheckpointInfo, height: int, width: int) -> Any:
    grid = info.grid(height, width)
    tokens = noise.integers(0, info.codebook_size, grid)
    tokens[noise.random(grid) < 0.6] = info.mask_token_id
    tokens[0, 0] = info.mask_token_id
    return tokens


def _picture(noise: np.random.Generator, height: int, width: int) -> Any:
    small = noise.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))


def _mask(random: Random, height: int, width: int) -> Any:
    """From one token to all of them."""
    mask = np.zeros((height, width), dtype=np.uint8)
    rows, columns = height // 8, width // 8
    size = random.choice([(1, 1), (2, 2), (rows // 2, columns), (rows, columns)])
    top, left = random.randint(0, rows - size[0]), random.randint(0, columns - size[1])
    mask[top * 8 : (top + size[0]) * 8, left * 8 : (left + size[1]) * 8] = 255
    return mask


def run(engine: Engine) -> dict[Any, Result]:
    """Everything that is inside, by key; each row comes out once."""
    found: dict[Any, Result] = {}
    while not engine.idle:
        for done in engine.step():
            assert done.key not in found
            found[done.key] = done
    return found


def draw(engine: Engine, *cases: Case) -> list[Result]:
    for key, case in enumerate(cases):
        engine.add(key, case.row, **case.inputs)
    done = run(engine)
    return [done[key] for key in range(len(cases))]
