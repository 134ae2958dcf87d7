# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""The GPU's kernels: what lies between two matrix products, each in one pass over memory.

Block sizes follow from the shapes alone: nothing is tuned at run time, so that a shape always
runs the same code.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
import triton
import triton.language as tl
from torch import Tensor, nn

from farm.spec import MAX_STEPS
from farm_workers.engine import sampler
from farm_workers.engine.rng import Stream

CODE_BLOCK = 1024
TILE_VALUES = 4096  # of an image at once in a program: 32 of each thread
SUMMED_TILES = 8  # that a program adds up before its threads meet
CODES_STREAM = tl.constexpr(int(Stream.CODES))
ORDER_STREAM = tl.constexpr(int(Stream.ORDER))
SEED_LOW, SEED_HIGH = tl.constexpr(sampler.SEED_LOW), tl.constexpr(sampler.SEED_HIGH)
STEP, SCALE = tl.constexpr(sampler.STEP), tl.constexpr(sampler.SCALE)
PARTNER, ACTIVE = tl.constexpr(sampler.PARTNER), tl.constexpr(sampler.ACTIVE)
TEMPERATURES = tl.constexpr(sampler.HEADER)
PLANNED = tl.constexpr(sampler.HEADER + MAX_STEPS)
LAST_STEP = tl.constexpr(MAX_STEPS - 1)
TINY = tl.constexpr(sampler.TINY)


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
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _geglu(x_ptr, out_ptr, inner, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    line, column = at // inner, at % inner
    value = tl.load(x_ptr + line * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + line * 2 * inner + inner + column, mask=inside, other=0.0)
    gate = gate.to(tl.float32)
    tl.store(out_ptr + at, (value * _gelu(gate)).to(out_ptr.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    assert x.is_contiguous()
    inner = x.shape[-1] // 2
    output = x.new_empty(*x.shape[:-1], inner)
    block = 1024
    _geglu[(triton.cdiv(output.numel(), block),)](x, output, inner, output.numel(), BLOCK=block)
    return output


@triton.jit
def _mix_norm(
    x_ptr, taps_ptr, bias_ptr, weight_ptr, out_ptr, height, width, channels, eps,
    BIAS: tl.constexpr, WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    place = line % (height * width)
    row, column = place // width, place % width
    at = tl.arange(0, BLOCK)
    inside = at < channels
    y = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        there = (row + down >= 0) & (row + down < height)
        there = there & (column + right >= 0) & (column + right < width)
        source = x_ptr + (line + down * width + right) * channels + at
        x = tl.load(source, mask=inside & there, other=0.0).to(tl.float32)
        y += x * tl.load(taps_ptr + tap * channels + at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = y.to(out_ptr.dtype.element_ty).to(tl.float32)  # as the convolution would have left it
    y = y * tl.rsqrt(tl.sum(y * y, 0) / channels + eps)
    if WEIGHT:
        y *= tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + line * channels + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def mix_norm(
    x: Tensor, grid: tuple[int, int], taps: Tensor, bias: Tensor | None, norm: nn.Module
) -> Tensor:
    """A depthwise 3 x 3 convolution, then an RMS norm; ``taps`` are (9, channels)."""
    channels, weight = x.shape[-1], norm.weight
    assert x.is_contiguous()
    assert taps.is_contiguous()
    output = torch.empty_like(x)
    _mix_norm[(x.numel() // channels,)](
        x,
        taps,
        x if bias is None else bias,
        x if weight is None else weight,
        output,
        *grid,
        channels,
        norm.eps,
        BIAS=bias is not None,
        WEIGHT=weight is not None,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=4,
    )
    return output


@triton.jit
def _squares(x_ptr, out_ptr, lines, channels, LINES: tl.constexpr, BLOCK: tl.constexpr):
    half = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, lines, LINES):
        line = first + tl.arange(0, LINES)
        source = x_ptr + (half * lines + line[:, None]) * channels + at[None, :]
        mask = (line[:, None] < lines) & inside[None, :]
        y = _gelu(tl.load(source, mask=mask, other=0.0).to(tl.float32))
        total += tl.sum(y * y, 0)
    tl.store(out_ptr + half * channels + at, tl.sqrt(total), mask=inside)


@triton.jit
def _response(
    x_ptr, strength_ptr, gamma_ptr, beta_ptr, out_ptr, lines, channels,
    LINES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * LINES
    half = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    strength = tl.load(strength_ptr + half * channels + at, mask=inside, other=0.0)
    relative = strength / (tl.sum(strength, 0) / channels + 1e-6)
    gamma = tl.load(gamma_ptr + at, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for offset in range(LINES):
        place = (half * lines + first + offset) * channels + at
        mask = inside & (first + offset < lines)
        y = _gelu(tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32))
        y = y * relative * gamma + beta + y
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def response(x: Tensor, norm: nn.Module) -> Tensor:
    """GELU, then the global response norm (Woo et al., arXiv 2301.00808) over each half's tokens.

    GELU is computed twice: reading its input again is cheaper than keeping its output.
    """
    rows, halves, lines, channels = x.shape
    assert x.is_contiguous()
    strength = torch.empty(rows * halves, channels, dtype=torch.float32, device=x.device)
    _squares[(rows * halves, triton.cdiv(channels, 64))](
        x, strength, lines, channels, LINES=32, BLOCK=64, num_warps=4
    )
    output = torch.empty_like(x)
    _response[(rows * halves, triton.cdiv(lines, 8))](
        x,
        strength,
        norm.gamma,
        norm.beta,
        output,
        lines,
        channels,
        LINES=8,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=8,
    )
    return output


@triton.jit
def _add_modulate(
    x_ptr, delta_ptr, scale_ptr, shift_ptr, out_ptr, channels, lines, modulation_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    x = tl.load(x_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(delta_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
    half = (line // lines) * modulation_stride
    scale = tl.load(scale_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
    y = x * scale + shift
    tl.store(out_ptr + line * channels + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def add_modulate(x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(x + delta) * scale + shift, with the shapes of ``add_norm``."""
    channels, lines = x.shape[-1], x.shape[-2]
    assert x.is_contiguous()
    assert delta.is_contiguous()
    stride = between_halves(scale)
    assert stride == between_halves(shift)
    output = torch.empty_like(x)
    _add_modulate[(x.numel() // channels,)](
        x,
        delta,
        scale,
        shift,
        output,
        channels,
        lines,
        stride,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=4,
    )
    return output


@triton.jit
def _group_sums(
    x_ptr, bias_ptr, out_ptr, pixels, channels, blocks,
    BIASED: tl.constexpr, PIXELS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    bias = tl.zeros((BLOCK,), tl.float32)
    if BIASED:
        bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # Added up in place and across the threads only once: that is what takes time.
    total = tl.zeros((PIXELS, BLOCK), tl.float32)
    squares = tl.zeros((PIXELS, BLOCK), tl.float32)
    for tile in range(TILES):
        pixel = (block * TILES + tile) * PIXELS + tl.arange(0, PIXELS)
        mask = (pixel[:, None] < pixels) & inside[None, :]
        source = x_ptr + (image * pixels + pixel[:, None]) * channels + at[None, :]
        x = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x + bias[None, :], 0.0)
        total += x
        squares += x * x
    target = out_ptr + (image * blocks + block) * 2 * channels + at
    tl.store(target, tl.sum(total, 0), mask=inside)
    tl.store(target + channels, tl.sum(squares, 0), mask=inside)


@triton.jit
def _group_facts(
    sums_ptr, out_ptr, pixels, channels, blocks, groups, eps,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    size = channels // groups
    at = tl.arange(0, BLOCK)
    total, squares = 0.0, 0.0
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        mask = (block[:, None] < blocks) & (at[None, :] < size)
        source = sums_ptr + (image * blocks + block[:, None]) * 2 * channels
        source = source + group * size + at[None, :]
        total += tl.sum(tl.sum(tl.load(source, mask=mask, other=0.0), 0), 0)
        squares += tl.sum(tl.sum(tl.load(source + channels, mask=mask, other=0.0), 0), 0)
    count = pixels * size
    mean = total / count
    variance = tl.maximum(squares / count - mean * mean, 0.0)
    target = out_ptr + (image * groups + group) * 2
    tl.store(target, mean)
    tl.store(target + 1, tl.rsqrt(variance + eps))


@triton.jit
def _group_norm(
    x_ptr, added_ptr, facts_ptr, weight_ptr, bias_ptr, out_ptr, pixels, channels, groups,
    BIASED: tl.constexpr, PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    facts = facts_ptr + (image * groups + at // (channels // groups)) * 2
    mean = tl.load(facts, mask=inside, other=0.0)
    spread = tl.load(facts + 1, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    place = (image * pixels + pixel[:, None]) * channels + at[None, :]
    mask = (pixel[:, None] < pixels) & inside[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if BIASED:
        x += tl.load(added_ptr + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    y = (x - mean[None, :]) * (spread * weight)[None, :] + bias[None, :]
    y = y / (1.0 + tl.exp(-y))
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _add_bias(
    x_ptr, bias_ptr, residual_ptr, pixels, channels, PIXELS: tl.constexpr, BLOCK: tl.constexpr
):
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    place = pixel[:, None] * channels + at[None, :]
    mask = (pixel[:, None] < pixels) & inside[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    x += bias[None, :] + tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty), mask=mask)


def add_bias(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """``x`` + bias + residual, into ``x``; images (images, channels, height, width), NHWC."""
    assert x.is_contiguous(memory_format=torch.channels_last)
    residual = residual.contiguous(memory_format=torch.channels_last)
    images, channels, height, width = x.shape
    block = triton.next_power_of_2(channels)
    step = max(TILE_VALUES // block, 1)
    pixels = images * height * width
    _add_bias[(triton.cdiv(pixels, step),)](
        x, bias, residual, pixels, channels, PIXELS=step, BLOCK=block, num_warps=4
    )
    return x


class GroupNormSilu(nn.Module):
    """A group norm and the SiLU after it, on images whose channels lie together (NHWC)."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Of ``x`` (images, channels, height, width) in torch.channels_last, plus ``added``, the
        bias (channels,) of the convolution before."""
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = x.shape
        pixels, block = height * width, triton.next_power_of_2(channels)
        step = max(TILE_VALUES // block, 1)
        blocks = triton.cdiv(pixels, step * SUMMED_TILES)
        how = {"BIASED": added is not None, "PIXELS": step, "BLOCK": block, "num_warps": 4}
        like: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        sums = torch.empty(images, blocks, 2, channels, **like)
        facts = torch.empty(images, self.groups, 2, **like)
        output = torch.empty_like(x)  # keeps the memory format
        _group_sums[(images, blocks)](
            x, added, sums, pixels, channels, blocks, TILES=SUMMED_TILES, **how
        )
        group_block = triton.next_power_of_2(channels // self.groups)
        _group_facts[(images, self.groups)](
            sums,
            facts,
            pixels,
            channels,
            blocks,
            self.groups,
            self.eps,
            BLOCKS=max(2048 // group_block, 1),
            BLOCK=group_block,
            num_warps=4,
        )
        _group_norm[(images, triton.cdiv(pixels, step))](
            x,
            added,
            facts,
            self.weight,
            self.bias,
            output,
            pixels,
            channels,
            self.groups,
            **how,
        )
        return output


class FusedOps:
    """What the transformer does between its products, for rows that are computed together."""

    together = True

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def add_norm(
        x: Tensor,
        delta: Tensor | None,
        norm: nn.Module,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        return add_norm(x, delta, norm, scale, shift)

    geglu = staticmethod(geglu)
    mix_norm = staticmethod(mix_norm)
    response = staticmethod(response)
    add_modulate = staticmethod(add_modulate)

    @staticmethod
    def halve(x: Tensor, grid: tuple[int, int], conv: nn.Conv2d) -> Tensor:
        """A 2 x 2 convolution of stride 2 as a product: (rows, halves, tokens, channels)."""
        height, width = grid
        cells = x.unflatten(2, (height // 2, 2, width // 2, 2)).transpose(3, 4)
        cells = cells.reshape(*x.shape[:2], height * width // 4, 4 * x.shape[-1])
        return F.linear(cells, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)

    @staticmethod
    def double(x: Tensor, grid: tuple[int, int], conv: nn.ConvTranspose2d) -> Tensor:
        """A transposed 2 x 2 convolution of stride 2 as a product."""
        height, width = grid
        cells = F.linear(x, conv.weight.permute(2, 3, 1, 0).flatten(0, 2))
        cells = cells.unflatten(-1, (2, 2, -1)).unflatten(2, (height, width))
        cells = cells.transpose(3, 4).reshape(*x.shape[:2], 4 * height * width, -1)
        return cells if conv.bias is None else cells.add_(conv.bias)


@triton.jit
def _unit(word):
    """A 32-bit word to a float strictly between 0 and 1, as rng.unit does."""
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)


@triton.jit
def _exponential(word):
    """-log1p(-u) of a 32-bit word, accurate near 0 without a library call."""
    uniform = _unit(word)
    rest = 1.0 - uniform
    scaled = tl.log(rest) * uniform / (rest - 1.0)
    return tl.where(rest == 1.0, uniform, scaled)


@triton.jit
def _draw(
    logits_ptr, record_ptr, tokens_ptr, predicted_ptr, probability_ptr,
    seq_len, codes, record_stride, mask_id,
    QUADS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    half, token = place // seq_len, place % seq_len
    record = record_ptr + half * record_stride
    unknown = tl.load(tokens_ptr + place) == mask_id
    if unknown & (tl.load(record + ACTIVE) != 0):
        seed = _seed(record)
        step = tl.load(record + STEP)
        scale = tl.load(record + SCALE).to(tl.float32, bitcast=True)
        partner = tl.load(record + PARTNER).to(tl.int64)
        line = logits_ptr + place * codes
        prompted = logits_ptr + (partner * seq_len + token) * codes
        guided = partner != half
        top, total = float("-inf"), 0.0
        best, best_logit, best_code = float("-inf"), 0.0, 0
        for first in range(0, codes, 4 * QUADS):
            quad = first // 4 + tl.arange(0, QUADS)
            at = first + tl.arange(0, 4 * QUADS)
            inside = at < codes
            logit = tl.load(line + at, mask=inside, other=float("-inf")).to(tl.float32)
            if guided:
                cond = tl.load(prompted + at, mask=inside, other=0.0).to(tl.float32)
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
        tl.store(predicted_ptr + place, best_code.to(tl.int64))
        tl.store(probability_ptr + place, tl.exp(best_logit - top) / total)


@triton.jit
def _seed(record):
    low = tl.load(record + SEED_LOW).to(tl.int64) & 0xFFFFFFFF
    return (tl.load(record + SEED_HIGH).to(tl.int64) << 32) | low


def draw(logits: Tensor, records: Tensor, state: "sampler.State", mask_id: int) -> None:
    """Guidance, softmax and the race of every masked token of a tile, in one pass over the scores.

    Writes codes and their probabilities; no noise touches memory. ``logits`` are (half-slots,
    tokens, codes), ``records`` those of TritonSampler.
    """
    halves, seq_len, codes = logits.shape
    assert logits.is_contiguous()
    _draw[(halves * seq_len,)](
        logits,
        records,
        state.tokens,
        state.predicted,
        state.probability,
        seq_len,
        codes,
        records.stride(0),
        mask_id,
        QUADS=CODE_BLOCK // 4,
        num_warps=4,
    )


@triton.jit
def _settle(
    record_ptr, tokens_ptr, predicted_ptr, probability_ptr, outcome_ptr,
    seq_len, record_stride, mask_id,
    BLOCK: tl.constexpr,
):  # fmt: skip
    half = tl.program_id(0).to(tl.int64)
    record = record_ptr + half * record_stride
    if tl.load(record + ACTIVE) != 0:
        step = tl.load(record + STEP)
        temperature = tl.load(record + TEMPERATURES + step).to(tl.float32, bitcast=True)
        planned = tl.load(record + PLANNED + step)
        at = tl.arange(0, BLOCK)
        inside = at < seq_len
        place = half * seq_len + at
        token = tl.load(tokens_ptr + place, mask=inside, other=0)
        unknown = inside & (token == mask_id)
        predicted = tl.load(predicted_ptr + place, mask=inside, other=0)
        probability = tl.load(probability_ptr + place, mask=inside, other=-1.0)
        zero = at * 0
        word, _, _, _ = tl.philox(_seed(record), zero, at, zero + step, zero + ORDER_STREAM)
        noise = -tl.log(tl.maximum(-tl.log(tl.maximum(_unit(word), TINY)), TINY))
        confidence = tl.log(tl.maximum(probability, TINY)) + temperature * noise
        confidence = tl.where(unknown, confidence, float("inf"))
        left = tl.sum(unknown.to(tl.int32), 0)
        count = tl.minimum(tl.maximum(tl.minimum(left - 1, planned), 1), seq_len - 1)
        count = tl.where((planned > 0) & (left > 0), count, 0)
        # Integers in the order of the floats; the cut-off is built from its highest bit down.
        bits = confidence.to(tl.int32, bitcast=True).to(tl.int64)
        key = tl.where(bits >= 0, bits + 0x80000000, -1 - bits)
        cut_off = tl.sum(key, 0) * 0
        for bit in tl.static_range(32):
            higher = cut_off + (1 << (31 - bit))
            below = tl.sum((key < higher).to(tl.int32), 0)
            cut_off = tl.where(below <= count, higher, cut_off)
        stay = unknown & (key < cut_off)
        settled = tl.where(unknown, tl.where(stay, mask_id, predicted), token)
        tl.store(tokens_ptr + place, settled, mask=inside)
        partner = tl.load(record + PARTNER).to(tl.int64)
        tl.store(tokens_ptr + partner * seq_len + at, settled, mask=inside)
        finite = (probability == probability) & (tl.abs(probability) < float("inf"))
        wrong = tl.sum((unknown & (finite == 0)).to(tl.int32), 0)
        seen = inside & (probability >= 0)
        number = tl.sum(seen.to(tl.int32), 0)
        mean = tl.sum(tl.where(seen, probability, 0.0), 0) / tl.maximum(number, 1)
        tl.store(outcome_ptr + 2 * half, tl.where(number > 0, mean, 1.0))
        if wrong > 0:
            tl.store(outcome_ptr + 2 * half + 1, 1.0)
        tl.store(record + STEP, tl.minimum(step + 1, LAST_STEP))


def settle(records: Tensor, state: "sampler.State", mask_id: int, outcome: Tensor) -> None:
    """Order noise, confidence and the cut-off of sampler.stay_masked, then the new tokens.

    Also counts the step and writes mean confidence and failure of each row to ``outcome``.
    """
    halves, seq_len = state.tokens.shape
    _settle[(halves,)](
        records,
        state.tokens,
        state.predicted,
        state.probability,
        outcome,
        seq_len,
        records.stride(0),
        mask_id,
        BLOCK=triton.next_power_of_2(seq_len),
        num_warps=4 if seq_len <= 1024 else 16,
    )
