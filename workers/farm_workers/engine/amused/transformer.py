"""The U-ViT transformer: what depends on the prompt is computed once, the rest every step."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.amused.adapters import Adapters
from farm_workers.engine.amused.layers import (
    Attention,
    Block,
    CondEmbed,
    ConvBlock,
    CrossBlock,
    Embed,
    Given,
    Head,
    Linear,
    Modulation,
    Ops,
    PromptAttention,
    ResBlock,
    RMSNorm,
    SelfAttention,
    TransformerLayer,
)


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
        self.encoder_proj = Linear(config["encoder_hidden_size"], width, bias=bias)
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
        self._ops = Block.ops
        for name, module in self.named_modules():
            if isinstance(module, Block):
                module.name = name
        self.layout = Layout.of(
            (
                (f"{name}.{part}", (1, linear.out_features // 2))
                for name, linear in self.modulations()
                for part in ("scale", "shift")
            ),
            _shapes(self.attentions(), text_tokens),
            _shapes([one for block in self.crossed() for one in block.attentions], text_tokens),
        )

    def modulations(self) -> Iterator[tuple[str, Linear]]:
        for name, module in self.named_modules():
            if isinstance(module, Modulation):
                yield name, module.linear
            elif isinstance(module, ResBlock):
                yield name, module.cond_embeds_mapper

    def attentions(self) -> list[PromptAttention]:
        """To the prompt, of the transformer's layers."""
        layers = (layer for layer in self.transformer_layers if isinstance(layer, TransformerLayer))
        return [layer.attn2 for layer in layers]

    def crossed(self) -> list[CrossBlock]:
        """The blocks that attend to the prompt beside the convolutions."""
        return [one for one in self.modules() if isinstance(one, CrossBlock)]

    def step_layers(self) -> frozenset[str]:
        """Names of the linear layers in ``features``; all others are in ``condition`` alone."""
        attentions = [
            *self.attentions(),
            *(one for block in self.crossed() for one in block.attentions),
        ]
        prompt = [self.encoder_proj, self.cond_embed.linear_1, self.cond_embed.linear_2]
        prompt += [linear for _, linear in self.modulations()] + _keys_and_values(attentions)
        prompt += [block.kv_mapper for block in self.crossed() if block.kv_mapper is not None]
        linears = {module.name for module in self.modules() if isinstance(module, Linear)}
        return frozenset(linears - {linear.name for linear in prompt})

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
        shared = Products(self, together=True) if ops.together else None
        self._alone = Products(self, together=False)  # after it, which has moved the weights
        self._products = shared or self._alone

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
        products = self._products if adapters is None else self._alone
        products.fill(packed, text, embedded, adapters)
        return packed

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


class Group:
    """Layers whose products are one, and the pieces of the layout that these fill.

    Their weights become one; each layer keeps a view of its part.
    """

    def __init__(self, layers: Sequence[Linear], pieces: Sequence[str]) -> None:
        self.pieces, self._layer = pieces, layers[0].name
        self.weight, self._bias = _stacked(layers)

    def __call__(self, x: Tensor, adapters: Adapters | None) -> Tensor:
        product = F.linear(x, self.weight, self._bias)
        return product if adapters is None else adapters.add(product, x, self._layer)


class Products:
    """How a prompt's conditioning is made.

    Rows that share products have one matrix of each kind. Else each layer is a product by itself,
    because its width may change its bits; adapters change each layer by itself too.
    """

    def __init__(self, model: Transformer, *, together: bool) -> None:
        self._layout, self._together = model.layout, together
        pieces = iter(model.layout.pieces)
        self._modulations = self._groups([one for _, one in model.modulations()], pieces, 2)
        # A scale is one plus what the layer gives.
        ones = [
            torch.full(model.layout.pieces[name].shape, name.endswith(".scale"))
            for group in self._modulations
            for name in group.pieces
        ]
        self._ones = torch.cat(ones, 1).to(self._modulations[0].weight)
        self._layers = self._groups(_keys_and_values(model.attentions()), pieces)
        blocks = model.crossed()
        self._blocks = [self._groups(_keys_and_values(one.attentions), pieces) for one in blocks]
        mappers = [block.kv_mapper for block in blocks if block.kv_mapper is not None]
        self._mappers = self._groups(mappers, iter(()))

    def _groups(
        self, layers: Sequence[Linear], pieces: Iterator[str], each: int = 1
    ) -> list[Group]:
        """Of layers that fill so many pieces each, which come next."""
        size = max(len(layers), 1) if self._together else 1
        parts = [layers[first : first + size] for first in range(0, len(layers), size)]
        return [Group(part, list(itertools.islice(pieces, each * len(part)))) for part in parts]

    def fill(
        self, packed: Tensor, text: Tensor, embedded: Tensor, adapters: Adapters | None
    ) -> None:
        """Write all pieces of ``packed`` (prompts, size)."""
        for group in self._modulations:
            ones, region = (self._layout.region(one, group.pieces) for one in (self._ones, packed))
            torch.add(group(embedded, adapters), ones, out=region)
        for group in self._layers:
            self._put(packed, group.pieces, group(text, adapters))
        for mapped, groups in zip(self._mapped(text, adapters), self._blocks, strict=True):
            for group in groups:
                self._put(packed, group.pieces, group(mapped, adapters))

    def _mapped(self, text: Tensor, adapters: Adapters | None) -> list[Tensor]:
        """The text as each block's keys and values are made of it."""
        if not self._mappers:
            return [text] * len(self._blocks)
        source = F.silu(text)
        mapped = [group(source, adapters) for group in self._mappers]
        # By row each stays as it was made: the product of a strided view may have other bits.
        return mapped if len(mapped) > 1 else list(mapped[0].chunk(len(self._blocks), -1))

    def _put(self, packed: Tensor, pieces: Sequence[str], products: Tensor) -> None:
        """Keys and values (prompts, text tokens, all their channels), each piece by itself."""
        region = self._layout.region(packed, pieces)
        region = region.unflatten(1, (len(pieces), products.shape[1], -1))
        region.copy_(products.unflatten(-1, (len(pieces), -1)).transpose(1, 2))


def _keys_and_values(attentions: Iterable[Attention]) -> list[Linear]:
    return [layer for one in attentions for layer in (one.to_k, one.to_v)]


def _stacked(linears: Sequence[Linear]) -> tuple[Tensor, Tensor | None]:
    """Their weights as one; each layer keeps a view of its part."""
    if len(linears) == 1:
        return linears[0].weight, linears[0].bias
    weight = torch.cat([linear.weight for linear in linears])
    parts = weight.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return weight, None if linears[0].bias is None else torch.cat([one.bias for one in linears])


def sinusoids(numbers: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of each number at falling frequencies, in float32."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=numbers.device)
    angles = numbers[:, None].float() * torch.exp(exponent / half)[None, :]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
