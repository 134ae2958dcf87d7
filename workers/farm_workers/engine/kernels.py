"""Elementwise work of a step: plain torch on a CPU, one Triton kernel each on a GPU."""

import importlib.util

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.philox import exponentials
from farm_workers.engine.sampler import choose, guide

HAVE_TRITON = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None

if HAVE_TRITON:
    from farm_workers.engine import triton_kernels


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """In float32 inside, with UVit2DModel's order of rounding."""
    variance = x.float().pow(2).mean(-1, keepdim=True)
    normed = x * torch.rsqrt(variance + eps)
    if weight is None:
        return normed.to(x.dtype)
    return normed.to(weight.dtype).mul_(weight)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (x * scale).add_(shift)


def add_norm(x: Tensor, delta: Tensor | None, norm: nn.Module) -> Tensor:
    """Add ``delta`` to the residual stream ``x``, in place, and return its norm."""
    if HAVE_TRITON and x.is_cuda:
        return triton_kernels.add_norm(x, delta, norm, None, None)
    normed: Tensor = norm(x if delta is None else x.add_(delta))
    return normed


def add_norm_modulate(
    x: Tensor, delta: Tensor | None, norm: nn.Module, scale: Tensor, shift: Tensor
) -> Tensor:
    """The same, then scaled and shifted as the prompt says."""
    if HAVE_TRITON and x.is_cuda:
        return triton_kernels.add_norm(x, delta, norm, scale, shift)
    return add_norm(x, delta, norm).mul_(scale).add_(shift)


def geglu(x: Tensor) -> Tensor:
    if HAVE_TRITON and x.is_cuda:
        return triton_kernels.geglu(x)
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def sample(
    logits: Tensor, unknown: Tensor, scale: Tensor, seeds: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes and probabilities of the masked tokens of a whole tile, guidance included.

    Args:
        logits: (rows, halves, tokens, codes).
        unknown: (rows, tokens); the others get code 0 and probability 1.
        scale, seeds, steps: of each row.
    """
    if HAVE_TRITON and logits.is_cuda:
        return triton_kernels.sample(logits, unknown, scale, seeds, steps)
    rows, halves, seq_len, codes = logits.shape
    tokens = torch.arange(seq_len, device=logits.device)
    drawn, chosen = [], []
    for row in range(rows):  # a whole tile's race would not fit into memory
        scores = logits[row, 0]
        if halves == 2:
            scores = guide(logits[row, 0], logits[row, 1], scale[row].to(logits.dtype))
        race = exponentials(
            seeds[row].expand_as(tokens), tokens, steps[row].expand_as(tokens), codes
        )
        code, probability = choose(scores, race)
        drawn.append(torch.where(unknown[row], code, 0))
        chosen.append(torch.where(unknown[row], probability, 1.0))
    return torch.stack(drawn), torch.stack(chosen)
