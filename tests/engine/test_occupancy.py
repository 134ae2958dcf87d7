"""How full tiles are, and that what is computed is what was asked for."""

from collections.abc import Iterable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from cases import ASSET, row_of
from torch import Tensor

from farm.spec import CheckpointInfo, Row
from farm_workers.engine import Engine
from farm_workers.engine.device import Device
from farm_workers.engine.row import Conditioned, Pending
from farm_workers.engine.sampler import TorchSampler
from farm_workers.engine.tile import RowTile, Tile

PICTURES = 32  # for each row of a tile, so that its last steps weigh little
INFO = CheckpointInfo(
    id="stub",
    revision="0",
    pixel_factor=8,
    size_multiple=8,
    native_height=16,
    native_width=16,
    default_guidance=4,
    vocab_size=16,
    codebook_size=8,
    mask_token_id=15,
    text_tokens=77,
    pooled_dim=4,
    hidden_dim=4,
)


class Slots(list[Any]):
    """Of adapters, for a model that has none."""

    shape = None

    def reserve(self, adapters: Any) -> None:
        assert not adapters


class StubModel:
    """A model that does nothing, and counts what it is asked for."""

    info, device, dtype = INFO, Device("cpu"), torch.float32
    masking_schedule, conditioning_size = "cosine", 1

    def __init__(self, *, by_row: bool) -> None:
        self.by_row = by_row
        self.computed: list[int] = []  # halves of each forward pass
        self.decoded: list[int] = []  # pictures of each pass of the decoder
        self.alone: list[bool] = []  # of each row's prompts

    def condition(
        self, pending: Pending, ahead: Iterable[Pending] = (), *, alone: bool = False
    ) -> list[Conditioned]:
        self.alone.append(alone)
        return [Conditioned(half, torch.zeros(1), False) for half in range(pending.halves)]

    def read_adapter(self, data: bytes) -> None:
        """It has none."""

    def adapter_slots(self, halves: int) -> Slots:
        return Slots([()] * halves)

    def bind(self, packed: Tensor) -> Tensor:
        return packed

    def forward(
        self, tokens: Tensor, given: Tensor, grid: tuple[int, int], adapters: Any = ()
    ) -> Tensor:
        self.computed.append(given.shape[0] * given.shape[1])
        return torch.zeros(*given.shape[:2], tokens.shape[1], INFO.codebook_size)

    def logits(self, features: Tensor) -> Tensor:
        return features

    def encode(self, image: Any) -> Tensor:
        return torch.zeros(image.shape[0] * image.shape[1] // 64, dtype=torch.int64)

    def decode_width(self, grid: tuple[int, int], rows: int) -> int:
        return 1 if self.by_row else rows

    def decode(self, tokens: Tensor, grid: tuple[int, int], *, width: int) -> Tensor:
        self.decoded += [width] * -(-len(tokens) // width)
        return torch.zeros(len(tokens), grid[0] * 8, grid[1] * 8, 3, dtype=torch.uint8)

    def capture(self, grid: tuple[int, int], widths: Any) -> None:
        """Nothing to record."""

    def forget(self) -> None:
        """Nothing is kept."""

    def numerics(self, width: int) -> str:
        return f"stub, tile {width}"


@pytest.fixture(autouse=True)
def _torch_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles of fixed shape too: which kernel samples is not the question here."""
    monkeypatch.setattr("farm_workers.engine.triton_sampler.TritonSampler", TorchSampler)


def _mixed(random: Random, number: int) -> tuple[Row, dict[str, Any]]:
    """The bench's mixed work: three modes, 4 to 20 steps, guidance on and off."""
    request: dict[str, Any] = {
        "num_inference_steps": random.randint(4, 20),
        "guidance_scale": random.choice([0.0, 4.0, 10.0]),
        "seed": number,
    }
    inputs: dict[str, Any] = {}
    if number % 3:
        request |= {"image": ASSET, "strength": random.choice([0.4, 0.6, 0.9])}
        request["mode"] = "img2img"
        inputs["image"] = np.zeros((16, 16, 3), np.uint8)
    if number % 3 == 2:
        request |= {"mode": "inpaint", "mask_image": ASSET}
        inputs["mask"] = np.full((16, 16), 255, np.uint8)
    return row_of(INFO, **request), inputs


@pytest.mark.parametrize("width", [8, 64])
def test_mixed_pictures_keep_the_slots_busy(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, random = Engine(StubModel(by_row=False), tile=width), Random(0)
    busy: list[float] = []
    step = Tile.step
    monkeypatch.setattr(Tile, "step", lambda tile: busy.append(tile.busy / tile.size) or step(tile))
    waiting = [_mixed(random, number) for number in range(PICTURES * width)]
    found = 0
    while waiting or not engine.idle:
        while waiting and engine.room():
            row, inputs = waiting.pop()
            engine.add(row.spec.seed, row, **inputs)
        for result in engine.step():
            assert result.error is None
            found += 1
    assert found == PICTURES * width
    print(f"tile {width}: {sum(busy) / len(busy):.3f} of the slots in {len(busy)} steps")
    assert sum(busy) / len(busy) >= 0.95


def test_an_urgent_picture_costs_one_row_s_work_and_one_picture_s_decoding() -> None:
    model = StubModel(by_row=False)
    engine = Engine(model, tile=32)
    engine.add("a", row_of(INFO, num_inference_steps=7), urgent=True)
    while not engine.idle:
        engine.step()
    assert model.computed == [2] * 7
    assert model.decoded == [1]
    assert model.alone == [True]


def test_a_preview_decodes_one_picture() -> None:
    model = StubModel(by_row=False)
    engine = Engine(model, tile=32)
    engine.add("a", row_of(INFO))
    for _ in range(3):
        engine.step()
    assert engine.preview("a", 0) is not None
    assert model.decoded == [1]
    engine.cancel(["a"])
    assert engine.idle


def test_a_step_is_billed_by_what_it_computes() -> None:
    for by_row, halves in ((False, 8), (True, 3)):
        model = StubModel(by_row=by_row)
        engine = Engine(model, tile=4)
        for number, scale in enumerate((4, 0)):
            engine.add(number, row_of(INFO, guidance_scale=scale))
        while not (tiles := engine._tiles.live) or len(tiles[0].rows) < 2:
            engine.step()
        assert tiles[0].cost == halves * 4
        model.computed.clear()
        engine.step()
        assert sum(model.computed) == halves


def test_a_guided_row_is_not_overtaken_for_ever() -> None:
    engine = Engine(StubModel(by_row=True), tile=2, rows=64)
    for number in range(3):
        engine.add(number, row_of(INFO, guidance_scale=0, num_inference_steps=5 + 3 * number))
    engine.add("guided", row_of(INFO, guidance_scale=4, num_inference_steps=4))
    for number in range(3, 40):
        engine.add(number, row_of(INFO, guidance_scale=0, num_inference_steps=5 + number % 4))
    before: list[Any] = []
    while "guided" not in before:
        before += [result.key for result in engine.step()]
    assert len(before) < 20
    assert all(isinstance(tile, RowTile) for tile in engine._tiles)
