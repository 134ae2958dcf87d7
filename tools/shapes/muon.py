"""Muon: momentum made orthogonal for matrices and kernels, AdamW for everything else."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

# The quintic of Keller Jordan's Muon: five rounds bring every singular value near one.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Of a stack of matrices (count, rows, columns), each with its singular values near one."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For parameters of two and more dimensions; kernels count as (out, in times area)."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    alike[param.flatten(1).shape].append(param)
            for params in alike.values():
                self._update(params, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, params: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        ahead = torch.stack([self._ahead(param, momentum) for param in params])
        scale = max(1.0, ahead.shape[1] / ahead.shape[2]) ** 0.5
        for param, change in zip(params, orthogonal(ahead), strict=True):
            param.mul_(1 - lr * decay)
            param.add_(change.reshape(param.shape), alpha=-lr * scale)

    def _ahead(self, param: Tensor, momentum: float) -> Tensor:
        """Nesterov's look ahead along the averaged gradient."""
        state = self.state[param]
        if "average" not in state:
            state["average"] = torch.zeros_like(param)
        average = state["average"]
        average.lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(average, momentum).flatten(1)


class Pair:
    """Muon and AdamW side by side; parameters with a name in `plain` go to AdamW."""

    def __init__(
        self, model: nn.Module, muon_rate: float, adam_rate: float, plain: tuple[str, ...]
    ) -> None:
        matrices, rest = [], []
        for name, param in model.named_parameters():
            is_plain = param.ndim < 2 or any(part in name for part in plain)
            (rest if is_plain else matrices).append(param)
        self.rates = (muon_rate, adam_rate)
        self.optimizers = (
            Muon(matrices, muon_rate),
            torch.optim.AdamW(rest, adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
        )

    def rate(self, share: float) -> None:
        """Sets both learning rates to a share of their full value."""
        for optimizer, full in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = full * share

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, object]:
        muon, adam = self.optimizers
        return {"muon": muon.state_dict(), "adam": adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        muon, adam = self.optimizers
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
