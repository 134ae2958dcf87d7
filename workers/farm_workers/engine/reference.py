"""diffusers' own UVit2DModel behind the farm's two calls: slower, and the measure of the other."""

import torch
from diffusers import UVit2DModel
from torch import Tensor, nn

from farm_workers.engine.model import Layout


class ReferenceTransformer(nn.Module):
    def __init__(self, model: UVit2DModel, text_tokens: int, *, together: bool) -> None:
        super().__init__()
        self.model = model
        self.together = together
        config = model.config
        shapes = ((text_tokens, config.encoder_hidden_size), (1, config.cond_embed_dim), (1, 5))
        self.layout = Layout.of(iter(shapes))

    def condition(self, text: Tensor, pooled: Tensor, micro: Tensor) -> Tensor:
        return self.layout.pack(iter((text, pooled, micro)), len(text), text)

    def features(self, tokens: Tensor, given: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """The logits already; ``logits`` has nothing left to do."""
        text, pooled, micro = given
        halves = pooled.shape[1]
        calls = [slice(None)] if self.together else [slice(i, i + 1) for i in range(len(tokens))]
        found = []
        for call in calls:
            ids = tokens[call].repeat_interleave(halves, 0).unflatten(1, grid)
            arguments = (part[call].flatten(0, 1) for part in (text, pooled, micro))
            encoded, embedded, numbers = arguments
            logits = self.model(ids, encoded, embedded[:, 0], numbers[:, 0])
            found.append(logits.flatten(2).transpose(1, 2).unflatten(0, (-1, halves)))
        return torch.cat(found)

    def logits(self, features: Tensor) -> Tensor:
        return features
