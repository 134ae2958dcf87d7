"""Each Triton kernel beside the plain torch that it replaces."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from needs import needs_kernels
from torch import nn

from farm.spec import MAX_STEPS
from farm_workers.bench.full_size import CONFIGURATIONS, configuration
from farm_workers.engine.amused import DECODED_TOKENS
from farm_workers.engine.amused.codec import Codec
from farm_workers.engine.amused.layers import GlobalResponseNorm, Ops, RMSNorm
from farm_workers.engine.amused.transformer import Layout, Transformer
from farm_workers.engine.amused.vq import VqModel
from farm_workers.engine.device import Device
from farm_workers.engine.rng import Stream, exponentials, uniforms
from farm_workers.engine.sampler import UNSEEN, State, choose, guide, stay_masked

pytest.importorskip("triton", reason="the kernels need Triton")
from triton.runtime import KernelInterface
from triton.runtime.interpreter import ReduceOps

from farm_workers.engine import triton_sampler
from farm_workers.engine.amused import kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def as_in_the_engine(device: str) -> Iterator[None]:
    """Without gradients, and in exact float32, also in the convolutions that are compared with."""
    with torch.inference_mode(), Device(device).scope():
        yield


SEED_LOW, SEED_HIGH, STEP, SCALE, PARTNER, ACTIVE, PLACE = range(7)
HEADER = triton_sampler.HEADER
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 3e-2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("rows", [(3, 2), (3, 1), (1, 2), (1, 1)])
def test_norm_residual_and_modulation(
    device: str,
    dtype: torch.dtype,
    centre: bool,
    modulated: bool,
    moved: bool,
    rows: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    tokens, channels = 5, 96
    norm: nn.Module = nn.LayerNorm(channels, 1e-6) if centre else RMSNorm(channels, 1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.to(device, dtype)
    x = torch.randn(*rows, tokens, channels, device=device, dtype=dtype)
    delta = torch.randn_like(x) if moved else None
    layout = Layout.of([("before", (1, 7)), ("norm", (1, 2 * channels))])
    packed = torch.randn(*rows, layout.size, device=device, dtype=dtype)
    given = layout.views(packed)
    scale, shift = given.pieces["norm"] if modulated else (None, None)
    stream = x.clone()
    found = kernels.add_norm(stream, delta, norm, scale, shift)
    summed = x if delta is None else x + delta
    expected = norm(summed)
    if scale is not None and shift is not None:
        expected = expected * scale + shift
    torch.testing.assert_close(stream, summed)
    torch.testing.assert_close(found, expected, **_tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_geglu(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 7, 2 * 88, device=device, dtype=dtype)
    value, gate = x.chunk(2, dim=-1)
    expected = value * nn.functional.gelu(gate)
    torch.testing.assert_close(kernels.geglu(x), expected, **_tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_convolution_and_norm(device: str, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    grid, channels = (3, 5), 24
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)
    norm = RMSNorm(channels, 1e-6)
    nn.init.normal_(norm.weight)
    conv.to(device, dtype)
    norm.to(device, dtype)
    x = torch.randn(2, 1, 15, channels, device=device, dtype=dtype)
    taps = conv.weight[:, 0].permute(1, 2, 0).flatten(0, 1).contiguous()
    found = kernels.mix_norm(x, grid, taps, conv.bias, norm)
    images = x[:, 0].unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
    expected = norm(conv(images).permute(0, 2, 3, 1).reshape(x.shape))
    torch.testing.assert_close(found, expected, **_tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 15, 40])
def test_gelu_and_global_response_norm(device: str, dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(0)
    norm = GlobalResponseNorm(72)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.to(device, dtype)
    x = torch.randn(3, 1, tokens, 72, device=device, dtype=dtype)
    expected = norm(F.gelu(x.float()).to(dtype))
    torch.testing.assert_close(kernels.response(x, norm), expected, **_tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [32, 96])
@pytest.mark.parametrize("biased", [False, True])
def test_group_norm_and_silu(device: str, dtype: torch.dtype, channels: int, biased: bool) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, channels, eps=1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.to(device, dtype)
    x = 3 + 2 * torch.randn(2, channels, 9, 21, device=device, dtype=dtype)
    bias = torch.randn(channels, device=device, dtype=dtype) if biased else None
    found = kernels.GroupNormSilu(norm)(x.to(memory_format=torch.channels_last), bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = F.silu(norm(x if bias is None else x + bias[:, None, None]))
    torch.testing.assert_close(found.contiguous(), expected, **_tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_convolution_s_bias_is_added_with_the_residual(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = (torch.randn(2, 96, 9, 21, device=device, dtype=dtype) for _ in range(2))
    bias = torch.randn(96, device=device, dtype=dtype)
    expected = x + bias[:, None, None] + residual
    found = kernels.add_bias(x.to(memory_format=torch.channels_last), bias, residual)
    torch.testing.assert_close(found.contiguous(), expected, **_tolerance(dtype))


def test_resampling_convolutions_as_products(device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 1, 4 * 6, 16, device=device)
    down = nn.Conv2d(16, 16, 2, 2, bias=True).to(device)
    up = nn.ConvTranspose2d(16, 16, 2, 2, bias=True).to(device)
    for name, conv in (("halve", down), ("double", up)):
        found = getattr(kernels.FusedOps, name)(x, (4, 6), conv)
        expected = getattr(Ops, name)(x, (4, 6), conv)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Tile:
    """What the sampler's kernels work on, for rows of one seed and step each."""

    def __init__(self, device: str, unknown: Any, **facts: list[int]) -> None:
        halves, seq_len = unknown.shape
        self.records = torch.zeros(halves, HEADER + 2 * MAX_STEPS, dtype=torch.int32)
        for place, (seed, step, partner, active) in enumerate(
            zip(facts["seeds"], facts["steps"], facts["partners"], facts["active"], strict=True)
        ):
            words = self.records[place]
            words[SEED_LOW] = (seed & 0xFFFFFFFF) - 2**32 * ((seed >> 31) & 1)
            words[SEED_HIGH] = seed >> 32
            words[STEP], words[PARTNER], words[ACTIVE] = step, partner, active
            words[PLACE] = facts["places"][place] if "places" in facts else place
            words.view(torch.float32)[SCALE] = 1.5 + place
        self.records = self.records.to(device)
        self.state = State.empty(halves, seq_len, torch.device(device))
        self.state.tokens.masked_fill_(unknown.to(device), MASK)


MASK = 9999


@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance_of_features(device: str, dtype: torch.dtype) -> None:
    """Two guided rows and one without guidance in scattered half-slots and places."""
    torch.manual_seed(0)
    features = torch.randn(6, 9, 72, device=device, dtype=dtype)
    unknown = torch.rand(6, 9) < 0.7
    tile = Tile(
        device,
        unknown,
        seeds=[0] * 6,
        steps=[0] * 6,
        partners=[3, 1, 4, 3, 4, 5],
        active=[1, 1, 1, 0, 0, 0],
        places=[2, 0, 4, 0, 0, 0],
    )
    found = triton_sampler.guide(features, 6, tile.records, tile.state, MASK)
    for slot, partner, place in ((0, 3, 2), (1, 1, 0), (2, 4, 4)):
        plain, prompted = features[slot].float(), features[partner].float()
        expected = guide(plain, prompted, 1.5 + slot).to(dtype)
        masked = unknown[slot].to(device)
        torch.testing.assert_close(found[place][masked], expected[masked], **_tolerance(dtype))


@pytest.mark.parametrize("codes", [300, 2048, 8192])
def test_sampling_draws_what_plain_torch_draws(device: str, codes: int) -> None:
    """Three rows in scattered half-slots, in two groups; two that are not there."""
    torch.manual_seed(codes)
    tokens, active, places = 9, [1, 0, 1, 1, 0], [1, 0, 3, 0, 2]
    seeds, steps = [7, 0, -(2**62) - 3, 2**31 + 5, 0], [0, 0, 11, 999, 0]
    logits = 2 * torch.randn(4, tokens, codes, device=device)
    unknown = torch.rand(5, tokens) < 0.7
    tile = Tile(
        device,
        unknown,
        seeds=seeds,
        steps=steps,
        partners=range(5),
        active=active,
        places=places,
    )
    for first in (0, 2):
        scores = logits[first : first + 2].contiguous()
        triton_sampler.draw(scores, first, tile.records, tile.state, MASK)
    for slot in (0, 2, 3):
        masked, seed = unknown[slot], seeds[slot] % 2**64
        race = exponentials(seed, masked.numpy().nonzero()[0], steps[slot], codes)
        expected, probability = choose(logits[places[slot]].cpu()[masked], race)
        assert torch.equal(tile.state.predicted[slot].cpu()[masked], expected)
        found = tile.state.probability[slot].cpu()
        torch.testing.assert_close(found[masked], probability, rtol=1e-4, atol=1e-6)
        assert bool((found[~masked] == UNSEEN).all())
    assert bool((tile.state.probability[[1, 4]] == UNSEEN).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_seen(device: str, value: float) -> None:
    logits = torch.zeros(1, 4, 64, device=device)
    logits[0, 2, 5] = value
    unknown = torch.ones(1, 4, dtype=torch.bool)
    tile = Tile(device, unknown, seeds=[1], steps=[1], partners=[0], active=[1])
    triton_sampler.draw(logits, 0, tile.records, tile.state, MASK)
    chosen, codes = tile.state.probability[0], tile.state.predicted[0]
    assert torch.isfinite(chosen).tolist() == [True, True, False, True]
    assert bool(((codes >= 0) & (codes < 64)).all())
    outcome = torch.zeros(1, 2, device=device)
    triton_sampler.settle(tile.records, tile.state, MASK, outcome)
    assert float(outcome[0, 1]) == 1.0


def test_a_code_that_is_chosen_among_nan_and_infinity_is_one_of_the_codes(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing with nan is false, so the largest of all is found where there is no score."""
    if device == "cpu":  # numpy would find the nan itself; a GPU compares two at a time
        reduce = ReduceOps.apply_impl
        monkeypatch.setattr(
            ReduceOps,
            "apply_impl",
            lambda ops, given: ops.generic_reduce(given) if len(given) == 2 else reduce(ops, given),
        )
    logits = torch.zeros(1, 1, 60, device=device)
    logits[0, 0, 3], logits[0, 0, 59] = float("inf"), float("nan")
    tile = Tile(device, torch.ones(1, 1).bool(), seeds=[1], steps=[1], partners=[0], active=[1])
    triton_sampler.draw(logits, 0, tile.records, tile.state, MASK)
    assert 0 <= int(tile.state.predicted[0, 0]) < 60
    assert not torch.isfinite(tile.state.probability[0, 0])


@pytest.mark.parametrize("seq_len", [1, 2, 60, 1024, 4096])
def test_the_cut_off_is_plain_torch_s(device: str, seq_len: int) -> None:
    torch.manual_seed(seq_len)
    planned = [0, 1, seq_len // 3, seq_len - 1, seq_len + 7, seq_len // 2]
    seeds, steps = [5, 6, 7, 8, 9, -3], [3, 0, 1, 2, 998, 7]
    temperature = [0.0, 2.0, 4.5, 0.3, 0.0, 100.0]
    unknown = torch.rand(6, seq_len) < torch.tensor([0.5, 1.0, 0.8, 1.0, 0.3, 0.6])[:, None]
    tile = Tile(device, unknown, seeds=seeds, steps=steps, partners=range(6), active=[1] * 6)
    for place in range(6):
        words = tile.records[place]
        words.view(torch.float32)[HEADER + steps[place]] = temperature[place]
        words[HEADER + MAX_STEPS + steps[place]] = planned[place]
    probability = torch.rand(6, seq_len)
    probability[0] = 0.25  # equally sure of all
    tile.state.probability.copy_(torch.where(unknown, probability, UNSEEN))
    tile.state.predicted.copy_(torch.where(unknown, 7, 0))
    outcome = torch.zeros(6, 2, device=device)
    triton_sampler.settle(tile.records, tile.state, MASK, outcome)
    uniform = torch.stack(
        [
            uniforms(seed % 2**64, step + 1, seq_len, Stream.ORDER)[step]
            for seed, step in zip(seeds, steps, strict=True)
        ]
    )
    stay = stay_masked(
        probability,
        unknown,
        uniform,
        torch.tensor(temperature)[:, None],
        torch.tensor(planned)[:, None],
    )
    tokens = tile.state.tokens.cpu()
    assert torch.equal(tokens == MASK, stay)
    assert bool((tokens[unknown & ~stay] == 7).all())
    assert bool((tokens[~unknown] == 0).all())
    assert tile.records[:, STEP].tolist() == [4, 1, 2, 3, 999, 8]
    for place in range(6):
        chosen = probability[place, unknown[place]]
        mean = float(chosen.mean()) if len(chosen) else 1.0
        assert float(outcome[place, 0]) == pytest.approx(mean, rel=1e-5)
        assert float(outcome[place, 1]) == 0.0


class Launches:
    """Stands in for a kernel: remembers what it is launched on, and launches nothing."""

    def __init__(self, name: str, seen: dict[str, set[tuple[int, ...]]]) -> None:
        self._seen = seen.setdefault(name, set())

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        self._seen.add(grid)
        return lambda *given, **how: None


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("grid", [(64, 64), (256, 16), (1, 4096)])
def test_the_largest_pictures_take_no_more_programs_than_a_gpu_starts(
    monkeypatch: pytest.MonkeyPatch, name: str, grid: tuple[int, int]
) -> None:
    """2^31 - 1 in the first dimension, 65,535 in the others; full-size models without numbers."""
    seen: dict[str, set[tuple[int, ...]]] = {}
    for module in (kernels, triton_sampler):
        for key, value in list(vars(module).items()):
            if isinstance(value, KernelInterface):
                monkeypatch.setattr(module, key, Launches(key, seen))
    convolved = F.conv2d

    def conv2d(*given: Any, **how: Any) -> torch.Tensor:
        """A GPU's keeps channels last; without a device it does not."""
        return convolved(*given, **how).to(memory_format=torch.channels_last)

    monkeypatch.setattr(F, "conv2d", conv2d)
    config, meta = configuration(name), torch.device("meta")
    with meta:
        vq, transformer = VqModel(config["vqvae"]), Transformer(config["transformer"], 77)
    codec = Codec(vq, Device(meta), torch.bfloat16, fused=True)
    width = DECODED_TOKENS // 4096
    tokens = torch.zeros(width, 4096, dtype=torch.int64, device=meta)
    factor = 2 ** (len(config["vqvae"]["block_out_channels"]) - 1)
    pixels = codec.decode(tokens, grid, width=width)
    assert pixels.shape == (width, factor * grid[0], factor * grid[1], 3)
    codec._encoded(torch.zeros(pixels.shape[1:], device=meta))
    if not config["transformer"]["downsample"] or grid[0] % 2 == 0:
        transformer.to(torch.bfloat16).ready(kernels.FusedOps())
        halves = 2 * 16  # of a tile that holds 64 rows of 1,024 tokens
        packed = torch.zeros(halves, 1, transformer.layout.size, dtype=torch.bfloat16, device=meta)
        ids = torch.zeros(halves, 4096, dtype=torch.int64, device=meta)
        features = transformer.features(ids, transformer.layout.views(packed), grid)
        assert features.shape[:3] == (halves, 1, 4096)
        assert "_response" in seen
    assert {"_group_sums", "_group_facts", "_group_norm", "_add_bias", "_weave"} <= seen.keys()
    for kernel, grids in seen.items():
        for first, *others in grids:
            assert first < 2**31, (kernel, first)
            assert all(count < 2**16 for count in others), (kernel, others)
