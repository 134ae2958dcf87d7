"""Where the farm departs from the pipelines on purpose: upstream's behaviour, then ours."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from cases import ASSET, Case, draw, random_case, row_of, run
from diffusers import AmusedScheduler
from oracle import Oracle
from PIL import Image

from farm.spec import Mode
from farm_workers.engine import Engine
from farm_workers.engine.sampler import choose, stay_masked


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


def _image(seed: int = 0, side: int = 64) -> Any:
    blocks = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))


def _encoded(oracle: Oracle, image: Any) -> Any:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255.0
    with torch.no_grad():
        latents = oracle.parts["vqvae"].encode(pixels).latents
        return oracle.parts["vqvae"].quantize(latents)[2][2].reshape(8, 8).numpy()


def test_strength_one_masks_nothing_upstream_and_everything_here(
    engine: Engine, oracle: Oracle
) -> None:
    image = _image()
    row = row_of(engine.checkpoint, image=ASSET, mode="img2img", strength=1.0, rng="torch")
    noisy: list[Any] = []
    pipeline = oracle.pipeline(Mode.IMG2IMG)
    add_noise = pipeline.scheduler.add_noise
    pipeline.scheduler.add_noise = lambda *given, **named: (
        noisy.append(add_noise(*given, **named)) or noisy[-1]
    )
    pipeline("x", Image.fromarray(image), strength=1.0, num_inference_steps=2)
    assert not (noisy[0] == engine.checkpoint.mask_token_id).any()
    engine.add(0, row, image)
    engine.step()  # admission
    tile = next(tile for tile in engine._tiles if tile.rows)
    assert tile.rows[0].painted.all()
    assert run(engine)[0].steps == 12


def test_a_batch_shares_one_mask_ratio_upstream_and_not_here(
    engine: Engine, oracle: Oracle
) -> None:
    small, whole = np.zeros((64, 64), np.uint8), np.full((64, 64), 255, np.uint8)
    small[:16, :16] = 255
    ratios = []
    pipeline = oracle.pipeline(Mode.INPAINT)
    step = pipeline.scheduler.step
    pipeline.scheduler.step = lambda **named: (
        ratios.append(float(named["starting_mask_ratio"])) or step(**named)
    )
    images = [Image.fromarray(_image())] * 2
    masks = [Image.fromarray(small), Image.fromarray(whole)]
    pipeline(["x", "x"], images, masks, num_inference_steps=2)
    assert ratios == pytest.approx([(4 / 64 + 1) / 2] * 2)
    rows = [
        Case(
            row_of(engine.checkpoint, image=ASSET, mask_image=ASSET, mode="inpaint", rng="torch"),
            {"image": _image(), "mask": mask},
        )
        for mask in (small, whole)
    ]
    for case, done in zip(rows, draw(engine, *rows), strict=True):
        np.testing.assert_array_equal(done.tokens, oracle.tokens(case.row, **case.inputs))


def test_neighbours_change_a_picture_upstream_and_not_here(engine: Engine, oracle: Oracle) -> None:
    pipeline = oracle.pipeline(Mode.TEXT2IMG)
    named: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
    single = pipeline("x", generator=torch.Generator().manual_seed(3), **named).images
    pair = pipeline(["x", "y"], generator=torch.Generator().manual_seed(3), **named).images
    assert not torch.equal(single[0], pair[0])
    with pytest.raises((TypeError, ValueError, AttributeError)):
        pipeline(["x", "y"], generator=[torch.Generator(), torch.Generator()], **named)
    cases = [
        Case(row_of(engine.checkpoint, prompt=prompt, seed=3, num_inference_steps=4))
        for prompt in ("x", "y")
    ]
    alone, together = draw(engine, cases[0])[0], draw(engine, *cases)[0]
    np.testing.assert_array_equal(alone.tokens, together.tokens)


def test_an_empty_mask_rewrites_a_token_upstream_and_none_here(
    engine: Engine, oracle: Oracle
) -> None:
    image, empty = _image(4), np.zeros((64, 64), np.uint8)
    changed = 0
    for seed in range(4):
        row = row_of(
            engine.checkpoint, image=ASSET, mask_image=ASSET, seed=seed, mode="inpaint", rng="torch"
        )
        changed += int(
            (oracle.tokens(row, image=image, mask=empty) != _encoded(oracle, image)).sum()
        )
        done = draw(engine, Case(row, {"image": image, "mask": empty}))[0]
        np.testing.assert_array_equal(done.tokens, _encoded(oracle, image))
        assert done.steps == 0
        assert done.confidence == 1.0
    assert changed > 0


def test_a_high_temperature_masks_kept_tokens_again_upstream_and_not_here(
    engine: Engine, oracle: Oracle
) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :56] = 255  # 56 of 64 tokens: the schedule wants most of them masked for long
    image = _image(2)
    kept = np.zeros((8, 8), bool)
    kept[:, 7] = True
    original = _encoded(oracle, image)[kept]
    rewritten = 0
    for seed in range(6):
        row = row_of(
            engine.checkpoint,
            image=ASSET,
            mask_image=ASSET,
            mode="inpaint",
            seed=seed,
            temperature=100,
            rng="torch",
        )
        upstream = oracle.tokens(row, image=image, mask=mask)
        rewritten += int((upstream[kept] != original).sum())
        done = draw(engine, Case(row, {"image": image, "mask": mask}))[0]
        assert done.tokens is not None
        np.testing.assert_array_equal(done.tokens[kept], original)
    assert rewritten > 0


def test_half_precision_masks_kept_tokens_again_upstream_and_not_here() -> None:
    """A uniform that rounds to 0 there has noise of -inf; here confidence is float32 throughout."""
    codes, side, seeds = 32, 64, range(10)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(1, codes, side, side, generator=random).half()
    unknown = torch.rand(1, side, side, generator=random) < 0.25
    tokens = torch.randint(codes, (1, side, side), generator=random).where(~unknown, codes)
    scheduler = AmusedScheduler(mask_token_id=codes, masking_schedule="linear")
    scheduler.set_timesteps(4)
    share = float(unknown.float().mean())
    planned = int(side * side * share * 0.75)

    def upstream(logits: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        step = scheduler.step(logits, 3, tokens, share, generator)
        return step.prev_sample.flatten(1) == codes

    kept = ~unknown.flatten(1)
    assert sum(int((upstream(logits, seed) & kept).sum()) for seed in seeds) > 0
    assert not any((upstream(logits.float(), seed) & kept).any() for seed in seeds)
    scores, zeros = logits.flatten(2)[0].T, 0
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        race = torch.empty(scores.shape).exponential_(generator=generator)
        uniform = torch.zeros_like(tokens, dtype=torch.half).uniform_(generator=generator)
        zeros += int((uniform == 0).sum())
        stay = stay_masked(
            choose(scores, race)[1][None],
            ~kept,
            uniform.flatten(1).float(),
            scheduler.temperatures[0],
            torch.tensor([[planned]]),
        )
        assert not (stay & kept).any()
        assert int(stay.sum()) == planned
    assert zeros > 0  # what upstream stumbles over was among the numbers


def test_a_mask_token_outside_the_multiple_is_rounded_down_upstream_and_not_here(
    engine: Engine, oracle: Oracle
) -> None:
    image, mask = _image(3, 72), np.full((72, 72), 255, np.uint8)
    row = row_of(
        engine.checkpoint,
        image=ASSET,
        mask_image=ASSET,
        mode="inpaint",
        height=72,
        width=72,
    )
    with pytest.raises(RuntimeError):  # a mask of 8 x 8 tokens for a picture of 9 x 9
        oracle.tokens(row, image=image, mask=mask)
    done = draw(engine, Case(row, {"image": image, "mask": mask}))[0]
    assert done.error is None
    assert done.tokens is not None
    assert done.tokens.shape == (9, 9)


def test_the_inpaint_pipeline_changes_a_shared_scheduler_and_modes_here_share_none(
    engine: Engine, oracle: Oracle
) -> None:
    pipeline = oracle.pipeline(Mode.TEXT2IMG)
    scheduler = pipeline.scheduler
    assert isinstance(scheduler, AmusedScheduler)
    inpaint = oracle.pipeline(Mode.INPAINT)
    type(inpaint)(scheduler=scheduler, **oracle.parts)
    assert scheduler.config.masking_schedule == "linear"
    random = Random(9)
    modes = ["inpaint", "text2img", "img2img", "inpaint"]
    cases = [random_case(random, engine.checkpoint, rng="torch", mode=mode) for mode in modes]
    for case, done in zip(cases, draw(engine, *cases), strict=True):
        np.testing.assert_array_equal(done.tokens, oracle.tokens(case.row, **case.inputs))


def test_one_row_with_nan_fails_a_batch_upstream_and_only_itself_here(
    engine: Engine, oracle: Oracle
) -> None:
    # Ours: test_isolation. Upstream's sampler refuses the whole batch.
    scheduler = oracle.pipeline(Mode.TEXT2IMG).scheduler
    scheduler.set_timesteps(4)
    logits = torch.zeros(2, 1024, 8, 8)
    logits[1] = torch.nan
    tokens = torch.full((2, 8, 8), engine.checkpoint.mask_token_id)
    with pytest.raises(RuntimeError):
        scheduler.step(logits, 3, tokens)


def test_inpainting_changes_pixels_outside_the_mask_upstream_and_none_here(
    engine: Engine, oracle: Oracle
) -> None:
    """Upstream decodes the new tokens, whose norms shift every pixel; here the rest is put back."""
    image, mask = _image(5), np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    outside = mask == 0
    row = row_of(
        engine.checkpoint, image=ASSET, mask_image=ASSET, seed=3, mode="inpaint", rng="torch"
    )
    nothing = {"image": image, "mask": np.zeros_like(mask)}
    round_trip = draw(engine, Case(row, nothing))[0].pixels
    whole = oracle.pixels(row, image=image, mask=mask)
    done = draw(engine, Case(row, {"image": image, "mask": mask}))[0]
    assert done.pixels is not None
    assert round_trip is not None
    assert (whole != round_trip)[outside].any()
    np.testing.assert_array_equal(done.pixels[outside], round_trip[outside])
    np.testing.assert_array_equal(done.pixels[~outside], whole[~outside])
