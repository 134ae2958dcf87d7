"""One row's trouble stays its own."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import ASSET, Case, Embeds, draw, row_of, run

from farm.errors import InvalidInput, OutOfMemory, RenderError
from farm_workers.engine import Engine
from farm_workers.engine import engine as engine_module
from farm_workers.engine import tile as tile_module
from farm_workers.engine.device import Download
from farm_workers.engine.rng import FarmDraws
from farm_workers.engine.row import Pending, Result, row_error


def _poisoned(engine: Engine, value: float) -> Case:
    info = engine.checkpoint
    hidden = np.zeros((1, info.text_tokens, info.hidden_dim), np.float32)
    hidden[0, 3, 2] = value
    pooled = np.zeros((1, info.pooled_dim), np.float32)
    row = row_of(info, prompt=None, embeds=f"{int(value != value):064x}", guidance_scale=1)
    return Case(row, {"embeds": Embeds(pooled, hidden, None, None)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_with_scores_that_are_not_finite_fails_alone(engine: Engine, value: float) -> None:
    info = engine.checkpoint
    good = [Case(row_of(info, seed=seed, guidance_scale=1)) for seed in range(3)]
    expected = draw(engine, *good)
    found = draw(engine, good[0], _poisoned(engine, value), *good[1:])
    assert isinstance(found[1].error, RenderError)
    assert found[1].tokens is None
    assert found[1].pixels is None
    for one, other in zip(expected, [found[0], *found[2:]], strict=True):
        assert other.error is None
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_a_cancelled_row_never_comes_out(engine: Engine) -> None:
    info = engine.checkpoint
    for key in range(4):
        engine.add(key, row_of(info, seed=key))
    for _ in range(7):
        assert not engine.step()
    engine.cancel([1, 3])
    assert engine.held == 2
    assert set(run(engine)) == {0, 2}


def test_cancelling_works_in_every_stage(engine: Engine) -> None:
    for steps in range(0, 40, 3):
        engine.add("gone", row_of(engine.checkpoint, num_inference_steps=6))
        for _ in range(steps):
            if engine.step():
                break
        engine.cancel(["gone"])
        assert engine.idle


def test_a_call_that_does_not_fit_the_spec_is_refused(engine: Engine) -> None:
    info = engine.checkpoint
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    wrong: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"image": ASSET, "mode": "img2img"}, {}, "image"),
        ({}, {"image": image}, "image"),
        ({"image": ASSET, "mask_image": ASSET}, {"image": image}, "mask"),
        ({"image": ASSET, "mode": "img2img"}, {"image": image[:32]}, "image"),
        ({"image": ASSET, "mask_image": ASSET}, {"image": image, "mask": mask[:8]}, "mask"),
        ({"latents": ASSET}, {"latents": np.zeros((4, 4), int)}, "latents"),
        ({"latents": ASSET}, {}, "latents"),
        ({"latents": ASSET}, {"latents": np.full((8, 8), info.codebook_size)}, "latents"),
        ({"latents": ASSET}, {"latents": np.full((8, 8), -1)}, "latents"),
        (
            {"embeds": ASSET, "prompt": None},
            {"embeds": Embeds(np.zeros((1, 3)), np.zeros((1, 77, 64)), None, None)},
            "embeds",
        ),
        ({"embeds": ASSET, "prompt": None}, {}, "embeds"),
    ]
    for request, inputs, field in wrong:
        with pytest.raises(InvalidInput) as refused:
            engine.add(0, row_of(info, **request), **inputs)
        assert refused.value.field == field
    other = row_of(info.model_copy(update={"revision": "another"}))
    with pytest.raises(InvalidInput, match="another"):
        engine.add(0, other)
    assert engine.idle


def test_tokens_that_are_not_a_picture_s_are_not_decoded(engine: Engine) -> None:
    codes = engine.checkpoint.codebook_size
    for tokens, told in (
        (np.full((8, 8), codes, np.uint16), f"has the token {codes}"),
        (np.full((8, 8), -1), "has the token -1"),
        (np.zeros((1, 1, 8, 8), np.uint16), "has the shape"),
        (np.zeros((0, 8, 8), np.uint16), "has the shape"),
        (np.zeros((0, 8), np.uint16), "has the shape"),
    ):
        with pytest.raises(InvalidInput, match=told):
            engine.decode(tokens)


def test_pictures_that_are_decoded_together_are_those_that_were_drawn(engine: Engine) -> None:
    rows = [row_of(engine.checkpoint, num_inference_steps=1, prompt=text) for text in "abc"]
    drawn = draw(engine, *map(Case, rows))
    tokens = [done.tokens for done in drawn if done.tokens is not None]
    pixels = engine.decode(np.stack(tokens))
    for one, done in zip(pixels, drawn, strict=True):
        np.testing.assert_array_equal(one, done.pixels)


def test_a_prompt_that_is_cut_says_so(engine: Engine) -> None:
    info = engine.checkpoint
    cases = [Case(row_of(info, prompt=text, num_inference_steps=1)) for text in ("x", "x" * 90)]
    assert [done.truncated for done in draw(engine, *cases)] == [False, True]


def test_every_step_can_show_a_preview(engine: Engine) -> None:
    engine.add("a", row_of(engine.checkpoint, num_inference_steps=4))
    assert engine.preview("a", 0) is None  # not begun
    seen = []
    while not engine.idle:
        done = engine.step()
        preview = engine.preview("a", 0)
        if preview is not None:
            seen.append(preview)
            assert preview.pixels.shape == (64, 64, 3)
            assert 0 < preview.confidence <= 1
    assert [preview.step for preview in seen] == [1, 2, 3]
    assert done[0].steps == 4


def test_previews_change_no_bits(engine: Engine) -> None:
    check_previews_change_nothing(engine)


def check_previews_change_nothing(engine: Engine) -> None:
    rows = [row_of(engine.checkpoint, seed=seed, num_inference_steps=4) for seed in range(3)]
    expected = draw(engine, *map(Case, rows))
    for at, row in enumerate(rows):
        engine.add(at, row)
    found, seen = {}, 0
    while not engine.idle:
        found |= {done.key: done for done in engine.step()}
        seen += sum(engine.preview(at, 0) is not None for at in range(len(rows)))
    assert seen > len(rows)
    for at, one in enumerate(expected):
        np.testing.assert_array_equal(found[at].tokens, one.tokens)
        np.testing.assert_array_equal(found[at].pixels, one.pixels)


def test_copies_to_the_host_are_queued_within_the_engine_s_own_device(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another GPU's stream would say that they are there."""
    inside, queued = 0, []

    @contextlib.contextmanager
    def scope() -> Iterator[None]:
        nonlocal inside
        inside += 1
        yield
        inside -= 1

    def download(*tensors: torch.Tensor) -> Download:
        queued.append(inside)
        return Download(*tensors)

    monkeypatch.setattr(engine._model.device, "scope", scope)
    for module in (engine_module, tile_module):
        monkeypatch.setattr(module, "Download", download)
    done = draw(engine, Case(row_of(engine.checkpoint, num_inference_steps=2)))[0]
    assert done.tokens is not None
    np.testing.assert_array_equal(engine.decode(done.tokens), done.pixels)
    assert queued == [1, 1, 1]


def test_the_rows_of_a_render_are_pictures_of_their_own_seeds(engine: Engine) -> None:
    info = engine.checkpoint
    spec = row_of(info, num_images=3, seed=2**64 - 2).spec
    for row in spec.rows():
        engine.add(row.index, row)
    found = run(engine)
    single = draw(engine, Case(row_of(info, seed=0)))[0]
    np.testing.assert_array_equal(found[2].tokens, single.tokens)
    assert not np.array_equal(found[0].tokens, found[1].tokens)


def test_a_row_whose_tokens_are_all_fixed_early_goes_on_to_its_end(engine: Engine) -> None:
    """Equal confidences are fixed together, so a step may find nothing left to do."""
    engine.add("a", row_of(engine.checkpoint, num_inference_steps=4))
    engine.step()
    tile = engine._tiles.live[0]
    with torch.inference_mode():
        for slot in tile.rows[0].slots:
            tile.state.tokens[slot] = 5
    done = run(engine)["a"]
    assert done.steps == 4
    assert done.tokens is not None
    assert (done.tokens == 5).all()


def test_the_largest_grid_is_drawn(engine: Engine) -> None:
    case = Case(row_of(engine.checkpoint, height=512, width=512, num_inference_steps=1))
    done = draw(engine, case)[0]
    assert done.tokens is not None
    assert done.tokens.shape == (64, 64)
    assert done.pixels is not None
    assert done.pixels.shape == (512, 512, 3)


@pytest.mark.parametrize("rng", ["farm-1", "torch"])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_a_picture_of_one_token_is_drawn(engine: Engine, rng: str, steps: int) -> None:
    row = row_of(engine.checkpoint, height=8, width=8, num_inference_steps=steps, rng=rng)
    result = draw(engine, Case(row))[0]
    assert result.error is None
    assert result.tokens is not None
    assert result.tokens.shape == (1, 1)
    assert int(result.tokens[0, 0]) < engine.checkpoint.codebook_size


def test_a_row_that_enters_half_way_leaves_the_tile_and_has_one_result(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = engine.checkpoint
    first, last = (Case(row_of(info, seed=seed, num_inference_steps=4)) for seed in (1, 3))
    expected = draw(engine, first, last)
    engine.add(0, first.row)
    assert not engine.step()
    (tile,) = (one for one in engine._tiles if one.rows)
    with monkeypatch.context() as patch:
        patch.setattr(tile.sampler, "enter", _out_of_memory)
        engine.add("unlucky", row_of(info, seed=2))
        results: list[Result] = []
        while not results:
            results = engine.step()
    assert [(done.key, type(done.error)) for done in results] == [("unlucky", OutOfMemory)]
    assert len(tile.rows) == engine.held == 1
    engine.add(1, last.row)
    found = run(engine)
    for key, done in enumerate(expected):
        np.testing.assert_array_equal(found.pop(key).tokens, done.tokens)
    assert not found


def _out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:40] or "MemoryError",
)
def test_whoever_says_that_memory_is_short_the_row_may_be_tried_again(error: Exception) -> None:
    assert isinstance(row_error(error), OutOfMemory)


def test_what_a_cpu_cannot_allocate_may_be_tried_again() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 55)
    assert isinstance(row_error(refused.value), OutOfMemory)


def test_a_device_that_has_failed_fails_every_row() -> None:
    failed = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        row_error(failed)


BROKEN: dict[str, Callable[[Engine], tuple[Any, str]]] = {
    "prompt": lambda engine: (engine._model, "condition"),
    "start": lambda engine: (engine_module, "start"),
    "forward": lambda engine: (engine._model, "forward"),
    "numbers": lambda engine: (FarmDraws, "race"),
    "decode": lambda engine: (engine._model, "decode"),
}


@pytest.mark.parametrize("where", BROKEN)
def test_whatever_one_row_raises_fails_that_row_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The row of seed 13 cannot be computed, in one place or another."""
    info = engine.checkpoint
    known = np.random.default_rng(0).integers(0, 100, (8, 8))
    known[:, ::2] = info.mask_token_id
    cases = [
        Case(
            row_of(info, seed=seed, latents=ASSET), {"latents": known + (seed == 13) * (known < 50)}
        )
        for seed in (3, 13, 5)
    ]
    expected = draw(engine, *cases)
    owner, name = BROKEN[where](engine)
    given = getattr(owner, name)
    marks = expected[1].tokens[:, 1::2].flatten()  # type: ignore[index]

    def concerned(first: Any) -> bool:
        if isinstance(first, Pending):
            return first.row.seed == 13
        if isinstance(first, FarmDraws):
            return int(first.seed) == 13
        kept = first.unflatten(-1, (8, 8))[:, :, 1::2].flatten(1).numpy()
        return bool((kept == marks).all(1).any())

    def broken(first: Any, *rest: Any, **named: Any) -> Any:
        if concerned(first):
            raise ZeroDivisionError("one row")
        return given(first, *rest, **named)

    monkeypatch.setattr(owner, name, broken)
    found = draw(engine, *cases)
    assert isinstance(found[1].error, RenderError)
    assert "ZeroDivisionError" in str(found[1].error)
    for place in (0, 2):
        assert found[place].error is None
        np.testing.assert_array_equal(found[place].tokens, expected[place].tokens)
    assert engine.idle
