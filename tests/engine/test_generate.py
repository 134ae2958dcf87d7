"""``Engine.generate``: what goes in, what comes out, and how much is held."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, MakeCheckpoint, draw, row_of
from PIL import Image

from farm.errors import InvalidInput
from farm.spec import RenderRequest
from farm_workers.engine import Engine

REQUEST = {"prompt": "a cat", "num_inference_steps": 2, "guidance_scale": 0}


@pytest.fixture
def engine(make_checkpoint: MakeCheckpoint) -> Engine:
    path = make_checkpoint(num_hidden_layers=1, hidden_size=64, codebook_size=256, seed=3)
    return Engine.load(path, threads=1, tile=2, rows=5)


def test_requests_come_out_as_the_rows_that_add_takes(engine: Engine) -> None:
    requests = [{**REQUEST, "seed": 5, "num_images": 3}, RenderRequest(**REQUEST, seed=9)]
    found = {(one.key, one.index): one for one in engine.generate(requests)}
    assert found.keys() == {(0, 0), (0, 1), (0, 2), (1, 0)}
    for (key, index), seed in {(0, 0): 5, (0, 2): 7, (1, 0): 9}.items():
        (expected,) = draw(engine, Case(row_of(engine.checkpoint, **{**REQUEST, "seed": seed})))
        assert np.array_equal(found[key, index].tokens, expected.tokens)
        assert np.array_equal(found[key, index].pixels, expected.pixels)


def test_a_picture_is_the_same_from_a_path_an_array_pillow_and_bytes(
    engine: Engine, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file, image = tmp_path / "a.png", Image.fromarray(pixels)
    image.save(file)
    request = {**REQUEST, "seed": 1, "strength": 0.9}
    pictures = [pixels, image, file, str(file), file.read_bytes()]
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 32))
    masks = [None] * 5 + [mask]
    results = engine.generate([request] * 6, images=[*pictures, image], masks=masks)
    found = {one.key: one for one in results}
    assert [one.error for one in found.values()] == [None] * 6
    for key in range(1, 5):
        assert np.array_equal(found[key].pixels, found[0].pixels)
    assert not np.array_equal(found[5].pixels, found[0].pixels)
    nothing, weak = [Image.new("L", (64, 64))], [{**request, "strength": 0.5}]
    untouched = next(engine.generate(weak, images=[image], masks=nothing))
    assert np.array_equal(found[5].tokens[4:], untouched.tokens[4:])  # below the mask


def test_what_is_wrong_with_one_request_is_its_result(engine: Engine, tmp_path: Path) -> None:
    requests: list[Any] = [
        {**REQUEST, "guidance_scale": -1},
        REQUEST,
        {**REQUEST, "image": "0" * 64},
        {**REQUEST, "checkpoint": "another"},
        {**REQUEST, "adapters": [{"adapter": "unknown"}]},
        "a cat",
        REQUEST,
        REQUEST,
        "a cat",
        [REQUEST],
    ]
    picture = Image.new("RGB", (64, 64))
    images = [None] * 6 + [tmp_path / "absent.png", b"not a picture", picture, picture]
    found = {one.key: one for one in engine.generate(requests, images=images)}
    assert found[1].error is None
    assert found[1].pixels is not None
    fields = [None if found[key].error is None else found[key].error.field for key in range(10)]
    assert fields == [
        "guidance_scale", None, "image", "checkpoint", "adapters", "render", "image", "image",
        "render", "render",
    ]  # fmt: skip
    assert engine.idle


def test_it_reads_no_further_than_it_has_room(engine: Engine) -> None:
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        for read in itertools.count(1):
            yield {**REQUEST, "seed": read}

    most, results = 0, engine.generate(endless())
    for count, _ in enumerate(itertools.islice(results, 40), 1):
        most = max(most, read - count)
        assert engine.held <= engine.rows
    assert most <= engine.rows
    results.close()
    assert engine.idle


def test_requests_without_a_seed_repeat_and_differ(engine: Engine) -> None:
    def tokens(seed: int) -> list[list[int]]:
        found = {one.key: one.tokens for one in engine.generate([REQUEST, REQUEST], seed=seed)}
        return [found[key].flatten().tolist() for key in (0, 1)]

    assert tokens(4) == tokens(4)
    assert tokens(4)[0] != tokens(4)[1]
    assert tokens(4) != tokens(5)


def test_too_few_pictures_and_a_busy_engine_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="fewer pictures than requests"):
        list(engine.generate([REQUEST, REQUEST], images=[None]))
    assert engine.idle
    engine.add("mine", row_of(engine.checkpoint, **REQUEST))
    with pytest.raises(InvalidInput, match="other rows"):
        next(engine.generate([REQUEST]))
    assert not engine.idle
