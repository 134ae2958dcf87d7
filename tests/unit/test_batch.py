"""Renders that come in together are resolved as each of them would be alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fake_engine import INFO

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import FarmError
from farm.ingest.adapters import Adapters
from farm.ingest.assets import Assets
from farm.ingest.resolver import MAX_PATTERNS, Resolver
from farm.spec import RenderSpec
from farm.store import open_store

# Values of which many are equal to one another, not the same, or wrong.
VALUES: dict[str, list[Any]] = {
    "prompt": ["a", "b", "é", "", " ", "a\x00", "\ud800", "x" * 2001, None, 1, True, ["a"]],
    "seed": [0, 1, 2**64 - 1, 2**64, -1, 1.0, 1.5, True, None, "1"],
    "negative_prompt": ["", "x", None, 1],
    "height": [64, 64.0, 65, True, "64", None],
    "num_images": [1, 1.0, True, 2, 65],
    "num_images_per_prompt": [1, 2],
    "guidance_scale": [0, 0.0, -0.0, 1, 1.0, True, 7.5, -1, float("inf")],
    "temperature": [0.0, -0.0, 2, 2.0, [2, 0], (2.0, 0.0)],
    "micro_conditioning_aesthetic_score": [0.0, -0.0, 6, 6.0, 11],
    "rng": ["torch", "farm-1", "x"],
    "mode": ["text2img", "img2img", None],
    "checkpoint": ["fake", "fake@0", "other"],
    "image": ["0" * 64, None],
    "embeds": ["0" * 64],
    "adapters": [[], None, [{"adapter": "dots", "scale": 1}]],
    "strength": [0.5],
    "id": [1, "x"],
    "metadata": [{"a": 1}],
    "prompts": ["x"],
}


@pytest.fixture
def resolver(tmp_path: Path) -> Resolver:
    store, registry = open_store(str(tmp_path)), CheckpointRegistry([INFO])
    assets = Assets(store)
    return Resolver(registry, assets, Adapters(store, assets, registry))


def outcome(resolve: Any, data: Any, render: int) -> Any:
    try:
        numbered = resolve(dict(data), render)
    except FarmError as error:
        return type(error), str(error)
    return numbered.metadata, numbered.spec.model_dump_json(), numbered.spec


def test_a_batch_resolves_each_render_as_if_it_came_alone(resolver: Resolver) -> None:
    chance = random.Random(5)
    batch = resolver.batch("ann", seed=7)
    accepted = 0
    for render in range(4000):
        names = chance.sample(sorted(VALUES.keys() - {"prompt"}), chance.choice([0, 1, 1, 2, 3]))
        data = {name: chance.choice(VALUES[name]) for name in names}
        data["prompt"] = chance.choice(VALUES["prompt"][: chance.choice([3, 12])])
        together = outcome(batch.resolve, data, render)
        alone = outcome(resolver.batch("ann", seed=7).resolve, data, render)
        assert together == alone, data
        if isinstance(alone[-1], RenderSpec):
            accepted += 1
            assert json.loads(alone[-1].canonical())["prompt"] == data["prompt"]
    assert 1000 < accepted < 3500


def test_a_batch_of_ever_new_values_keeps_few_of_them(resolver: Resolver) -> None:
    batch = resolver.batch("ann", seed=7)
    for render in range(2 * MAX_PATTERNS):
        data = {"prompt": "x", "negative_prompt": f"not {render}"}
        spec = batch.resolve(data, render).spec
        assert spec.negative_prompt == f"not {render}"
        assert len(batch._patterns) <= MAX_PATTERNS
