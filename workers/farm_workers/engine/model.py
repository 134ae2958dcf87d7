"""The U-ViT transformer: what depends on the prompt is computed once, the rest every step."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine import kernels


class RowLinear(nn.Linear):
    """A linear layer that gives a row the same bits whatever rows stand beside it.

    On a CPU the library picks its matrix kernel by the number of lines, so each row (both halves
    of a guided one) is a product by itself; on a GPU the batch has one fixed shape.
    """

    together = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Linear's name)
        return multiply_rows(self.together, input, self.weight, self.bias)


def multiply_rows(together: bool, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(rows, ..., channels) by a matrix, one product for each row unless ``together``."""
    if together or len(x) == 1:
        return F.linear(x, weight, bias)
    lines, weight = x.flatten(1, -2), weight.t()
    output = x.new_empty(*lines.shape[:2], weight.shape[1])
    for row, target in zip(lines.unbind(), output.unbind(), strict=True):
        if bias is None:
            torch.mm(row, weight, out=target)
        else:
            torch.addmm(bias, row, weight, out=target)
    return output.view(*x.shape[:-1], -1)


def each_row(together: bool, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` of the batch, or of every row alone where widths would change its bits."""
    if together or len(x) == 1:
        return function(x)
    return torch.cat([function(row) for row in x.split(1)])


class RMSNorm(nn.Module):
    def __init__(self, channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return kernels.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Projections of one attention; keys and values may come from the prompt's cache."""

    def __init__(self, channels: int, source: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = RowLinear(channels, channels, bias=bias)
        self.to_k = RowLinear(source, channels, bias=bias)
        self.to_v = RowLinear(source, channels, bias=bias)
        self.to_out = nn.ModuleList([RowLinear(channels, channels, bias=bias)])

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(self.split(self.to_q(x)), keys, values)
        return self.to_out[0](mixed.transpose(1, 2).reshape(x.shape))

    def split(self, x: Tensor) -> Tensor:
        """(rows, halves, tokens, channels) to (rows x halves, heads, tokens, channels of each)."""
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def shapes(self, text_tokens: int) -> Iterator[tuple[int, ...]]:
        for layer in (self.to_k, self.to_v):
            yield text_tokens, self.heads, layer.out_features // self.heads

    def prepare(self, text: Tensor) -> Iterator[Tensor]:
        yield self.to_k(text)
        yield self.to_v(text)


class Modulation(nn.Module):
    """A norm whose scale and shift come from the prompt and the micro-conditioning."""

    def __init__(self, channels: int, source: int, norm: nn.Module, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(source, 2 * channels, bias=bias)
        self.norm = norm

    def forward(self, x: Tensor, delta: Tensor | None, given: Iterator[Tensor]) -> Tensor:
        """Of the residual stream ``x`` after ``delta`` is added to it in place."""
        return kernels.add_norm_modulate(x, delta, self.norm, next(given), next(given))


def scale_and_shift(layer: nn.Linear, pooled: Tensor) -> Iterator[Tensor]:
    scale, shift = layer(F.silu(pooled)).chunk(2, dim=1)
    yield 1 + scale
    yield shift


class FeedForward(nn.Module):
    together = False

    def __init__(self, channels: int, inner: int, bias: bool) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = RowLinear(channels, 2 * inner, bias=bias)
        self.net = nn.ModuleList([gate, nn.Identity(), RowLinear(inner, channels, bias=bias)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[0].proj(x)
        if self.together or len(x) == 1:
            return self.net[2](kernels.geglu(x))
        gated = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        for row, target in zip(x, gated, strict=True):
            value, gate = row.chunk(2, dim=-1)
            torch.mul(value, F.gelu(gate), out=target)
        return self.net[2](gated)


class TransformerLayer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["hidden_size"], config["use_bias"]
        eps, affine = config["layer_norm_eps"], config["ln_elementwise_affine"]
        heads = config["num_attention_heads"]
        self.norm1 = Modulation(width, width, RMSNorm(width, eps, affine), bias)
        self.attn1 = Attention(width, width, heads, bias)
        self.norm2 = Modulation(width, width, RMSNorm(width, eps, affine), bias)
        self.attn2 = Attention(width, width, heads, bias)
        layer_norm = nn.LayerNorm(width, eps, elementwise_affine=affine, bias=bias)
        self.norm3 = Modulation(width, width, layer_norm, bias)
        self.ff = FeedForward(width, config["intermediate_size"], bias)

    def forward(self, x: Tensor, given: Iterator[Tensor]) -> Tensor:
        normed = self.norm1(x, None, given)
        split = self.attn1.split
        keys, values = split(self.attn1.to_k(normed)), split(self.attn1.to_v(normed))
        normed = self.norm2(x, self.attn1(normed, keys, values), given)
        mixed = self.attn2(normed, next(given), next(given))
        return self.ff(self.norm3(x, mixed, given)).add_(x)

    def shapes(self, text_tokens: int) -> Iterator[tuple[int, ...]]:
        width = (1, self.norm1.linear.out_features // 2)
        yield from (width, width, width, width)
        yield from self.attn2.shapes(text_tokens)
        yield from (width, width)

    def prepare(self, text: Tensor, pooled: Tensor) -> Iterator[Tensor]:
        yield from scale_and_shift(self.norm1.linear, pooled)
        yield from scale_and_shift(self.norm2.linear, pooled)
        yield from self.attn2.prepare(text)
        yield from scale_and_shift(self.norm3.linear, pooled)


class GlobalResponseNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, halves, tokens, channels)."""
        strength = (x * x).sum(2, keepdim=True).sqrt()
        relative = strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)
        return (x * relative).mul_(self.gamma).add_(self.beta).add_(x)


class ResBlock(nn.Module):
    """ConvNeXt: a depthwise convolution, then a feed-forward net over the channels."""

    together = False

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["block_out_channels"], config["use_bias"]
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias)
        self.norm = RMSNorm(width, config["layer_norm_eps"], config["ln_elementwise_affine"])
        self.channelwise_linear_1 = RowLinear(width, 4 * width, bias=bias)
        self.channelwise_norm = GlobalResponseNorm(4 * width)
        self.channelwise_linear_2 = RowLinear(4 * width, width, bias=bias)
        self.cond_embeds_mapper = nn.Linear(config["hidden_size"], 2 * width, bias=bias)

    def forward(self, x: Tensor, grid: tuple[int, int], given: Iterator[Tensor]) -> Tensor:
        inner = kernels.add_norm(self._mix(x, grid), None, self.norm)
        inner = each_row(self.together, F.gelu, self.channelwise_linear_1(inner))
        inner = self.channelwise_linear_2(self.channelwise_norm(inner)).add_(x)
        return kernels.modulate(inner, next(given), next(given)).contiguous()

    def _mix(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        image = x.flatten(0, 1).unflatten(1, grid)
        if self.together:
            return convolve(self.depthwise, image).contiguous().view(x.shape)
        # The library's depthwise kernel depends on the batch; nine shifted products do not.
        (height, width), conv = grid, self.depthwise
        padded, taps = F.pad(image, (0, 0, 1, 1, 1, 1)), conv.weight[:, 0].permute(1, 2, 0)
        mixed = padded[:, :height, :width] * taps[0, 0]
        for top, left in itertools.islice(itertools.product(range(3), range(3)), 1, None):
            window = padded[:, top : top + height, left : left + width]
            mixed.addcmul_(window, taps[top, left])
        return (mixed if conv.bias is None else mixed.add_(conv.bias)).view(x.shape)


def convolve(layer: nn.Module, image: Tensor) -> Tensor:
    """A convolution over (images, height, width, channels)."""
    return layer(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class CrossBlock(nn.Module):
    """Two attentions to the prompt, without a feed-forward net."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, source = config["block_out_channels"], config["hidden_size"]
        heads, bias = config["block_num_heads"], config["use_bias"]
        self.kv_mapper = nn.Linear(source, width, bias=bias) if source != width else None
        self.norm1 = RMSNorm(width, 1e-6)
        self.attn1 = Attention(width, width, heads, bias)
        self.norm2 = RMSNorm(width, 1e-6)
        self.attn2 = Attention(width, width, heads, bias)

    def forward(self, x: Tensor, given: Iterator[Tensor]) -> Tensor:
        mixed = self.attn1(kernels.add_norm(x, None, self.norm1), next(given), next(given))
        normed = kernels.add_norm(x, mixed, self.norm2)
        return self.attn2(normed, next(given), next(given)).add_(x)

    def prepare(self, text: Tensor) -> Iterator[Tensor]:
        if self.kv_mapper is not None:
            text = self.kv_mapper(F.silu(text))
        yield from self.attn1.prepare(text)
        yield from self.attn2.prepare(text)


class ConvBlock(nn.Module):
    """Pairs of a ResBlock and a CrossBlock, with a change of resolution before or after."""

    together = False

    def __init__(self, config: Mapping[str, Any], *, down: bool, up: bool) -> None:
        super().__init__()
        count = range(config["num_res_blocks"])
        self.res_blocks = nn.ModuleList([ResBlock(config) for _ in count])
        self.attention_blocks = nn.ModuleList([CrossBlock(config) for _ in count])
        width, bias = config["block_out_channels"], config["use_bias"]
        self.downsample = Resample(config, nn.Conv2d(width, width, 2, 2, bias=bias), down)
        self.upsample = Resample(config, nn.ConvTranspose2d(width, width, 2, 2, bias=bias), up)

    def forward(
        self, x: Tensor, grid: tuple[int, int], given: Iterator[Tensor]
    ) -> tuple[Tensor, tuple[int, int]]:
        """(rows, halves, tokens, channels) and their grid, which may come out halved or doubled."""
        x, grid = self.downsample(x, grid)
        for res_block, cross_block in zip(self.res_blocks, self.attention_blocks, strict=True):
            x = cross_block(res_block(x, grid, given), given)
        return self.upsample(x, grid)

    def shapes(self, text_tokens: int) -> Iterator[tuple[int, ...]]:
        for res_block, cross_block in zip(self.res_blocks, self.attention_blocks, strict=True):
            width = (1, res_block.cond_embeds_mapper.out_features // 2)
            yield from (width, width)
            yield from cross_block.attn1.shapes(text_tokens)
            yield from cross_block.attn2.shapes(text_tokens)

    def prepare(self, text: Tensor, pooled: Tensor) -> Iterator[Tensor]:
        for res_block, cross_block in zip(self.res_blocks, self.attention_blocks, strict=True):
            yield from scale_and_shift(res_block.cond_embeds_mapper, pooled)
            yield from cross_block.prepare(text)


class Resample(nn.Module):
    """Half or twice the token grid; nothing at all where the checkpoint has none."""

    together = False

    def __init__(self, config: Mapping[str, Any], conv: nn.Module, present: bool) -> None:
        super().__init__()
        self.present = present
        if present:
            eps, affine = config["layer_norm_eps"], config["ln_elementwise_affine"]
            self.norm = RMSNorm(config["block_out_channels"], eps, affine)
            self.conv = conv

    def forward(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        if not self.present:
            return x, grid
        images = self.norm(x).unflatten(2, grid)
        if self.together:
            images = convolve(self.conv, images.flatten(0, 1)).unflatten(0, x.shape[:2])
        else:
            images = torch.stack([convolve(self.conv, row) for row in images])
        return images.flatten(2, 3).contiguous(), (images.shape[2], images.shape[3])


class Embed(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, bias = config["in_channels"], config["use_bias"]
        self.embeddings = nn.Embedding(config["vocab_size"], width)
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
        self.linear_1 = nn.Linear(source, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Piece(NamedTuple):
    """Where one tensor of the prompt's conditioning lies in a row's packed vector."""

    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The packed vector of everything about a prompt that a step reads: one copy per admission."""

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, shapes: Iterator[tuple[int, ...]]) -> "Layout":
        pieces, start = [], 0
        for shape in shapes:
            stop = start + math.prod(shape)
            pieces.append(Piece(start, stop, shape))
            start = (stop + 63) // 64 * 64  # attention kernels want aligned rows
        return cls(tuple(pieces))

    @property
    def size(self) -> int:
        return (self.pieces[-1].stop + 63) // 64 * 64

    def pack(self, tensors: Iterator[Tensor], rows: int, like: Tensor) -> Tensor:
        packed = like.new_zeros(rows, self.size)
        for piece, tensor in zip(self.pieces, tensors, strict=True):
            packed[:, piece.start : piece.stop] = tensor.flatten(1)
        return packed

    def views(self, packed: Tensor) -> list[Tensor]:
        """The pieces of (rows, halves, size); keys and values as attention takes them."""
        found = []
        for piece in self.pieces:
            view = packed[:, :, piece.start : piece.stop].unflatten(2, piece.shape)
            heads_first = len(piece.shape) == 3  # keys and values
            found.append(view.flatten(0, 1).transpose(1, 2) if heads_first else view)
        return found


class Transformer(nn.Module):
    """Loads UVit2DModel's weights by their own names; CPU fp32 logits are its bits at batch 1."""

    def __init__(self, config: Mapping[str, Any], text_tokens: int) -> None:
        super().__init__()
        self.config = dict(config)
        width, channels = config["hidden_size"], config["block_out_channels"]
        bias, eps = config["use_bias"], config["layer_norm_eps"]
        affine = config["ln_elementwise_affine"]
        self.encoder_proj = nn.Linear(config["encoder_hidden_size"], width, bias=bias)
        self.encoder_proj_layer_norm = RMSNorm(width, eps, affine)
        self.embed = Embed(config)
        source = config["micro_cond_embed_dim"] + config["cond_embed_dim"]
        self.cond_embed = CondEmbed(source, width, bias)
        self.down_block = ConvBlock(config, down=config["downsample"], up=False)
        self.project_to_hidden_norm = RMSNorm(channels, eps, affine)
        self.project_to_hidden = RowLinear(channels, width, bias=bias)
        layers = range(config["num_hidden_layers"])
        self.transformer_layers = nn.ModuleList([TransformerLayer(config) for _ in layers])
        self.project_from_hidden_norm = RMSNorm(width, eps, affine)
        self.project_from_hidden = RowLinear(width, channels, bias=bias)
        self.up_block = ConvBlock(config, down=False, up=config["upsample"])
        self.mlm_layer = Head(config)
        self.layout = Layout.of(self._shapes(text_tokens))
        self.together = False

    def _shapes(self, text_tokens: int) -> Iterator[tuple[int, ...]]:
        yield from self.down_block.shapes(text_tokens)
        for layer in self.transformer_layers:
            yield from layer.shapes(text_tokens)
        yield from self.up_block.shapes(text_tokens)

    def ready(self, *, together: bool) -> None:
        """Called once when the weights are in: fixes how rows are computed, builds the table."""
        for module in self.modules():
            if hasattr(module, "together"):
                module.together = together
        self.register_buffer("token_table", self.embed.table().contiguous(), persistent=False)

    def condition(self, text: Tensor, pooled: Tensor, micro: Tensor) -> Tensor:
        """Everything a step needs of the prompt, packed: one vector per row."""
        text = self.encoder_proj_layer_norm(self.encoder_proj(text))
        steps = sinusoids(micro.flatten(), self.config["micro_cond_encode_dim"])
        embedded = torch.cat([pooled, steps.reshape(len(pooled), -1)], dim=1).to(text.dtype)
        embedded = self.cond_embed(embedded)
        return self.layout.pack(self._prepare(text, embedded), len(text), text)

    def _prepare(self, text: Tensor, pooled: Tensor) -> Iterator[Tensor]:
        yield from self.down_block.prepare(text, pooled)
        for layer in self.transformer_layers:
            yield from layer.prepare(text, pooled)
        yield from self.up_block.prepare(text, pooled)

    def features(self, tokens: Tensor, given: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Token ids (rows, tokens) to (rows, halves, tokens, channels), ready for the head.

        A guided row has two halves, which differ in what is ``given`` alone.
        """
        pieces, halves = iter(given), given[0].shape[1]
        # One half until the first modulation, where the prompts begin to tell.
        x = F.embedding(tokens, self.token_table)[:, None]
        x, grid = self.down_block(x, grid, pieces)
        if not self.down_block.res_blocks:
            x = x.expand(-1, halves, -1, -1).contiguous()
        x = self.project_to_hidden(kernels.add_norm(x, None, self.project_to_hidden_norm))
        for layer in self.transformer_layers:
            x = layer(x, pieces)
        x = self.project_from_hidden(kernels.add_norm(x, None, self.project_from_hidden_norm))
        x, grid = self.up_block(x, grid, pieces)
        head = self.mlm_layer
        weight, bias = head.conv1.weight.flatten(1), head.conv1.bias
        x = multiply_rows(self.together, x, weight, bias)
        return kernels.add_norm(x, None, head.layer_norm)

    def logits(self, features: Tensor) -> Tensor:
        """Scores over the codebook; of any choice of tokens, because each stands alone."""
        head = self.mlm_layer.conv2
        return F.linear(features, head.weight.flatten(1), head.bias)


def sinusoids(numbers: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of each number at falling frequencies, in float32."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = numbers[:, None].float() * torch.exp(exponent / half)[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
