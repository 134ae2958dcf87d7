"""Random weights for the parts that a configuration describes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from farm_workers.engine.amused.parts import shapes


def random_tensors(
    configs: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    device: torch.device = torch.device("cpu"),  # noqa: B008  (it has no state)
) -> dict[str, dict[str, Tensor]]:
    """Each part's tensors in float32, by its name; the same arguments give the same numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return {
        name: {
            key: _lively(key, torch.empty(shape, device=device), generator)
            for key, shape in shapes(name, config).items()
        }
        for name, config in configs.items()
    }


def _lively(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers everywhere, so that no path is a zero or an identity that hides a mistake."""
    if "quantize" in name:
        return tensor.normal_(0, 1, generator=generator)
    if tensor.dim() < 2 or "gamma" in name or "beta" in name:
        offset = 1.0 if name.endswith("weight") and "norm" in name else 0.0
        return tensor.normal_(offset, 0.1, generator=generator)
    if "embedding" in name:
        return tensor.normal_(0, 0.5, generator=generator)
    return tensor.normal_(0, (2.0 / tensor[0].numel()) ** 0.5, generator=generator)
