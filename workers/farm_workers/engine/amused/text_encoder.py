"""CLIP's text encoder, with the names and the bits of transformers' CLIPTextModelWithProjection.

Radford et al., ICML 2021; transformers' ``models/clip/modeling_clip.py``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm_workers.engine.amused.layers import embedding

# What a configuration that transformers has saved may leave out.
EOS, HIDDEN_ACT, LAYER_NORM_EPS = 49407, "quick_gelu", 1e-5
LEGACY_EOS = 2  # in configurations whose true one is the largest token of all

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
}


class TextEncoder(nn.Module):
    """Raises ValueError for a configuration that is not CLIP's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._eos = config.get("eos_token_id", EOS)
        if not isinstance(self._eos, int):
            raise ValueError(f"eos_token_id is {self._eos!r}")
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(
            config["hidden_size"], config["projection_dim"], bias=False
        )

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids (texts, tokens) to what the last layer is given, and to one vector each.

        Returns:
            Hidden states (texts, tokens, hidden), which have not been normed, and the projection
            (texts, projected) of the final state at the first end token.
        """
        before, last = self.text_model(ids)
        marks = ids.int() if self._eos == LEGACY_EOS else (ids.int() == self._eos).int()
        pooled = last[torch.arange(len(last), device=last.device), marks.argmax(-1)]
        return before, self.text_projection(pooled)


class TextModel(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.embeddings = Embeddings(config["vocab_size"], config["max_position_embeddings"], width)
        layers = [Layer(config) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.final_layer_norm = nn.LayerNorm(width, _eps(config))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer is given, and the normed states after it."""
        x = before = self.embeddings(ids)
        for layer in self.encoder["layers"].children():
            before, x = x, layer(x)
        return before, self.final_layer_norm(x)


def _eps(config: Mapping[str, Any]) -> float:
    return float(config.get("layer_norm_eps", LAYER_NORM_EPS))


class Embeddings(nn.Module):
    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.token_embedding = embedding(vocabulary, width)
        self.position_embedding = embedding(positions, width)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return out


class Layer(nn.Module):
    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        act = config.get("hidden_act", HIDDEN_ACT)
        if act not in ACTIVATIONS:
            raise ValueError(f"hidden_act is {act!r}; CLIP has {' or '.join(ACTIVATIONS)}")
        self._act = ACTIVATIONS[act]
        self.self_attn = CausalAttention(width, config["num_attention_heads"])
        self.layer_norm1 = nn.LayerNorm(width, _eps(config))
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        self.layer_norm2 = nn.LayerNorm(width, _eps(config))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        inner = self._act(self.mlp["fc1"](self.layer_norm2(x)))
        out: Tensor = x + self.mlp["fc2"](inner)
        return out


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels cannot be shared out to {heads} heads")
        self._heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(-1, (self._heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out
