# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""What a GPU does between two products or convolutions, each in one pass over memory.

Block sizes follow from the shapes alone: nothing is tuned at run time, so that a shape always
runs the same code. A kernel's pointer may be None; what it is for is then left out.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
import triton
import triton.language as tl
from torch import Tensor, nn

from farm_workers.engine.amused.layers import Ops

TILE_VALUES = 4096  # of an image at once in a program: 32 of each thread
SUMMED_TILES = 8  # that a program adds up before its threads meet, at most
SUMMING_PROGRAMS = 64  # for an image, at least where it has so many tiles: one alone is to be quick


@triton.jit
def _add_norm(
    x_ptr, delta_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, out_ptr,
    channels, lines, modulation_stride, eps, CENTRE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    x = tl.load(x_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
    if delta_ptr is not None:
        x += tl.load(delta_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
        x = x.to(x_ptr.dtype.element_ty)  # the residual stream is kept in the model's type
        tl.store(x_ptr + line * channels + at, x, mask=inside)
        x = x.to(tl.float32)
    if CENTRE:
        x = tl.where(inside, x - tl.sum(x, 0) / channels, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / channels + eps)
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        half = (line // lines) * modulation_stride  # one scale and shift for all tokens of a half
        scale = tl.load(scale_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + half + at, mask=inside, other=0.0).to(tl.float32)
        y = y * scale + shift
    tl.store(out_ptr + line * channels + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor,
    delta: Tensor | None,
    norm: nn.Module,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """(rows, halves, tokens, channels); ``scale`` and ``shift`` are (rows, halves, 1, channels)."""
    channels, lines = x.shape[-1], x.shape[-2]
    assert x.is_contiguous()
    assert delta is None or delta.is_contiguous()
    stride = 0
    if scale is not None and shift is not None:
        stride = between_halves(scale)
        assert stride == between_halves(shift)
    output = torch.empty_like(x)
    tensors = (x, delta, norm.weight, getattr(norm, "bias", None), scale, shift, output)
    how = {"CENTRE": isinstance(norm, nn.LayerNorm), "BLOCK": triton.next_power_of_2(channels)}
    _add_norm[(x.numel() // channels,)](*tensors, channels, lines, stride, norm.eps, **how)
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
def _gelu(x, EXACT: tl.constexpr):
    """x times the normal distribution's cumulative share below x.

    For 16-bit numbers the tail is formula 7.1.26 of Abramowitz and Stegun, within 1.5e-7: the
    library's erf takes longer than it takes memory to bring x.
    """
    if EXACT:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    size = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * size)
    tail = 1.061405429 * t - 1.453152027
    tail = tail * t + 1.421413741
    tail = tail * t - 0.284496736
    tail = (tail * t + 0.254829592) * t
    tail = 0.5 * tail * tl.exp(-size * size)
    return x * tl.where(x < 0.0, tail, 1.0 - tail)


def _exact(x: Tensor) -> bool:
    return x.dtype is torch.float32


@triton.jit
def _geglu(x_ptr, out_ptr, inner, count, EXACT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    line, column = at // inner, at % inner
    value = tl.load(x_ptr + line * 2 * inner + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + line * 2 * inner + inner + column, mask=inside, other=0.0)
    y = value * _gelu(gate.to(tl.float32), EXACT)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    assert x.is_contiguous()
    inner = x.shape[-1] // 2
    output = x.new_empty(*x.shape[:-1], inner)
    block = 1024
    how = {"EXACT": _exact(x), "BLOCK": block}
    _geglu[(triton.cdiv(output.numel(), block),)](x, output, inner, output.numel(), **how)
    return output


@triton.jit
def _mix_norm(
    x_ptr, taps_ptr, bias_ptr, weight_ptr, out_ptr, height, width, channels, eps,
    BLOCK: tl.constexpr,
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
    if bias_ptr is not None:
        y += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    y = y.to(out_ptr.dtype.element_ty).to(tl.float32)  # as the convolution would have left it
    y = y * tl.rsqrt(tl.sum(y * y, 0) / channels + eps)
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + line * channels + at, y.to(out_ptr.dtype.element_ty), mask=inside)


def mix_norm(
    x: Tensor, grid: tuple[int, int], taps: Tensor, bias: Tensor | None, norm: nn.Module
) -> Tensor:
    """A depthwise 3 x 3 convolution, then an RMS norm; ``taps`` are (9, channels)."""
    channels = x.shape[-1]
    assert x.is_contiguous()
    assert taps.is_contiguous()
    output = torch.empty_like(x)
    _mix_norm[(x.numel() // channels,)](
        x, taps, bias, norm.weight, output, *grid, channels, norm.eps,
        BLOCK=triton.next_power_of_2(channels),
    )  # fmt: skip
    return output


@triton.jit
def _squares(
    x_ptr, out_ptr, lines, channels, EXACT: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr
):
    half = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < channels
    # Added up in place and across the threads only once: that is what takes time.
    total = tl.zeros((LINES, BLOCK), tl.float32)
    for first in range(0, lines, LINES):
        line = first + tl.arange(0, LINES)
        source = x_ptr + (half * lines + line[:, None]) * channels + at[None, :]
        mask = (line[:, None] < lines) & inside[None, :]
        y = _gelu(tl.load(source, mask=mask, other=0.0).to(tl.float32), EXACT)
        total += y * y
    tl.store(out_ptr + half * channels + at, tl.sqrt(tl.sum(total, 0)), mask=inside)


@triton.jit
def _response(
    x_ptr, strength_ptr, gamma_ptr, beta_ptr, out_ptr, lines, channels,
    EXACT: tl.constexpr, LINES: tl.constexpr, BLOCK: tl.constexpr,
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
        y = _gelu(tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32), EXACT)
        y = y * relative * gamma + beta + y
        tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def response(x: Tensor, norm: nn.Module) -> Tensor:
    """GELU, then the global response norm (Woo et al., arXiv 2301.00808) over each half's tokens.

    GELU is computed twice: reading its input again is cheaper than keeping its output.
    """
    rows, halves, lines, channels = x.shape
    assert x.is_contiguous()
    strength = torch.empty(rows * halves, channels, dtype=torch.float32, device=x.device)
    exact = _exact(x)
    _squares[(rows * halves, triton.cdiv(channels, 32))](
        x, strength, lines, channels, EXACT=exact, LINES=64, BLOCK=32
    )
    output = torch.empty_like(x)
    _response[(rows * halves, triton.cdiv(lines, 4))](
        x, strength, norm.gamma, norm.beta, output, lines, channels,
        EXACT=exact, LINES=4, BLOCK=triton.next_power_of_2(channels), num_warps=8,
    )  # fmt: skip
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
        x, delta, scale, shift, output, channels, lines, stride,
        BLOCK=triton.next_power_of_2(channels),
    )  # fmt: skip
    return output


class FusedOps(Ops):
    """For rows that are computed together."""

    together = True

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def onto(stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        if bias is not None:  # the library adds only one of the two
            return False
        stream.view(-1, stream.shape[-1]).addmm_(x.flatten(0, -2), weight.T)
        return True

    add_norm = staticmethod(add_norm)
    geglu = staticmethod(geglu)
    mix_norm = staticmethod(mix_norm)
    response = staticmethod(response)
    add_modulate = staticmethod(add_modulate)

    @staticmethod
    def halve(x: Tensor, grid: tuple[int, int], conv: Any) -> Tensor:
        """A 2 x 2 convolution of stride 2 as a product: (rows, halves, tokens, channels)."""
        height, width = grid
        cells = x.unflatten(2, (height // 2, 2, width // 2, 2)).transpose(3, 4)
        cells = cells.reshape(*x.shape[:2], height * width // 4, 4 * x.shape[-1])
        return F.linear(cells, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)

    @staticmethod
    def double(x: Tensor, grid: tuple[int, int], conv: Any) -> Tensor:
        """A transposed 2 x 2 convolution of stride 2 as a product."""
        height, width = grid
        cells: Tensor = F.linear(x, conv.weight.permute(2, 3, 1, 0).flatten(0, 2))
        cells = cells.unflatten(-1, (2, 2, -1)).unflatten(2, (height, width))
        cells = cells.transpose(3, 4).reshape(*x.shape[:2], 4 * height * width, -1)
        return cells if conv.bias is None else cells.add_(conv.bias)


@triton.jit
def _group_sums(
    x_ptr, bias_ptr, out_ptr, pixels, channels, blocks,
    PIXELS: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
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
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Pixels first: a GPU starts 65,535 programs at most in any other dimension.
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(1).to(tl.int64)
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
    if added_ptr is not None:
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
        x, bias, residual, pixels, channels, PIXELS=step, BLOCK=block
    )
    return x


@triton.jit
def _weave(
    x_ptr, bias_ptr, out_ptr, height, width, channels, pixels,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    at = tl.arange(0, BLOCK)
    inside = at < channels
    bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    image, place = pixel // (4 * height * width), pixel % (4 * height * width)
    row, column = place // (2 * width), place % (2 * width)
    low, right = row % 2, column % 2
    source = (image * (height + 1) + row // 2 + low) * (width + 1) + column // 2 + right
    source = (source * 4 + low * 2 + right) * channels
    mask = (pixel[:, None] < pixels) & inside[None, :]
    x = tl.load(x_ptr + source[:, None] + at[None, :], mask=mask, other=0.0).to(tl.float32)
    x += bias[None, :]
    target = out_ptr + pixel[:, None] * channels + at[None, :]
    tl.store(target, x.to(out_ptr.dtype.element_ty), mask=mask)


class Upsample(nn.Module):
    """``Double`` of vq.py: each pixel becomes 2 x 2 equal ones, then a 3 x 3 convolution.

    Each of the four sees 2 x 2 pixels of the small image, so one 2 x 2 convolution of it makes all
    four, by 4 of the 9 products and without the large image in between.
    """

    weight: Tensor  # (4 x channels, channels, 2, 2); the upper left pixels of all channels first

    def __init__(self, given: Any) -> None:
        super().__init__()
        conv = given.conv
        self.bias = conv.bias
        # Which of the three rows, or columns, of the 3 x 3 fall on the first and on the second of
        # the two: of an upper (or left) pixel, and of a lower (or right) one.
        falls = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]).to(
            conv.weight.device
        )
        taps = torch.einsum(
            "aik,bjl,ockl->abocij", falls.float(), falls.float(), conv.weight.float()
        )
        weight = taps.flatten(0, 2).to(conv.weight.dtype)
        self.register_buffer(
            "weight", weight.contiguous(memory_format=torch.channels_last), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(images, channels, height, width) to twice the height and width; NHWC."""
        images, channels, height, width = x.shape
        cells = F.conv2d(x, self.weight, padding=1)
        cells = cells.contiguous(memory_format=torch.channels_last)
        output = torch.empty(
            images, channels, 2 * height, 2 * width,
            dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
        )  # fmt: skip
        block = triton.next_power_of_2(channels)
        step = max(TILE_VALUES // block, 1)
        pixels = images * 4 * height * width
        _weave[(triton.cdiv(pixels, step),)](
            cells, self.bias, output, height, width, channels, pixels, PIXELS=step, BLOCK=block
        )
        return output


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
        tiles = min(max(pixels // (step * SUMMING_PROGRAMS), 1), SUMMED_TILES)
        blocks = triton.cdiv(pixels, step * tiles)
        like: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        sums = torch.empty(images, blocks, 2, channels, **like)
        facts = torch.empty(images, self.groups, 2, **like)
        output = torch.empty_like(x)  # keeps the memory format
        _group_sums[(images, blocks)](
            x, added, sums, pixels, channels, blocks, PIXELS=step, TILES=tiles, BLOCK=block
        )
        group_block = triton.next_power_of_2(channels // self.groups)
        _group_facts[(images, self.groups)](
            sums, facts, pixels, channels, blocks, self.groups, self.eps,
            BLOCKS=max(2048 // group_block, 1), BLOCK=group_block,
        )  # fmt: skip
        _group_norm[(triton.cdiv(pixels, step), images)](
            x, added, facts, self.weight, self.bias, output, pixels, channels, self.groups,
            PIXELS=step, BLOCK=block,
        )  # fmt: skip
        return output


def fuse(half: Any) -> Any:
    """The VQ model's encoder or decoder, with passes of its own between the convolutions and fewer
    products in them."""
    for block in [module for module in half.modules() if hasattr(module, "resnets")]:
        block.resnets = nn.ModuleList([Resnet(one) for one in block.resnets])
        if block.upsamplers:
            block.upsamplers = nn.ModuleList([Upsample(one) for one in block.upsamplers])
    half.conv_norm_out = GroupNormSilu(half.conv_norm_out)
    half.conv_act = nn.Identity()
    return half


class Resnet(nn.Module):
    """``Resnet`` of vq.py with its norms and SiLUs in one kernel.

    cuDNN adds a convolution's bias in a pass of its own, so the norm that follows adds it, or the
    pass that adds the residual.
    """

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNormSilu(given.norm1), GroupNormSilu(given.norm2)
        self.conv1, self.conv2, self.shortcut = given.conv1, given.conv2, given.conv_shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(_without_bias(self.conv1, self.norm1(x)), self.conv1.bias)
        inner = _without_bias(self.conv2, inner)
        if self.shortcut is not None:
            # A 1 x 1 convolution is a product, which adds its bias itself.
            weight, bias = self.shortcut.weight.flatten(1), self.shortcut.bias
            x = F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        return add_bias(inner, self.conv2.bias, x)


def _without_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
