"""An inpainted picture needs its input decoded too, but only where some of it shows."""

from typing import Any

import numpy as np
import pytest
from cases import ASSET, Case, draw, row_of

from farm_workers.engine import Engine
from farm_workers.engine.amused import AmusedModel

MASKED_ROWS = {"none": 0, "some": 24, "all": 64}  # of the mask's 64 lines of pixels


@pytest.fixture
def tiles(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were decoded in each tile, in order."""
    found: list[int] = []
    codec: Any = engine._model.codec  # type: ignore[attr-defined]
    tile = codec._tile

    def counted(tokens: Any) -> Any:
        found.append(len(tokens))
        return tile(tokens)

    monkeypatch.setattr(codec, "_tile", counted)
    return found


def _case(engine: Engine, masked: str, seed: int = 0) -> Case:
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[: MASKED_ROWS[masked]] = 255
    row = row_of(engine.checkpoint, image=ASSET, mask_image=ASSET, seed=seed, num_inference_steps=2)
    return Case(row, {"image": image, "mask": mask})


@pytest.mark.parametrize(("masked", "decoded"), [("none", 1), ("some", 2), ("all", 1)])
def test_an_input_is_decoded_only_where_some_of_it_shows(
    engine: Engine, tiles: list[int], masked: str, decoded: int
) -> None:
    done = draw(engine, _case(engine, masked))[0]
    assert done.error is None
    assert len(tiles) == decoded


@pytest.fixture
def four_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures are decoded at a time, as on a GPU, padding included."""
    monkeypatch.setattr(AmusedModel, "decode_width", lambda *given: 4)


@pytest.mark.usefixtures("four_together")
def test_rows_and_their_inputs_share_tiles(engine: Engine, tiles: list[int]) -> None:
    draw(engine, *(_case(engine, "some", seed) for seed in range(2)))
    assert tiles == [4]
    draw(engine, *(_case(engine, "some", seed) for seed in range(4)))
    assert tiles == [4, 4, 4]
    draw(engine, *(_case(engine, masked, 7) for masked in ("all", "some", "all", "some")))
    assert tiles == [4] * 5


@pytest.mark.usefixtures("four_together")
def test_a_picture_is_the_same_whatever_shares_its_tile(engine: Engine) -> None:
    cases = [_case(engine, masked, seed) for seed, masked in enumerate(MASKED_ROWS)]
    together = draw(engine, *cases)
    for case, expected in zip(cases, together, strict=True):
        np.testing.assert_array_equal(draw(engine, case)[0].pixels, expected.pixels)
