"""Each Triton kernel beside the plain torch that it replaces."""

import pytest
import torch
from needs import needs_kernels
from torch import nn

from farm_workers.engine import kernels
from farm_workers.engine.model import Layout, RMSNorm
from farm_workers.engine.philox import race_words

pytestmark = needs_kernels

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
    from farm_workers.engine import triton_kernels

    torch.manual_seed(0)
    tokens, channels = 5, 96
    norm: nn.Module = nn.LayerNorm(channels, 1e-6) if centre else RMSNorm(channels, 1e-6)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    norm.to(device, dtype)
    x = torch.randn(*rows, tokens, channels, device=device, dtype=dtype)
    delta = torch.randn_like(x) if moved else None
    layout = Layout.of(iter([(1, channels), (7,), (1, channels)]))
    packed = torch.randn(*rows, layout.size, device=device, dtype=dtype)
    scale, _, shift = layout.views(packed) if modulated else (None, None, None)
    stream = x.clone()
    found = triton_kernels.add_norm(stream, delta, norm, scale, shift)
    summed = x if delta is None else x + delta
    expected = norm(summed)
    if scale is not None and shift is not None:
        expected = kernels.modulate(expected, scale, shift)
    torch.testing.assert_close(stream, summed)
    torch.testing.assert_close(found, expected, **_tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_geglu(device: str, dtype: torch.dtype) -> None:
    from farm_workers.engine import triton_kernels

    torch.manual_seed(0)
    x = torch.randn(2, 2, 7, 2 * 88, device=device, dtype=dtype)
    value, gate = x.chunk(2, dim=-1)
    expected = value * nn.functional.gelu(gate)
    torch.testing.assert_close(triton_kernels.geglu(x), expected, **_tolerance(dtype))


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("codes", [300, 2048, 8192])
def test_sampling_draws_what_plain_torch_draws(device: str, halves: int, codes: int) -> None:
    from farm_workers.engine import triton_kernels

    torch.manual_seed(codes)
    rows, tokens = 2, 9
    logits = 2 * torch.randn(rows, halves, tokens, codes, device=device)
    unknown = torch.rand(rows, tokens, device=device) < 0.7
    scale = torch.tensor([4.0, 1.5], device=device)
    seeds = torch.tensor([7, -(2**62) - 3], device=device)
    steps = torch.tensor([0, 11], device=device)
    arguments = (logits, unknown, scale, seeds, steps)
    codes_found, chosen = triton_kernels.sample(*arguments)
    expected, probability = kernels.sample(*(part.cpu() for part in arguments))
    assert torch.equal(codes_found.cpu(), expected)
    torch.testing.assert_close(chosen.cpu(), probability, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_seen(device: str, value: float) -> None:
    from farm_workers.engine import triton_kernels

    logits = torch.zeros(1, 1, 4, 64, device=device)
    logits[0, 0, 2, 5] = value
    unknown = torch.ones(1, 4, dtype=torch.bool, device=device)
    one = torch.ones(1, device=device)
    codes, chosen = triton_kernels.sample(logits, unknown, one, one.long(), one.long())
    assert torch.isfinite(chosen[0]).tolist() == [True, True, False, True]
    assert bool(((codes >= 0) & (codes < 64)).all())


def test_the_integers_are_the_same_on_every_device(device: str) -> None:
    tokens = torch.tensor([0, 3, 4095])
    steps, seeds = torch.tensor([0, 999, 5]), torch.tensor([1, -7, 2**62])
    expected = race_words(seeds, tokens, steps, 515)
    found = race_words(seeds.to(device), tokens.to(device), steps.to(device), 515)
    assert torch.equal(found.cpu(), expected)
