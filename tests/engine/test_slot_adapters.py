"""Adapters in a tile of fixed shape, the way of a GPU, on a CPU."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import MakeCheckpoint, row_of
from torch import Tensor

from farm.formats.adapter_file import AdapterLayer
from farm_workers.engine import Engine
from farm_workers.engine.amused.adapters import Adapter, LowRank, Scaled, SlotAdapters
from farm_workers.engine.row import Live, Pending, start
from farm_workers.engine.tile import FixedTile

CPU = torch.device("cpu")
QUERY = "transformer_layers.0.attn1.to_q"
KEY = "transformer_layers.0.attn1.to_k"
VALUE = "transformer_layers.0.attn1.to_v"


class Pass:
    """One forward pass of some half-slots, always of the same tokens and prompts."""

    def __init__(self, engine: Engine, rows: int = 2) -> None:
        self.model: Any = engine._model
        noise = torch.Generator().manual_seed(6)
        self._tokens = torch.randint(0, 900, (rows, 16), generator=noise)
        self._packed = torch.randn(rows, 1, self.model.conditioning_size, generator=noise)
        self.slots = SlotAdapters(rows, CPU, torch.float32, self.model.transformer.step_layers())

    def adapter(self, ranks: dict[str, int], *, up: float | None = None) -> list[Scaled]:
        """Of those layers, random; or with one number throughout."""
        noise, layers = torch.Generator().manual_seed(len(ranks)), {}
        for name, rank in ranks.items():
            inputs, outputs = self.model.adapter_targets[f"transformer.{name}"]
            down = torch.randn(rank, inputs, generator=noise) / inputs**0.5
            told = AdapterLayer(f"transformer.{name}", rank, rank, rank, "", "")
            columns = torch.randn(outputs, rank, generator=noise)
            if up is not None:
                columns = torch.full_like(columns, up)
            layers[name] = LowRank(down, columns, told)
        return [Scaled(Adapter(layers, {}), 1.0)]

    def put(self, slot: int, adapters: list[Scaled]) -> None:
        self.slots.reserve(adapters)
        self.slots[slot] = adapters

    @torch.inference_mode()
    def features(self, rows: Any = None) -> Tensor:
        """By the slots, or of the rows' adapters by PEFT's arithmetic."""
        given, adapters = self.model.bind(self._packed), self.slots if rows is None else rows
        return self.model.forward(self._tokens, given, (4, 4), adapters)  # type: ignore[no-any-return]


class Asked:
    """Adapters that add nothing, and know which layers have asked for them."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def add(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        self.names.add(name)
        return y


class TwoRows(FixedTile):
    """Of two guided rows, on a CPU."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self._info = engine._model, engine.checkpoint
        layers = self.model.transformer.step_layers()
        make = partial(SlotAdapters, device=CPU, dtype=torch.float32, layers=layers)
        monkeypatch.setattr(self.model, "adapter_slots", make)
        grid = self._info.grid(64, 64)
        super().__init__(self.model, grid, width=2, urgent=False, on_host=True)

    @torch.inference_mode()
    def admit(self, adapters: Sequence[Scaled] = ()) -> Live:
        pending = Pending(0, row_of(self._info), False, None, None, None, None)
        live = start(pending, self._info, None, "cosine")
        halves = self.model.condition(pending)
        self.enter(live, [half._replace(adapters=adapters) for half in halves])
        return live

    @torch.inference_mode()
    def advance(self) -> None:
        self.step()


@pytest.fixture
def one_pass(engine: Engine) -> Pass:
    return Pass(engine)


@pytest.mark.parametrize("overflown", [float("inf"), float("nan")])
def test_an_adapter_that_overflowed_leaves_nothing_in_its_half_slot(
    one_pass: Pass, overflown: float
) -> None:
    good, base = one_pass.adapter({QUERY: 4, KEY: 4}), one_pass.features([(), ()])
    one_pass.put(0, one_pass.adapter({QUERY: 16, VALUE: 4}, up=overflown))
    one_pass.put(1, good)
    assert not one_pass.features()[0].isfinite().any()
    one_pass.slots[0] = ()
    assert torch.equal(one_pass.features()[0], base[0])
    one_pass.put(0, good)  # of a lower rank and of other layers
    expected = one_pass.features([good, good])
    torch.testing.assert_close(one_pass.features(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("after", [0, 1])
def test_a_row_whose_adapters_do_not_get_in_leaves_nothing_in_the_tile(
    engine: Engine, one_pass: Pass, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """In its first half-slot, or in its second one."""
    tile, copy, calls = TwoRows(engine, monkeypatch), torch._foreach_copy_, itertools.count()

    def copied(targets: list[Tensor], sources: list[Tensor]) -> None:
        copy(targets[:1], sources[:1])
        if next(calls) == after:
            raise torch.OutOfMemoryError
        copy(targets, sources)

    adapters = one_pass.adapter({QUERY: 4, KEY: 4})
    monkeypatch.setattr(torch, "_foreach_copy_", copied)
    with pytest.raises(torch.OutOfMemoryError):
        tile.admit(adapters)
    assert (tile.rows, tile.room, tile.adapters.shape) == ([], 4, None)
    assert not any(part.any() for steps in tile.adapters._buffers.values() for part in steps[0])
    assert not (tile.state.tokens == engine.checkpoint.mask_token_id).any()


def test_buffers_that_do_not_fit_leave_none_behind(
    one_pass: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an adapter of these layers finds no buffer, and a graph is taken for another one's."""
    small, large = one_pass.adapter({VALUE: 4}), one_pass.adapter({QUERY: 40, KEY: 4, VALUE: 4})
    other = one_pass.adapter({KEY: 8})
    one_pass.put(0, small)
    before, empty, calls = one_pass.slots.shape, one_pass.slots._empty, itertools.count()

    def full(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        if next(calls) == 1:
            raise torch.OutOfMemoryError
        return empty(inputs, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(one_pass.slots, "_empty", full)
        with pytest.raises(torch.OutOfMemoryError):
            one_pass.slots.reserve(large)
    assert one_pass.slots.shape == before
    one_pass.put(1, other)
    assert one_pass.slots.shape != before
    expected = one_pass.features([small, other])
    torch.testing.assert_close(one_pass.features(), expected, rtol=1e-4, atol=1e-4)


def test_one_layer_of_high_rank_takes_buffers_for_itself_alone(one_pass: Pass) -> None:
    rows = [one_pass.adapter({QUERY: 4, KEY: 17, VALUE: 4}), one_pass.adapter({QUERY: 60})]
    both = [*rows[0], *rows[1]]
    one_pass.put(0, rows[0])
    one_pass.put(1, rows[1])
    assert {name: len(steps) for name, steps in one_pass.slots._buffers.items()} == {
        QUERY: 4, KEY: 2, VALUE: 1,
    }  # fmt: skip
    expected = one_pass.features(rows)
    torch.testing.assert_close(one_pass.features(), expected, rtol=1e-4, atol=1e-4)
    one_pass.put(0, both)
    assert len(one_pass.slots._buffers[QUERY]) == 5
    expected = one_pass.features([both, rows[1]])
    torch.testing.assert_close(one_pass.features(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", [{}, {"block_out_channels": 64, "downsample": True}])
@torch.inference_mode()
def test_the_layers_of_a_pass_are_those_that_ask_for_adapters(
    make_checkpoint: MakeCheckpoint, made: dict[str, Any]
) -> None:
    model: Any = Engine.load(make_checkpoint(num_hidden_layers=1, **made), threads=1)._model
    stepped, prompt = Asked(), Asked()
    given = model.bind(torch.zeros(1, 1, model.conditioning_size))
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    model.transformer.features(tokens, replace(given, adapters=stepped), (4, 4))
    config = model.transformer.config
    text = torch.zeros(1, model.info.text_tokens, config["encoder_hidden_size"])
    pooled = torch.zeros(1, config["cond_embed_dim"])
    steps = torch.zeros(1, config["micro_cond_embed_dim"])
    model.transformer.condition(text, pooled, steps, prompt)
    assert stepped.names == model.transformer.step_layers()
    transformer = {name for name in model.adapter_targets if name.startswith("transformer.")}
    assert {f"transformer.{name}" for name in stepped.names | prompt.names} == transformer
    assert not stepped.names & prompt.names


def test_what_only_the_prompt_s_layers_add_takes_nothing_in_a_step(one_pass: Pass) -> None:
    base = one_pass.features()
    one_pass.put(0, one_pass.adapter({"transformer_layers.0.attn2.to_k": 4, "encoder_proj": 4}))
    assert one_pass.slots.shape is None
    assert not one_pass.slots._buffers
    assert torch.equal(one_pass.features(), base)


def test_a_pass_with_adapters_that_cannot_be_recorded_is_run_as_it_is(
    engine: Engine, one_pass: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile, tried = TwoRows(engine, monkeypatch), itertools.count()

    def graphed(_: object) -> None:
        next(tried)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(tile.model.device, "graphed", graphed)
    tile.capture()
    tile.admit()
    tile.admit(one_pass.adapter({QUERY: 4}))
    for _ in range(2):
        tile.advance()
    assert [(live.steps_done, live.error) for live in tile.rows] == [(2, None)] * 2
    assert next(tried) == 1
    one, other = (tile.state.tokens[live.slots[0]] for live in tile.rows)
    assert not torch.equal(one, other)


@torch.inference_mode()
def test_only_the_last_graphs_of_passes_with_adapters_are_kept(
    engine: Engine, one_pass: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters of ever higher ranks, and one that comes back."""
    tile, seen = TwoRows(engine, monkeypatch), []
    tile.capture()
    for rank in (*range(8, 160, 16), 8, 24):
        live = tile.admit(one_pass.adapter({QUERY: rank}))
        tile.advance()
        assert live.error is None
        tile.leave(live)
        seen.append(len(tile._adapted))
    assert seen[:4] == [1, 2, 3, 4]
    assert set(seen[4:]) == {4}
