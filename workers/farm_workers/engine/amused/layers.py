"""The blocks of the U-ViT, under UVit2DModel's names, and how their work is done."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.amused.adapters import Adapters
from farm_workers.engine.amused.batch import by_row


@dataclass(frozen=True)
class Given:
    """What a pass reads beside the tokens."""

    pieces: Mapping[str, Any]  # what layers have made of the prompts, by their names; see Layout
    halves: int  # of each row
    adapters: Adapters | None = None  # of the rows, where some row has one


class Ops:
    """The work of a step, over (rows, halves, tokens, channels), in plain torch.

    A row's bits do not depend on its neighbours, and are UVit2DModel's at batch 1; see ``by_row``.
    A guided row has two halves, without the prompt and with it. In a tile of fixed shape, which
    is the work of FusedOps, every half-slot is a row of one half.
    """

    together = False  # whether rows share matrix products

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return by_row(F.linear, x, weight, bias)

    @staticmethod
    def onto(stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Add a product to the residual stream, in place; False where nothing has been done."""
        return False  # UVit2DModel rounds it before

    @staticmethod
    def add_norm(
        x: Tensor,
        delta: Tensor | None,
        norm: nn.Module,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Add ``delta`` to the residual stream ``x``, in place; its norm, perhaps modulated."""
        normed: Tensor = norm(x if delta is None else x.add_(delta))
        return normed if scale is None or shift is None else normed.mul_(scale).add_(shift)

    @staticmethod
    def geglu(x: Tensor) -> Tensor:
        return by_row(_geglu, x)

    @staticmethod
    def mix_norm(
        x: Tensor, grid: tuple[int, int], taps: Tensor, bias: Tensor | None, norm: nn.Module
    ) -> Tensor:
        """A depthwise 3 x 3 convolution, taps (9, channels), and a norm."""
        # The library's depthwise kernel depends on the batch; nine shifted products do not.
        height, width = grid
        padded = F.pad(x.flatten(0, 1).unflatten(1, grid), (0, 0, 1, 1, 1, 1))
        mixed = padded[:, :height, :width] * taps[0]
        places = itertools.product(range(3), range(3))
        for tap, (top, left) in itertools.islice(zip(taps, places, strict=True), 1, None):
            mixed.addcmul_(padded[:, top : top + height, left : left + width], tap)
        normed: Tensor = norm((mixed if bias is None else mixed.add_(bias)).view(x.shape))
        return normed

    @staticmethod
    def response(x: Tensor, norm: nn.Module) -> Tensor:
        """GELU, then ``norm``."""
        normed: Tensor = norm(by_row(F.gelu, x))
        return normed

    @staticmethod
    def add_modulate(x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (delta.add_(x) * scale).add_(shift).contiguous()

    @staticmethod
    def halve(x: Tensor, grid: tuple[int, int], conv: nn.Module) -> Tensor:
        """A 2 x 2 convolution of stride 2."""
        images = [conv(row.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for row in x.unflatten(2, grid)]
        return torch.stack(images).flatten(2, 3).contiguous()

    double = halve  # the same with a transposed convolution


def _geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return F.gelu(gate).mul_(value)


class Block(nn.Module):
    """A part of the transformer that knows how its work is done."""

    ops = Ops()


class Linear(nn.Linear, Block):
    name = ""  # within the transformer

    def forward(self, x: Tensor, adapters: Adapters | None) -> Tensor:  # type: ignore[override]
        output = self.ops.linear(x, self.weight, self.bias)
        return output if adapters is None else adapters.add(output, x, self.name)

    def onto(self, stream: Tensor, x: Tensor, adapters: Adapters | None) -> Tensor | None:
        """What is still to be added to the residual ``stream``: its output, or None."""
        if not self.ops.onto(stream, x, self.weight, self.bias):
            return self(x, adapters)  # type: ignore[no-any-return]
        if adapters is not None:
            adapters.add(stream, x, self.name)
        return None


class RMSNorm(nn.Module):
    def __init__(self, channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """In float32 inside, with UVit2DModel's order of rounding."""
        normed = x.float().pow(2)
        scale = normed.mean(-1, keepdim=True).add_(self.eps).rsqrt_()
        torch.mul(x, scale, out=normed)  # fresh memory costs as much as the arithmetic
        if self.weight is None:
            return normed.to(x.dtype)
        return normed.to(self.weight.dtype).mul_(self.weight)


def embedding(count: int, width: int) -> nn.Embedding:
    """One whose weights are loaded later: to fill them, torch loads its compiler for a second."""
    made: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(count, width))
    return made


class Attention(nn.Module):
    """Projections of one attention."""

    def __init__(self, channels: int, source: int, heads: int, bias: bool) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared out to {heads} heads")
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=bias)
        self.to_k = Linear(source, channels, bias=bias)
        self.to_v = Linear(source, channels, bias=bias)
        self.to_out = nn.ModuleList([Linear(channels, channels, bias=bias)])

    def _mixed(
        self,
        stream: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        adapters: Adapters | None,
    ) -> Tensor | None:
        """Of queries (rows, halves, tokens, channels); keys and values are split into heads.

        Returns what is still to be added to the residual ``stream``.
        """
        mixed = F.scaled_dot_product_attention(self.split(queries), keys, values)
        mixed = mixed.transpose(1, 2).reshape(queries.shape)
        delta: Tensor | None = self.to_out[0].onto(stream, mixed, adapters)  # type: ignore[operator]
        return delta

    def split(self, x: Tensor) -> Tensor:
        """(rows, halves, tokens, channels) to (rows x halves, heads, tokens, channels of each)."""
        heads: Tensor = x.flatten(0, 1).unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class PromptAttention(Attention):
    """An attention whose keys and values are the prompt's, computed before the first step."""

    def forward(self, stream: Tensor, x: Tensor, given: Given) -> Tensor | None:
        keys, values = given.pieces[self.to_k.name], given.pieces[self.to_v.name]
        queries = self.to_q(x, given.adapters)
        return self._mixed(stream, queries, keys, values, given.adapters)


class SelfAttention(Attention):
    """An attention among a half's tokens; rows that share products have one for all three."""

    merged: tuple[Tensor, Tensor | None] | None = None

    def forward(self, stream: Tensor, x: Tensor, adapters: Adapters | None) -> Tensor | None:
        layers = (self.to_q, self.to_k, self.to_v)
        if self.merged is None:
            queries, keys, values = (layer(x, adapters) for layer in layers)
        else:
            queries, keys, values = F.linear(x, *self.merged).chunk(3, -1)
            if adapters is not None:
                for layer, output in zip(layers, (queries, keys, values), strict=True):
                    adapters.add(output, x, layer.name)
        return self._mixed(stream, queries, self.split(keys), self.split(values), adapters)


class Modulation(Block):
    """A norm whose scale and shift come from the prompt and the micro-conditioning."""

    def __init__(self, channels: int, source: int, norm: nn.Module, bias: bool) -> None:
        super().__init__()
        self.linear = Linear(source, 2 * channels, bias=bias)
        self.norm = norm

    def forward(self, x: Tensor, delta: Tensor | None, given: Given) -> Tensor:
        """Of the residual stream ``x`` after ``delta`` is added to it in place."""
        return self.ops.add_norm(x, delta, self.norm, *given.pieces[self.linear.name])


class FeedForward(Block):
    def __init__(self, channels: int, inner: int, bias: bool) -> None:
        super().__init__()
        gate = nn.ModuleDict({"proj": Linear(channels, 2 * inner, bias=bias)})
        self.net: Any = nn.ModuleList([gate, nn.Identity(), Linear(inner, channels, bias=bias)])

    def forward(self, stream: Tensor, x: Tensor, adapters: Adapters | None) -> Tensor | None:
        gated = self.ops.geglu(self.net[0]["proj"](x, adapters))
        delta: Tensor | None = self.net[2].onto(stream, gated, adapters)
        return delta


class TransformerLayer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["hidden_size"], config["use_bias"]
        eps, affine = config["layer_norm_eps"], config["ln_elementwise_affine"]
        heads = config["num_attention_heads"]
        self.norm1 = Modulation(width, width, RMSNorm(width, eps, affine), bias)
        self.attn1 = SelfAttention(width, width, heads, bias)
        self.norm2 = Modulation(width, width, RMSNorm(width, eps, affine), bias)
        self.attn2 = PromptAttention(width, width, heads, bias)
        layer_norm = nn.LayerNorm(width, eps, elementwise_affine=affine, bias=bias)
        self.norm3 = Modulation(width, width, layer_norm, bias)
        self.ff = FeedForward(width, config["intermediate_size"], bias)

    def forward(self, x: Tensor, delta: Tensor | None, given: Given) -> Tensor | None:
        """Of the residual stream ``x``, moved on in place; what the next norm has to add to it."""
        delta = self.attn1(x, self.norm1(x, delta, given), given.adapters)
        delta = self.attn2(x, self.norm2(x, delta, given), given)
        out: Tensor | None = self.ff(x, self.norm3(x, delta, given), given.adapters)
        return out


class GlobalResponseNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, halves, tokens, channels)."""
        normed = x * x
        strength = normed.sum(2, keepdim=True).sqrt_()
        relative = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        torch.mul(x, relative, out=normed)
        return normed.mul_(self.gamma).add_(self.beta).add_(x)


class ResBlock(Block):
    """ConvNeXt: a depthwise convolution, then a feed-forward net over the channels."""

    taps: Tensor  # of the convolution, (9, channels)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["block_out_channels"], config["use_bias"]
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias)
        self.norm = RMSNorm(width, config["layer_norm_eps"], config["ln_elementwise_affine"])
        self.channelwise_linear_1 = Linear(width, 4 * width, bias=bias)
        self.channelwise_norm = GlobalResponseNorm(4 * width)
        self.channelwise_linear_2 = Linear(4 * width, width, bias=bias)
        self.cond_embeds_mapper = Linear(config["hidden_size"], 2 * width, bias=bias)

    def forward(self, x: Tensor, grid: tuple[int, int], given: Given) -> Tensor:
        inner = self.ops.mix_norm(x, grid, self.taps, self.depthwise.bias, self.norm)
        inner = self.channelwise_linear_1(inner, given.adapters)
        inner = self.ops.response(inner, self.channelwise_norm)
        inner = self.channelwise_linear_2(inner, given.adapters)
        return self.ops.add_modulate(x, inner, *given.pieces[self.cond_embeds_mapper.name])


class CrossBlock(Block):
    """Two attentions to the prompt, without a feed-forward net."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, source = config["block_out_channels"], config["hidden_size"]
        heads, bias = config["block_num_heads"], config["use_bias"]
        self.kv_mapper = Linear(source, width, bias=bias) if source != width else None
        self.norm1 = RMSNorm(width, 1e-6)
        self.attn1 = PromptAttention(width, width, heads, bias)
        self.norm2 = RMSNorm(width, 1e-6)
        self.attn2 = PromptAttention(width, width, heads, bias)

    @property
    def attentions(self) -> tuple[PromptAttention, PromptAttention]:
        return self.attn1, self.attn2

    def forward(self, x: Tensor, given: Given) -> Tensor | None:
        """Of the residual stream ``x``, moved on in place; what is still to be added to it."""
        delta = self.attn1(x, self.ops.add_norm(x, None, self.norm1), given)
        out: Tensor | None = self.attn2(x, self.ops.add_norm(x, delta, self.norm2), given)
        return out


class ConvBlock(nn.Module):
    """Pairs of a ResBlock and a CrossBlock, with a change of resolution before or after."""

    def __init__(self, config: Mapping[str, Any], *, down: bool, up: bool) -> None:
        super().__init__()
        count = range(config["num_res_blocks"])
        self.res_blocks = nn.ModuleList([ResBlock(config) for _ in count])
        self.attention_blocks = nn.ModuleList([CrossBlock(config) for _ in count])
        width, bias = config["block_out_channels"], config["use_bias"]
        self.downsample = self.upsample = None
        if down:
            self.downsample = Resample(config, nn.Conv2d(width, width, 2, 2, bias=bias))
        if up:
            self.upsample = Resample(config, nn.ConvTranspose2d(width, width, 2, 2, bias=bias))

    def forward(
        self, x: Tensor, grid: tuple[int, int], given: Given
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """(rows, halves, tokens, channels), what is still to be added to it, and the grid.

        The grid may come out halved or doubled.
        """
        delta: Tensor | None = None
        if self.downsample is not None:
            x, grid = self.downsample(x, grid)
        for res_block, cross_block in zip(self.res_blocks, self.attention_blocks, strict=True):
            stream = x if delta is None else x.add_(delta)
            x = res_block(stream, grid, given)
            delta = cross_block(x, given)
        if self.upsample is not None:
            x, grid = self.upsample(x if delta is None else x.add_(delta), grid)
            delta = None
        return x, delta, grid


class Resample(Block):
    """Half or, with a transposed convolution, twice the token grid."""

    def __init__(self, config: Mapping[str, Any], conv: nn.Module) -> None:
        super().__init__()
        eps, affine = config["layer_norm_eps"], config["ln_elementwise_affine"]
        self.norm = RMSNorm(config["block_out_channels"], eps, affine)
        self.conv = conv

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        normed, (height, width) = self.ops.add_norm(x, None, self.norm), grid
        if isinstance(self.conv, nn.ConvTranspose2d):
            return self.ops.double(normed, grid, self.conv), (2 * height, 2 * width)
        return self.ops.halve(normed, grid, self.conv), (height // 2, width // 2)


class Embed(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["in_channels"], config["use_bias"]
        self.embeddings = embedding(config["vocab_size"], width)
        self.layer_norm = RMSNorm(width, config["layer_norm_eps"], config["ln_elementwise_affine"])
        self.conv = nn.Conv2d(width, config["block_out_channels"], 1, bias=bias)

    def table(self) -> Tensor:
        """What every token id becomes: the embedding, its norm and the 1 x 1 convolution."""
        weight, bias = self.conv.weight.flatten(1), self.conv.bias
        return F.linear(self.layer_norm(self.embeddings.weight), weight, bias)


class Head(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["in_channels"], config["use_bias"]
        self.conv1 = nn.Conv2d(config["block_out_channels"], width, 1, bias=bias)
        self.layer_norm = RMSNorm(width, config["layer_norm_eps"], config["ln_elementwise_affine"])
        self.conv2 = nn.Conv2d(width, config["codebook_size"], 1, bias=bias)


class CondEmbed(nn.Module):
    def __init__(self, source: int, width: int, bias: bool) -> None:
        super().__init__()
        self.linear_1 = Linear(source, width, bias=bias)
        self.linear_2 = Linear(width, width, bias=bias)

    def forward(self, x: Tensor, adapters: Adapters | None) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x, adapters)), adapters)
        return out
