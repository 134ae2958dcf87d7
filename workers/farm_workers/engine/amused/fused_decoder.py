# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""The decoder's norms and sums as a GPU does them: on images whose channels lie together (NHWC)."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
import triton
import triton.language as tl
from torch import Tensor, nn

TILE_VALUES = 4096  # of an image at once in a program: 32 of each thread
SUMMED_TILES = 8  # that a program adds up before its threads meet


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
        like: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
        sums = torch.empty(images, blocks, 2, channels, **like)
        facts = torch.empty(images, self.groups, 2, **like)
        output = torch.empty_like(x)  # keeps the memory format
        _group_sums[(images, blocks)](
            x, added, sums, pixels, channels, blocks, PIXELS=step, TILES=SUMMED_TILES, BLOCK=block
        )
        group_block = triton.next_power_of_2(channels // self.groups)
        _group_facts[(images, self.groups)](
            sums, facts, pixels, channels, blocks, self.groups, self.eps,
            BLOCKS=max(2048 // group_block, 1), BLOCK=group_block,
        )  # fmt: skip
        _group_norm[(images, triton.cdiv(pixels, step))](
            x, added, facts, self.weight, self.bias, output, pixels, channels, self.groups,
            PIXELS=step, BLOCK=block,
        )  # fmt: skip
        return output


def fuse(decoder: Any) -> Any:
    """The decoder, each group norm and the SiLU after it made one module."""
    for block in [module for module in decoder.modules() if hasattr(module, "resnets")]:
        block.resnets = nn.ModuleList([Resnet(one) for one in block.resnets])
    decoder.conv_norm_out = GroupNormSilu(decoder.conv_norm_out)
    decoder.conv_act = nn.Identity()
    return decoder


class Resnet(nn.Module):
    """diffusers' ResnetBlock2D without a time embedding.

    cuDNN adds a convolution's bias in a pass of its own, so the norm that follows adds it, or the
    pass that adds the residual.
    """

    def __init__(self, given: Any) -> None:
        super().__init__()
        assert given.output_scale_factor == 1
        self.norm1, self.norm2 = GroupNormSilu(given.norm1), GroupNormSilu(given.norm2)
        self.conv1, self.conv2, self.shortcut = given.conv1, given.conv2, given.conv_shortcut

    def forward(self, x: Tensor, temb: None = None) -> Tensor:
        inner = self.norm2(_without_bias(self.conv1, self.norm1(x)), self.conv1.bias)
        inner = _without_bias(self.conv2, inner)
        return add_bias(inner, self.conv2.bias, x if self.shortcut is None else self.shortcut(x))


def _without_bias(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
