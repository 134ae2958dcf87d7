"""diffusers' own UVit2DModel behind the engine's seam: slower, and the measure of the other."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farm.checkpoints.inspect import inspect_checkpoint
from farm_workers.bench.pipelines import upstream_modules
from farm_workers.engine.amused import AmusedModel
from farm_workers.engine.amused.parts import load_parts
from farm_workers.engine.device import Device
from farm_workers.engine.row import Conditioned, Pending


class ReferenceModel(AmusedModel):
    """The engine's prompts and pictures, upstream's forward pass."""

    def __init__(self, path: Path) -> None:
        checkpoint, cpu = inspect_checkpoint(path), Device("cpu")
        parts = load_parts(checkpoint, cpu.torch, torch.float32)
        super().__init__(checkpoint.info, parts, cpu, torch.float32)
        self._unet, info = upstream_modules(parts)["transformer"], checkpoint.info
        self._sizes = (info.text_tokens * info.hidden_dim, info.pooled_dim, 5)
        self.conditioning_size = sum(self._sizes)

    def condition(
        self, pending: Pending, ahead: Iterable[Pending] = (), *, alone: bool = False
    ) -> list[Conditioned]:
        found = []
        for half in self.conditioning._halves(pending, 1):
            if half.given is None:
                text = self.conditioning.encode([half.text], 1)[0]
            else:
                text = self.conditioning._taken(half.given)
            parts = (text.hidden.flatten(), text.pooled.flatten(), torch.tensor(half.micro))
            found.append(Conditioned(half.key, torch.cat(parts), text.truncated))
        return found

    def bind(self, packed: Tensor) -> Any:
        return packed

    def forward(
        self, tokens: Tensor, given: Any, grid: tuple[int, int], adapters: Any = ()
    ) -> Tensor:
        """The logits already; ``logits`` has nothing left to do."""
        found = []
        for ids, packed in zip(tokens, given, strict=True):
            text, pooled, micro = packed.split(self._sizes, -1)
            text = text.unflatten(-1, (self.info.text_tokens, -1))
            halves = ids.view(1, *grid).expand(len(packed), -1, -1)
            logits = self._unet(halves, text, pooled, micro)
            found.append(logits.flatten(2).transpose(1, 2))
        return torch.stack(found)

    def logits(self, features: Tensor) -> Tensor:
        return features
