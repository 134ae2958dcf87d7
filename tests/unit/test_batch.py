"""Renders that come in together are resolved as each of them would be alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fake_engine import INFO
from hypothesis import given
from hypothesis import strategies as st

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import FarmError, InvalidInput
from farm.ingest.adapters import Adapters
from farm.ingest.assets import Assets
from farm.ingest.ndjson import Entries, Entry
from farm.ingest.resolver import MAX_PATTERNS, Resolver
from farm.renders import NumberedSpec, Renders
from farm.spec import RenderRequest, RenderSpec, accepts_prompts
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


def test_rows_that_come_in_together_are_what_each_is_alone(resolver: Resolver) -> None:
    chance = random.Random(6)
    rows: list[Any] = []
    for _ in range(1500):
        names = chance.sample(sorted(VALUES.keys() - {"prompt"}), chance.choice([0, 0, 1, 1, 2]))
        data = {name: chance.choice(VALUES[name]) for name in names}
        rows.append(data | {"prompt": chance.choice(VALUES["prompt"][: chance.choice([3, 3, 12])])})
    wrong = InvalidInput("is not JSON", field="json")
    odd = [Entry(None), Entry([1]), Entry(error=wrong, line=3), Entry({"seed": 5}), Entry("{}")]
    for line in (None, 1):
        entries = [*(Entry(data, line=line) for data in rows), *odd]
        chance.shuffle(entries)
        renders, refused = resolver.batch("ann", seed=7).resolve_all(Entries.of(entries), 40)
        alone = resolver.batch("ann", seed=7)
        found: list[NumberedSpec] = []
        errors: dict[int, str] = {}
        for place, entry in enumerate(entries):
            try:
                if entry.error is not None:
                    raise entry.error
                columns = entry.line is not None
                found.append(alone.resolve(entry.data, 40 + place, columns=columns))
            except FarmError as error:
                errors[place] = str(error)
        assert {place: str(error) for place, error in refused.items()} == errors
        assert list(refused) == list(errors)
        assert renders == Renders.of(found)
        assert len(found) > 400


def test_the_quick_look_at_prompts_says_what_the_slow_one_says() -> None:
    some = st.sampled_from(VALUES["prompt"])

    @given(st.lists(some | st.text(max_size=3) | st.integers(), max_size=4))
    def compare(values: list[Any]) -> None:
        one_by_one = []
        for value in values:
            try:
                RenderRequest.parse({"prompt": value})
                one_by_one.append(True)
            except FarmError:
                one_by_one.append(False)
        assert accepts_prompts(values) == one_by_one

    compare()


def test_a_batch_of_ever_new_values_keeps_few_of_them(resolver: Resolver) -> None:
    batch = resolver.batch("ann", seed=7)
    for render in range(2 * MAX_PATTERNS):
        data = {"prompt": "x", "negative_prompt": f"not {render}"}
        spec = batch.resolve(data, render).spec
        assert spec.negative_prompt == f"not {render}"
        assert len(batch._patterns) <= MAX_PATTERNS
