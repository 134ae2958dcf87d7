"""What the engine's measurements draw."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from farm.spec import CheckpointInfo, Mode, RenderRequest, RenderSpec, Row
from farm_workers.engine import Engine, Result

ASSET = "0" * 64  # the engine gets arrays, never looks an asset up


@dataclass(frozen=True)
class Item:
    """One picture to draw, with what its spec names."""

    spec: RenderSpec
    image: Any = None
    mask: Any = None


def uniform(info: CheckpointInfo, count: int, take: int = 0, steps: int = 12) -> list[Item]:
    """Text to image at the checkpoint's own size and guidance.

    Prompts differ from picture to picture and from ``take`` to take, so that none is in a cache.
    """
    return [
        _item(info, prompt=f"a red bicycle, {take}.{n}", seed=n, num_inference_steps=steps)
        for n in range(count)
    ]


def mixed(info: CheckpointInfo, count: int, take: int = 0) -> list[Item]:
    """The three modes, 4 to 20 steps, guidance on and off, several strengths."""
    random, found = Random(0), []
    noise = np.random.default_rng(0)
    height, width = info.native_height, info.native_width
    for n in range(count):
        mode = list(Mode)[n % 3]
        request: dict[str, Any] = {
            "mode": mode,
            "prompt": f"a bicycle of many colours, {take}.{n}",
            "num_inference_steps": random.randint(4, 20),
            "guidance_scale": random.choice([0.0, 4.0, 10.0]),
            "seed": n,
        }
        image = mask = None
        if mode is not Mode.TEXT2IMG:
            image = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
            request |= {"image": ASSET, "strength": random.choice([0.4, 0.6, 0.9])}
        if mode is Mode.INPAINT:
            mask = np.zeros((height, width), dtype=np.uint8)
            mask[height // 4 :, : width // 2] = 255
            request["mask_image"] = ASSET
        found.append(_item(info, (image, mask), **request))
    return found


def _item(info: CheckpointInfo, pictures: tuple[Any, Any] = (None, None), **request: Any) -> Item:
    return Item(RenderRequest.parse(request).resolve(info, seed=0), *pictures)


def drawn(engine: Engine, items: Iterable[Item], *, urgent: bool = False) -> Iterator[Result]:
    """Pictures as they finish; items are taken as soon as the engine has room for them."""
    waiting = enumerate(items)
    while True:
        for key, item in itertools.islice(waiting, engine.room()):
            engine.add(key, Row.of(item.spec, 0), item.image, item.mask, urgent=urgent)
        if engine.idle:
            return
        for done in engine.step():
            assert done.error is None, done.error
            yield done


def draw_with_engine(engine: Engine, items: list[Item]) -> None:
    """One picture alone is urgent: it would pay for a whole tile on a GPU."""
    for _ in drawn(engine, items, urgent=len(items) == 1):
        pass
