"""The U-ViT transformer: what depends on the prompt is computed once, the rest every step."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.amused.adapters import Adapters
from farm_workers.engine.amused.layers import (
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
    """Where what one layer makes of the prompt lies in a half's packed vector."""

    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """The packed vector of everything about a prompt that a step reads: one copy per admission.

    It has a piece for each layer that is computed from the prompt alone: first the modulations,
    then keys and values of the transformer's layers, then those of the convolutional blocks. Each
    kind lies together, so that one product computes it.
    """

    pieces: Mapping[str, Piece]  # by the layer's name
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

    def region(self, packed: Tensor, layers: Sequence[str]) -> Tensor:
        """The pieces of those layers, which lie together, in (rows, size)."""
        return packed[:, self.pieces[layers[0]].start : self.pieces[layers[-1]].stop]

    def views(self, packed: Tensor) -> Given:
        """The pieces of (rows, halves, size), as the blocks take them."""
        found: dict[str, Any] = {}
        for name, piece in self.pieces.items():
            view = packed[:, :, piece.start : piece.stop].unflatten(2, piece.shape)
            heads = len(piece.shape) == 3  # of keys or values; else a scale and a shift
            found[name] = view.flatten(0, 1).transpose(1, 2) if heads else view.chunk(2, -1)
        return Given(found, packed.shape[1])


class Transformer(nn.Module):
    """Loads UVit2DModel's weights by their own names; CPU fp32 logits are its bits at batch 1."""

    token_table: Tensor  # what every token id becomes

    def __init__(self, config: Mapping[str, Any], text_tokens: int) -> None:
        super().__init__()
        config = self.config = {**config, "layer_norm_eps": float(config["layer_norm_eps"])}
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
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.name = name
        crossed = [one for block in self.crossed() for one in block.attentions]
        self.layout = Layout.of(
            [(layer.name, (1, layer.out_features)) for layer in self.modulations()],
            _keys_and_values_of(self.attentions(), text_tokens),
            _keys_and_values_of(crossed, text_tokens),
        )

    @torch.inference_mode()
    def ready(self, ops: Ops) -> None:
        """Build the tables of loaded weights; rows are then computed by ``ops``."""
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

    def modulations(self) -> list[Linear]:
        found = (one for one in self.modules() if isinstance(one, Modulation | ResBlock))
        return [
            one.linear if isinstance(one, Modulation) else one.cond_embeds_mapper for one in found
        ]

    def attentions(self) -> list[PromptAttention]:
        """To the prompt, of the transformer's layers."""
        return [one.attn2 for one in self.modules() if isinstance(one, TransformerLayer)]

    def crossed(self) -> list[CrossBlock]:
        """The blocks that attend to the prompt beside the convolutions."""
        return [one for one in self.modules() if isinstance(one, CrossBlock)]

    def step_layers(self) -> frozenset[str]:
        """Names of the linear layers in ``features``; all others are in ``condition`` alone."""
        before = {"encoder_proj", "cond_embed.linear_1", "cond_embed.linear_2"}
        before |= {block.kv_mapper.name for block in self.crossed() if block.kv_mapper is not None}
        linears = {module.name for module in self.modules() if isinstance(module, Linear)}
        return frozenset(linears - before - self.layout.pieces.keys())

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
            delta = layer(x, delta, given)
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


class Group:
    """Layers whose products are one: their weights become one, each keeps a view of its part."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.layers = [layer.name for layer in layers]
        self.weight, self._bias = _stacked(layers)

    def __call__(self, x: Tensor, adapters: Adapters | None) -> Tensor:
        product = F.linear(x, self.weight, self._bias)
        return product if adapters is None else adapters.add(product, x, self.layers[0])


class Products:
    """How a prompt's conditioning is made.

    Rows that share products have one matrix of each kind. Else each layer is a product by itself,
    because its width may change its bits; adapters change each layer by itself too.
    """

    def __init__(self, model: Transformer, *, together: bool) -> None:
        self._layout, self._together = model.layout, together
        modulations, blocks = model.modulations(), model.crossed()
        # A scale is one plus what the layer gives.
        halves = [
            torch.full((1, one.out_features // 2), on) for one in modulations for on in (1, 0)
        ]
        self._ones = torch.cat(halves, 1).to(modulations[0].weight)
        self._modulations = self._groups(modulations)
        self._layers = self._groups(_keys_and_values(model.attentions()))
        self._blocks = [self._groups(_keys_and_values(block.attentions)) for block in blocks]
        mappers = [block.kv_mapper for block in blocks if block.kv_mapper is not None]
        self._mappers = self._groups(mappers)

    def _groups(self, layers: Sequence[Linear]) -> list[Group]:
        size = max(len(layers), 1) if self._together else 1
        return [Group(layers[first : first + size]) for first in range(0, len(layers), size)]

    def fill(
        self, packed: Tensor, text: Tensor, embedded: Tensor, adapters: Adapters | None
    ) -> None:
        """Write all pieces of ``packed`` (prompts, size)."""
        for group in self._modulations:
            ones, region = (self._layout.region(one, group.layers) for one in (self._ones, packed))
            torch.add(group(embedded, adapters), ones, out=region)
        texts = [text, *self._mapped(text, adapters)]
        for source, groups in zip(texts, (self._layers, *self._blocks), strict=True):
            for group in groups:
                # Keys and values (prompts, text tokens, all their channels), each by itself.
                product = group(source, adapters).unflatten(-1, (len(group.layers), -1))
                region = self._layout.region(packed, group.layers)
                region = region.unflatten(1, (len(group.layers), product.shape[1], -1))
                region.copy_(product.transpose(1, 2))

    def _mapped(self, text: Tensor, adapters: Adapters | None) -> list[Tensor]:
        """The text as each block's keys and values are made of it."""
        if not self._mappers:
            return [text] * len(self._blocks)
        source = F.silu(text)
        mapped = [group(source, adapters) for group in self._mappers]
        # By row each stays as it was made: the product of a strided view may have other bits.
        return mapped if len(mapped) > 1 else list(mapped[0].chunk(len(self._blocks), -1))


def _keys_and_values(attentions: Iterable[PromptAttention]) -> list[Linear]:
    return [layer for one in attentions for layer in (one.to_k, one.to_v)]


def _keys_and_values_of(
    attentions: Iterable[PromptAttention], text_tokens: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Their layers' names and the shape of a prompt's keys or values."""
    for attention in attentions:
        for layer in (attention.to_k, attention.to_v):
            yield layer.name, (text_tokens, attention.heads, layer.out_features // attention.heads)


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
