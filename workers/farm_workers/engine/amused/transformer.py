"""The U-ViT transformer: what depends on the prompt is computed once, the rest every step."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.amused.adapters import Adapters


@dataclass(frozen=True)
class Given:
    """What a pass reads beside the tokens."""

    pieces: Mapping[str, Tensor]  # of the prompts' conditioning, see Layout
    adapters: Adapters | None = None  # of the rows, where some row has one

    def __getitem__(self, name: str) -> Tensor:
        return self.pieces[name]

    @property
    def halves(self) -> int:
        """Of each row."""
        return next(iter(self.pieces.values())).shape[1]


class Ops(Protocol):
    """The work of a step, over (rows, halves, tokens, channels).

    A guided row that is computed by itself has two halves, without the prompt and with it. In a
    tile of fixed shape every half-slot is a row of one half.
    """

    together: bool  # rows share matrix products

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def add_norm(
        self,
        x: Tensor,
        delta: Tensor | None,
        norm: nn.Module,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Add ``delta`` to the residual stream ``x``, in place; its norm, perhaps modulated."""

    def geglu(self, x: Tensor) -> Tensor: ...
    def mix_norm(
        self, x: Tensor, grid: tuple[int, int], taps: Tensor, bias: Tensor | None, norm: nn.Module
    ) -> Tensor:
        """A depthwise 3 x 3 convolution, taps (9, channels), and a norm."""

    def response(self, x: Tensor, norm: nn.Module) -> Tensor:
        """GELU, then the global response norm."""

    def add_modulate(self, x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor) -> Tensor: ...
    def halve(self, x: Tensor, grid: tuple[int, int], conv: Any) -> Tensor: ...
    def double(self, x: Tensor, grid: tuple[int, int], conv: Any) -> Tensor: ...


class RowOps:
    """A row's bits do not depend on its neighbours, and are UVit2DModel's at batch 1.

    On a CPU the library picks its matrix kernel by the number of lines, so each row is a product
    by itself.
    """

    together = False

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) == 1:
            return F.linear(x, weight, bias)
        lines, weight = x.flatten(1, -2), weight.t()
        output = x.new_empty(*lines.shape[:2], weight.shape[1])
        for row, target in zip(lines.unbind(), output.unbind(), strict=True):
            if bias is None:
                torch.mm(row, weight, out=target)
            else:
                torch.addmm(bias, row, weight, out=target)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def add_norm(
        x: Tensor,
        delta: Tensor | None,
        norm: nn.Module,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        normed: Tensor = norm(x if delta is None else x.add_(delta))
        return normed if scale is None else normed.mul_(scale).add_(shift)

    @staticmethod
    def geglu(x: Tensor) -> Tensor:
        gated = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        for row, target in zip(x, gated, strict=True):
            value, gate = row.chunk(2, dim=-1)
            torch.mul(value, F.gelu(gate), out=target)
        return gated

    @staticmethod
    def mix_norm(
        x: Tensor, grid: tuple[int, int], taps: Tensor, bias: Tensor | None, norm: nn.Module
    ) -> Tensor:
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
        normed: Tensor = norm(each_row(F.gelu, x))
        return normed

    @staticmethod
    def add_modulate(x: Tensor, delta: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (delta.add_(x) * scale).add_(shift).contiguous()

    @staticmethod
    def halve(x: Tensor, grid: tuple[int, int], conv: Any) -> Tensor:
        return _convolved(x, grid, conv)

    @staticmethod
    def double(x: Tensor, grid: tuple[int, int], conv: Any) -> Tensor:
        return _convolved(x, grid, conv)


def each_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` of every row alone, where the width of a batch would change its bits."""
    return function(x) if len(x) == 1 else torch.cat([function(row) for row in x.split(1)])


def _convolved(x: Tensor, grid: tuple[int, int], conv: nn.Module) -> Tensor:
    images = [conv(row.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for row in x.unflatten(2, grid)]
    return torch.stack(images).flatten(2, 3).contiguous()


class Block(nn.Module):
    """A part of the transformer that knows how its work is done and where its pieces lie."""

    ops: Ops = RowOps()
    name = ""  # within the transformer, and of its pieces in ``Given``


class Linear(nn.Linear, Block):
    """A layer of every step."""

    def forward(self, input: Tensor, adapters: Adapters | None) -> Tensor:  # noqa: A002
        output = self.ops.linear(input, self.weight, self.bias)
        return output if adapters is None else adapters.add(output, input, self.name)


class PromptLinear(nn.Linear, Block):
    """A layer of the conditioning: its input is the prompt's, before the first step."""

    def forward(self, input: Tensor, adapters: Adapters | None) -> Tensor:  # noqa: A002
        output = super().forward(input)
        return output if adapters is None else adapters.add(output, input, self.name)


class RMSNorm(nn.Module):
    def __init__(self, channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """In float32 inside, with UVit2DModel's order of rounding."""
        variance = x.float().pow(2).mean(-1, keepdim=True)
        normed = x * torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return normed.to(x.dtype)
        return normed.to(self.weight.dtype).mul_(self.weight)


class Attention(nn.Module):
    """Projections of one attention."""

    def __init__(self, channels: int, source: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=bias)
        self.to_k = Linear(source, channels, bias=bias)
        self.to_v = Linear(source, channels, bias=bias)
        self.to_out = nn.ModuleList([Linear(channels, channels, bias=bias)])

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, adapters: Adapters | None
    ) -> Tensor:
        """Of queries (rows, halves, tokens, channels); keys and values are split into heads."""
        mixed = F.scaled_dot_product_attention(self.split(queries), keys, values)
        return self.to_out[0](mixed.transpose(1, 2).reshape(queries.shape), adapters)

    def split(self, x: Tensor) -> Tensor:
        """(rows, halves, tokens, channels) to (rows x halves, heads, tokens, channels of each)."""
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PromptAttention(Attention, Block):
    """An attention whose keys and values are the prompt's, computed before the first step."""

    def forward(self, x: Tensor, given: Given) -> Tensor:  # type: ignore[override]
        keys, values = given[f"{self.name}.keys"], given[f"{self.name}.values"]
        queries = self.to_q(x, given.adapters)
        return super().forward(queries, keys, values, given.adapters)


class SelfAttention(Attention):
    """An attention among a half's tokens; rows that share products have one for all three."""

    merged: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor, adapters: Adapters | None) -> Tensor:  # type: ignore[override]
        layers = (self.to_q, self.to_k, self.to_v)
        if self.merged is None:
            queries, keys, values = (layer(x, adapters) for layer in layers)
        else:
            queries, keys, values = F.linear(x, *self.merged).chunk(3, -1)
            if adapters is not None:
                for layer, output in zip(layers, (queries, keys, values), strict=True):
                    adapters.add(output, x, layer.name)
        return super().forward(queries, self.split(keys), self.split(values), adapters)


class Modulation(Block):
    """A norm whose scale and shift come from the prompt and the micro-conditioning."""

    def __init__(self, channels: int, source: int, norm: nn.Module, bias: bool) -> None:
        super().__init__()
        self.linear = PromptLinear(source, 2 * channels, bias=bias)
        self.norm = norm

    def forward(self, x: Tensor, delta: Tensor | None, given: Given) -> Tensor:
        """Of the residual stream ``x`` after ``delta`` is added to it in place."""
        scale, shift = given[f"{self.name}.scale"], given[f"{self.name}.shift"]
        return self.ops.add_norm(x, delta, self.norm, scale, shift)


class FeedForward(Block):
    def __init__(self, channels: int, inner: int, bias: bool) -> None:
        super().__init__()
        gate = nn.Module()
        gate.proj = Linear(channels, 2 * inner, bias=bias)
        self.net = nn.ModuleList([gate, nn.Identity(), Linear(inner, channels, bias=bias)])

    def forward(self, x: Tensor, adapters: Adapters | None) -> Tensor:
        return self.net[2](self.ops.geglu(self.net[0].proj(x, adapters)), adapters)


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

    def forward(self, x: Tensor, delta: Tensor | None, given: Given) -> tuple[Tensor, Tensor]:
        """The residual stream and what the next norm has to add to it."""
        mixed = self.attn1(self.norm1(x, delta, given), given.adapters)
        normed = self.norm2(x, mixed, given)
        return x, self.ff(self.norm3(x, self.attn2(normed, given), given), given.adapters)


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
        self.cond_embeds_mapper = PromptLinear(config["hidden_size"], 2 * width, bias=bias)

    def forward(self, x: Tensor, grid: tuple[int, int], given: Given) -> Tensor:
        inner = self.ops.mix_norm(x, grid, self.taps, self.depthwise.bias, self.norm)
        inner = self.channelwise_linear_1(inner, given.adapters)
        inner = self.ops.response(inner, self.channelwise_norm)
        inner = self.channelwise_linear_2(inner, given.adapters)
        scale, shift = given[f"{self.name}.scale"], given[f"{self.name}.shift"]
        return self.ops.add_modulate(x, inner, scale, shift)


class CrossBlock(Block):
    """Two attentions to the prompt, without a feed-forward net."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, source = config["block_out_channels"], config["hidden_size"]
        heads, bias = config["block_num_heads"], config["use_bias"]
        self.kv_mapper = PromptLinear(source, width, bias=bias) if source != width else None
        self.norm1 = RMSNorm(width, 1e-6)
        self.attn1 = PromptAttention(width, width, heads, bias)
        self.norm2 = RMSNorm(width, 1e-6)
        self.attn2 = PromptAttention(width, width, heads, bias)

    @property
    def attentions(self) -> tuple[PromptAttention, PromptAttention]:
        return self.attn1, self.attn2

    def forward(self, x: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        mixed = self.attn1(self.ops.add_norm(x, None, self.norm1), given)
        return x, self.attn2(self.ops.add_norm(x, mixed, self.norm2), given)


class ConvBlock(nn.Module):
    """Pairs of a ResBlock and a CrossBlock, with a change of resolution before or after."""

    def __init__(self, config: Mapping[str, Any], *, down: bool, up: bool) -> None:
        super().__init__()
        count = range(config["num_res_blocks"])
        self.res_blocks = nn.ModuleList([ResBlock(config) for _ in count])
        self.attention_blocks = nn.ModuleList([CrossBlock(config) for _ in count])
        width, bias = config["block_out_channels"], config["use_bias"]
        self.downsample = Resample(config, nn.Conv2d(width, width, 2, 2, bias=bias), down)
        self.upsample = Resample(config, nn.ConvTranspose2d(width, width, 2, 2, bias=bias), up)

    def forward(
        self, x: Tensor, grid: tuple[int, int], given: Given
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """(rows, halves, tokens, channels), what is still to be added to it, and the grid.

        The grid may come out halved or doubled.
        """
        delta: Tensor | None = None
        if self.downsample.present:
            x, grid = self.downsample(x, grid, halve=True)
        for res_block, cross_block in zip(self.res_blocks, self.attention_blocks, strict=True):
            stream = x if delta is None else x.add_(delta)
            x, delta = cross_block(res_block(stream, grid, given), given)
        if self.upsample.present:
            x, grid = self.upsample(x if delta is None else x.add_(delta), grid, halve=False)
            delta = None
        return x, delta, grid


class Resample(Block):
    """Half or twice the token grid; not used where the checkpoint has none."""

    def __init__(self, config: Mapping[str, Any], conv: nn.Module, present: bool) -> None:
        super().__init__()
        self.present = present
        if present:
            eps, affine = config["layer_norm_eps"], config["ln_elementwise_affine"]
            self.norm = RMSNorm(config["block_out_channels"], eps, affine)
            self.conv = conv

    def forward(
        self, x: Tensor, grid: tuple[int, int], *, halve: bool
    ) -> tuple[Tensor, tuple[int, int]]:
        normed, (height, width) = self.ops.add_norm(x, None, self.norm), grid
        if halve:
            return self.ops.halve(normed, grid, self.conv), (height // 2, width // 2)
        return self.ops.double(normed, grid, self.conv), (2 * height, 2 * width)


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
        self.linear_1 = PromptLinear(source, width, bias=bias)
        self.linear_2 = PromptLinear(width, width, bias=bias)

    def forward(self, x: Tensor, adapters: Adapters | None) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x, adapters)), adapters)


class Piece(NamedTuple):
    """Where one tensor of the prompt's conditioning lies in a half's packed vector."""

    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The packed vector of everything about a prompt that a step reads: one copy per admission.

    First all scales and shifts, then the keys and values of the transformer's layers, then those
    of the convolutional blocks: each kind lies together, so that one product computes it.
    """

    pieces: Mapping[str, Piece]
    size: int

    @classmethod
    def of(cls, *kinds: Iterable[tuple[str, tuple[int, ...]]]) -> "Layout":
        pieces, start = {}, 0
        for kind in kinds:
            for name, shape in kind:
                stop = start + math.prod(shape)
                pieces[name] = Piece(start, stop, shape)
                start = stop
            start = (start + 63) // 64 * 64  # attention kernels want aligned rows
        return cls(pieces, start)

    def region(self, packed: Tensor, names: Sequence[str]) -> Tensor:
        """The pieces of those names, which lie together, in (rows, size)."""
        return packed[:, self.pieces[names[0]].start : self.pieces[names[-1]].stop]

    def put(self, packed: Tensor, name: str, value: Tensor) -> None:
        self.region(packed, [name]).copy_(value.flatten(1))

    def views(self, packed: Tensor) -> Given:
        """The pieces of (rows, halves, size); keys and values as attention takes them."""
        found = {}
        for name, piece in self.pieces.items():
            view = packed[:, :, piece.start : piece.stop].unflatten(2, piece.shape)
            heads_first = len(piece.shape) == 3  # keys and values
            found[name] = view.flatten(0, 1).transpose(1, 2) if heads_first else view
        return Given(found)


class Transformer(nn.Module):
    """Loads UVit2DModel's weights by their own names; CPU fp32 logits are its bits at batch 1."""

    token_table: Tensor  # what every token id becomes

    def __init__(self, config: Mapping[str, Any], text_tokens: int) -> None:
        super().__init__()
        self.config = dict(config)
        width, channels = config["hidden_size"], config["block_out_channels"]
        bias, eps = config["use_bias"], config["layer_norm_eps"]
        affine = config["ln_elementwise_affine"]
        self.encoder_proj = PromptLinear(config["encoder_hidden_size"], width, bias=bias)
        self.encoder_proj_layer_norm = RMSNorm(width, eps, affine)
        self.embed = Embed(config)
        source = config["micro_cond_embed_dim"] + config["cond_embed_dim"]
        self.cond_embed = CondEmbed(source, width, bias)
        self.down_block = ConvBlock(config, down=config["downsample"], up=False)
        self.project_to_hidden_norm = RMSNorm(channels, eps, affine)
        self.project_to_hidden = Linear(channels, width, bias=bias)
        layers = range(config["num_hidden_layers"])
        self.transformer_layers = nn.ModuleList([TransformerLayer(config) for _ in layers])
        self.project_from_hidden_norm = RMSNorm(width, eps, affine)
        self.project_from_hidden = Linear(width, channels, bias=bias)
        self.up_block = ConvBlock(config, down=False, up=config["upsample"])
        self.mlm_layer = Head(config)
        self._ops: Ops = Block.ops
        self._products: Products | None = None
        for name, module in self.named_modules():
            if isinstance(module, Block):
                module.name = name
        modulations = list(self._modulations())
        attentions = [layer.attn2 for layer in self.transformer_layers]
        crossed = [one for block in self._crossed() for one in block.attentions]
        self.layout = Layout.of(
            (
                (f"{name}.{part}", (1, linear.out_features // 2))
                for name, linear in modulations
                for part in ("scale", "shift")
            ),
            _shapes(attentions, text_tokens),
            _shapes(crossed, text_tokens),
        )

    def _modulations(self) -> Iterator[tuple[str, PromptLinear]]:
        for name, module in self.named_modules():
            if isinstance(module, Modulation):
                yield name, module.linear
            elif isinstance(module, ResBlock):
                yield name, module.cond_embeds_mapper

    def _crossed(self) -> Iterator[CrossBlock]:
        for block in (self.down_block, self.up_block):
            yield from block.attention_blocks

    def ready(self, ops: Ops) -> None:
        """Called once when the weights are in: fixes how rows are computed, builds the tables."""
        self._ops = ops
        for module in self.modules():
            if isinstance(module, Block):
                module.ops = ops
            if isinstance(module, SelfAttention) and ops.together:
                module.merged = _stacked([module.to_q, module.to_k, module.to_v])
            if isinstance(module, ResBlock):
                taps = module.depthwise.weight[:, 0].permute(1, 2, 0).flatten(0, 1)
                module.register_buffer("taps", taps.contiguous(), persistent=False)
        self.register_buffer("token_table", self.embed.table().contiguous(), persistent=False)
        self._products = Products(self) if ops.together else None

    def condition(
        self, text: Tensor, pooled: Tensor, steps: Tensor, adapters: Adapters | None = None
    ) -> Tensor:
        """Everything a step needs of each prompt, packed: (prompts, size).

        Args:
            text: hidden states (prompts, text tokens, hidden).
            pooled: (prompts, pooled).
            steps: the micro-conditioning's sinusoids (prompts, width).
            adapters: of the prompts.
        """
        text = self.encoder_proj_layer_norm(self.encoder_proj(text, adapters))
        source = torch.cat([pooled, steps], dim=1).to(text.dtype)
        embedded = F.silu(self.cond_embed(source, adapters))
        packed = text.new_zeros(len(text), self.layout.size)
        if self._products is not None and adapters is None:
            self._products.fill(packed, text, embedded)
            return packed
        for name, linear in self._modulations():
            scale, shift = linear(embedded, adapters).chunk(2, dim=1)
            self.layout.put(packed, f"{name}.scale", 1 + scale)
            self.layout.put(packed, f"{name}.shift", shift)
        for layer in self.transformer_layers:
            self._put_keys(packed, layer.attn2, text, adapters)
        for block in self._crossed():
            mapped = text
            if block.kv_mapper is not None:
                mapped = block.kv_mapper(F.silu(text), adapters)
            for attention in block.attentions:
                self._put_keys(packed, attention, mapped, adapters)
        return packed

    def _put_keys(
        self,
        packed: Tensor,
        attention: PromptAttention,
        text: Tensor,
        adapters: Adapters | None,
    ) -> None:
        self.layout.put(packed, f"{attention.name}.keys", attention.to_k(text, adapters))
        self.layout.put(packed, f"{attention.name}.values", attention.to_v(text, adapters))

    def features(self, tokens: Tensor, given: Given, grid: tuple[int, int]) -> Tensor:
        """Token ids (rows, tokens) to (rows, halves, tokens, channels), ready for the head.

        A guided row's two halves differ in what is ``given`` alone.
        """
        ops = self._ops
        # One half until the first modulation, where the prompts begin to tell.
        x = F.embedding(tokens, self.token_table)[:, None]
        x, delta, grid = self.down_block(x, grid, given)
        if not self.down_block.res_blocks:
            x = x.expand(-1, given.halves, -1, -1).contiguous()
        x = ops.add_norm(x, delta, self.project_to_hidden_norm)
        x = self.project_to_hidden(x, given.adapters)
        delta = None
        for layer in self.transformer_layers:
            x, delta = layer(x, delta, given)
        x = ops.add_norm(x, delta, self.project_from_hidden_norm)
        x = self.project_from_hidden(x, given.adapters)
        x, delta, grid = self.up_block(x, grid, given)
        head = self.mlm_layer
        weight, bias = head.conv1.weight.flatten(1), head.conv1.bias
        x = ops.linear(x if delta is None else x.add_(delta), weight, bias)
        return ops.add_norm(x, None, head.layer_norm)

    def logits(self, features: Tensor) -> Tensor:
        """Scores over the codebook; of any choice of tokens, because each stands alone."""
        head = self.mlm_layer.conv2
        return F.linear(features, head.weight.flatten(1), head.bias)


def _shapes(
    attentions: Sequence[Attention], text_tokens: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for attention in attentions:
        for part, layer in (("keys", attention.to_k), ("values", attention.to_v)):
            heads = attention.heads
            yield f"{attention.name}.{part}", (text_tokens, heads, layer.out_features // heads)


class Products:
    """The weights of each kind of conditioning in one matrix, for rows that share products."""

    def __init__(self, model: Transformer) -> None:
        self._layout = model.layout
        linears = [linear for _, linear in model._modulations()]
        self._modulation = _stacked(linears)
        # A scale is one plus what the layer gives.
        ones = [
            torch.cat([torch.ones(half), torch.zeros(half)])
            for half in (linear.out_features // 2 for linear in linears)
        ]
        self._ones = torch.cat(ones).to(self._modulation[0])
        self._layers = _stacked(_keys_and_values([one.attn2 for one in model.transformer_layers]))
        blocks = list(model._crossed())
        self._blocks = [_stacked(_keys_and_values(block.attentions)) for block in blocks]
        mappers = [block.kv_mapper for block in blocks if block.kv_mapper is not None]
        self._mapper = _stacked(mappers) if mappers else None
        names = list(model.layout.pieces)
        counts = (2 * len(linears), 2 * len(model.transformer_layers), 4 * len(blocks))
        ends = list(itertools.accumulate(counts))
        self._names = [names[: ends[0]], names[ends[0] : ends[1]], names[ends[1] :]]

    def fill(self, packed: Tensor, text: Tensor, embedded: Tensor) -> None:
        modulations, layers, blocks = self._names
        region = self._layout.region(packed, modulations)
        torch.add(F.linear(embedded, *self._modulation), self._ones, out=region)
        self._put(packed, layers, F.linear(text, *self._layers))
        if not self._blocks:
            return
        texts = [text] * len(self._blocks)
        if self._mapper is not None:
            texts = list(F.linear(F.silu(text), *self._mapper).chunk(len(self._blocks), -1))
        products = [
            F.linear(mapped, *weights) for mapped, weights in zip(texts, self._blocks, strict=True)
        ]
        self._put(packed, blocks, torch.cat(products, -1))

    def _put(self, packed: Tensor, names: Sequence[str], products: Tensor) -> None:
        """Keys and values (prompts, text tokens, all their channels), each piece by itself."""
        count = len(names)
        region = self._layout.region(packed, names).unflatten(1, (count, products.shape[1], -1))
        region.copy_(products.unflatten(-1, (count, -1)).transpose(1, 2))


def _keys_and_values(attentions: Iterable[Attention]) -> list[nn.Linear]:
    return [layer for one in attentions for layer in (one.to_k, one.to_v)]


def _stacked(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Their weights as one; each layer keeps a view of its part."""
    weight = torch.cat([linear.weight for linear in linears])
    parts = weight.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    if linears[0].bias is None:
        return weight, None
    return weight, torch.cat([linear.bias for linear in linears])


def sinusoids(numbers: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of each number at falling frequencies, in float32."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = numbers[:, None].float() * torch.exp(exponent / half)[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
