"""What an engine does where there is no memory for its work."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from adapter_files import adapted, random_file
from cases import ASSET, Case, draw, row_of, run
from test_occupancy import INFO, StubModel

from farm.errors import OutOfMemory
from farm.spec import Row
from farm_workers.engine import Engine
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.device import Device
from farm_workers.engine.sampler import TorchSampler


@pytest.fixture(autouse=True)
def _torch_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles of fixed shape too: which kernel samples is not the question here."""
    monkeypatch.setattr("farm_workers.engine.triton_sampler.TritonSampler", TorchSampler)


class Crowded:
    """A model that has no memory for one kind of work beside tiles without rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: str, tiles: int = 0) -> None:
        self.model = StubModel(by_row=False)
        self.engine = Engine(self.model, tile=2)
        given = getattr(self.model, work)

        def crowded(*args: Any, **named: Any) -> Any:
            idle = [tile for tile in self.engine._tiles if not tile.rows]
            if len(idle) > tiles:
                raise torch.OutOfMemoryError
            return given(*args, **named)

        monkeypatch.setattr(self.model, work, crowded)


def _row(side: int, seed: int = 0) -> tuple[Row, Any]:
    row = row_of(
        INFO, mode="img2img", image=ASSET, strength=0.5, height=side, width=side, seed=seed
    )
    return row, np.zeros((side, side, 3), np.uint8)


@pytest.mark.parametrize("work", ["condition", "encode", "adapter_slots", "forward", "decode"])
def test_idle_tiles_make_room_for_whatever_a_row_needs(
    monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    crowded = Crowded(monkeypatch, work)
    row, image = _row(32)
    crowded.engine.add("a", row, image=image)
    result = run(crowded.engine)["a"]
    assert result.error is None
    assert result.pixels is not None
    assert crowded.model.decoded == [2]  # what failed was done again, and nothing else


@pytest.mark.parametrize("work", ["condition", "encode", "adapter_slots", "forward", "decode"])
def test_what_does_not_fit_alone_either_fails_as_such(
    monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    crowded = Crowded(monkeypatch, work, tiles=-1)
    row, image = _row(32)
    crowded.engine.add("a", row, image=image)
    assert isinstance(run(crowded.engine)["a"].error, OutOfMemory)
    assert crowded.engine.idle


def test_prompts_and_adapters_that_are_kept_make_room_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may take three GiB of a GPU."""
    model: Any = engine._model
    kept = model.conditioning._texts, model.conditioning._packed, model._adapters
    case = adapted(engine, Case(row_of(engine.checkpoint)), (random_file(Random(0), engine), 1.0))
    expected = draw(engine, Case(row_of(engine.checkpoint)), case)
    assert all(len(cache) for cache in kept)
    decode = model.decode

    def crowded(*args: Any, **named: Any) -> Any:
        if any(cache.held for cache in kept):
            raise torch.OutOfMemoryError
        return decode(*args, **named)

    monkeypatch.setattr(model, "decode", crowded)
    found = draw(engine, Case(row_of(engine.checkpoint)), case)
    for one, other in zip(expected, found, strict=True):
        assert other.error is None
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_tile_that_was_given_up_is_made_again_with_its_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else all rows of the checkpoint's own size would be slow from then on."""
    monkeypatch.setattr(Device, "capture", lambda device, function: function)
    monkeypatch.setattr(StubModel, "device", Device("cpu"))
    StubModel.device.graphs = True
    crowded = Crowded(monkeypatch, "decode")
    assert all(tile.captured for tile in crowded.engine._tiles)
    for side in (32, 16):
        row, image = _row(side)
        crowded.engine.add(side, row, image=image)
        assert run(crowded.engine)[side].error is None
    row, image = _row(16)
    crowded.engine.add("again", row, image=image)
    while not (tiles := crowded.engine._tiles.live):
        crowded.engine.step()
    assert [tile.captured for tile in tiles] == [True]


def test_a_checkpoint_that_does_not_fit_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(AmusedModel, "load", full)
    with pytest.raises(OutOfMemory, match="does not fit into the memory of CPU"):
        Engine.load(checkpoint)


def test_a_decoder_that_does_not_fit_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")

    monkeypatch.setattr(StubModel, "capture", full)
    with pytest.raises(OutOfMemory, match="a tile of 32 guided rows does not fit"):
        Engine(StubModel(by_row=False), tile=32)
