# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""The GPU's kernels: residual + norm + modulation, GEGLU, and guidance + softmax + sampling.

Block sizes follow from the shapes alone: nothing is tuned at run time, so that a shape always
runs the same code.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from farm_workers.engine.philox import Stream

CODE_BLOCK = 1024
CODES_STREAM = tl.constexpr(int(Stream.CODES))


@triton.jit
def _add_norm(
    x_ptr, delta_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, out_ptr,
    channels, lines, modulation_stride, eps,
    CENTRE: tl.constexpr, DELTA: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    MODULATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    x = tl.load(x_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
    if DELTA:
        x += tl.load(delta_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
        x = x.to(x_ptr.dtype.element_ty)  # the residual stream is kept in the model's type
        tl.store(x_ptr + line * channels + at, x, mask=inside)
        x = x.to(tl.float32)
    if CENTRE:
        x = tl.where(inside, x - tl.sum(x, 0) / channels, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / channels + eps)
    if WEIGHT:
        y *= tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if MODULATE:
        half = (line // lines) * modulation_stride  # one scale and shift for all tokens of a half
        scale = tl.load(scale_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
        y = y * scale + shift
    tl.store(out_ptr + line * channels + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor, delta: Tensor | None, norm: nn.Module, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """(rows, halves, tokens, channels); ``scale`` and ``shift`` are (rows, halves, 1, channels)."""
    channels, lines = x.shape[-1], x.shape[-2]
    weight, bias = norm.weight, getattr(norm, "bias", None)
    assert x.is_contiguous()
    assert delta is None or delta.is_contiguous()
    stride = 0
    if scale is not None and shift is not None:
        stride = between_halves(scale)
        assert stride == between_halves(shift)
    output = torch.empty_like(x)
    _add_norm[(x.numel() // channels,)](
        x,
        x if delta is None else delta,
        x if weight is None else weight,
        x if bias is None else bias,
        x if scale is None else scale,
        x if shift is None else shift,
        output,
        channels,
        lines,
        stride,
        norm.eps,
        CENTRE=isinstance(norm, nn.LayerNorm),
        DELTA=delta is not None,
        WEIGHT=weight is not None,
        BIAS=bias is not None,
        MODULATE=scale is not None,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=4,
    )
    return output


def between_halves(view: Tensor) -> int:
    """How far apart the halves of all rows lie in a view into the packed conditioning."""
    rows, halves = view.shape[:2]
    assert view.stride(-1) == 1
    if halves == 1:  # the stride of a dimension of one says nothing
        return view.stride(0) if rows > 1 else 0
    assert rows == 1 or view.stride(0) == halves * view.stride(1)
    return view.stride(1)


@triton.jit
def _geglu(x_ptr, out_ptr, inner, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    line, column = at // inner, at % inner
    value = tl.load(x_ptr + line * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + line * 2 * inner + inner + column, mask=inside, other=0.0)
    gate = gate.to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out_ptr + at, (value * gelu).to(out_ptr.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    assert x.is_contiguous()
    inner = x.shape[-1] // 2
    output = x.new_empty(*x.shape[:-1], inner)
    block = 1024
    _geglu[(triton.cdiv(output.numel(), block),)](x, output, inner, output.numel(), BLOCK=block)
    return output


@triton.jit
def _exponential(word):
    """-log1p(-u) of a 32-bit word, accurate near 0 without a library call."""
    uniform = tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)
    rest = 1.0 - uniform
    scaled = tl.log(rest) * uniform / (rest - 1.0)
    return tl.where(rest == 1.0, uniform, scaled)


@triton.jit
def _sample(
    logits_ptr, unknown_ptr, scale_ptr, seed_ptr, step_ptr, code_ptr, chosen_ptr,
    seq_len, codes,
    HALVES: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row, token = place // seq_len, place % seq_len
    if tl.load(unknown_ptr + place) == 0:
        tl.store(code_ptr + place, 0)
        tl.store(chosen_ptr + place, 1.0)
    else:
        seed = tl.load(seed_ptr + row)
        step = tl.load(step_ptr + row).to(tl.int32)
        scale = tl.load(scale_ptr + row)
        line = logits_ptr + (row * HALVES * seq_len + token) * codes
        top, total = float("-inf"), 0.0
        best, best_logit, best_code = float("-inf"), 0.0, 0
        for first in range(0, codes, 4 * QUADS):
            quad = first // 4 + tl.arange(0, QUADS)
            at = first + tl.arange(0, 4 * QUADS)
            inside = at < codes
            logit = tl.load(line + at, mask=inside, other=float("-inf")).to(tl.float32)
            if HALVES == 2:
                cond = tl.load(line + seq_len * codes + at, mask=inside, other=0.0).to(tl.float32)
                logit = tl.where(inside, logit + scale * (cond - logit), float("-inf"))
            zero = quad * 0
            w0, w1, w2, w3 = tl.philox(
                seed, quad, zero + token.to(tl.int32), zero + step, zero + CODES_STREAM
            )
            words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(4 * QUADS)
            score = tl.where(inside, logit - tl.log(_exponential(words)), float("-inf"))
            winner = tl.argmax(score, 0)
            found = tl.max(score, 0)
            here = tl.max(tl.where(tl.arange(0, 4 * QUADS) == winner, logit, float("-inf")), 0)
            better = found > best
            best_code = tl.where(better, first + winner, best_code)
            best_logit = tl.where(better, here, best_logit)
            best = tl.where(better, found, best)
            higher = tl.maximum(top, tl.max(logit, 0))
            terms = tl.where(inside, tl.exp(logit - higher), 0.0)
            total = total * tl.exp(top - higher) + tl.sum(terms, 0)
            top = higher
        tl.store(code_ptr + place, best_code.to(tl.int64))
        tl.store(chosen_ptr + place, tl.exp(best_logit - top) / total)


def sample(
    logits: Tensor, unknown: Tensor, scale: Tensor, seeds: Tensor, steps: Tensor
) -> tuple[Tensor, Tensor]:
    """See kernels.sample; scores are added up in one pass, and no noise touches memory."""
    rows, halves, seq_len, codes = logits.shape
    assert logits.is_contiguous()
    drawn = torch.empty(rows, seq_len, dtype=torch.int64, device=logits.device)
    chosen = torch.empty(rows, seq_len, dtype=torch.float32, device=logits.device)
    _sample[(rows * seq_len,)](
        logits,
        unknown.to(torch.int8),
        scale.float(),
        seeds,
        steps,
        drawn,
        chosen,
        seq_len,
        codes,
        HALVES=halves,
        QUADS=CODE_BLOCK // 4,
        num_warps=4,
    )
    return drawn, chosen
