"""One denoising step's choices: which code each masked token becomes, and which stay masked."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from farm.spec import Mode, RenderSpec

TINY = 1e-20  # below it a logarithm is cut off, as upstream does


def choose(logits: Tensor, race: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and their probabilities from (tokens, codes) scores and Exp(1) numbers.

    The code with the largest p / E wins, which is a draw from the softmax. A token with scores
    that are not finite gets a probability that is not finite.
    """
    probabilities = logits.float().softmax(-1)
    codes = first_largest(probabilities / race)
    chosen = probabilities.gather(-1, codes[..., None])[..., 0]
    return codes, chosen


def first_largest(scores: Tensor) -> Tensor:
    """argmax; numpy's is ten times as fast on a CPU, and also gives the first of equals."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def guide(uncond: Tensor, cond: Tensor, scale: Tensor) -> Tensor:
    return (cond - uncond).mul_(scale).add_(uncond)


def stay_masked(
    probability: Tensor,
    unknown: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    planned: Tensor,
) -> Tensor:
    """Which tokens of each row, (rows, tokens), remain masked: the least confident ones.

    ``planned`` is how many the schedule wants; 0 on the last step. At least one token is fixed in
    a step and, before the last, at least one stays masked, unless the least confident ones are
    equally so: those are fixed together, as upstream does.
    """
    noise = -torch.log((-torch.log(uniform.clamp(TINY))).clamp(TINY))
    confidence = torch.log(probability.clamp(TINY)) + temperature * noise
    # Tokens that are fixed are out of the contest, whatever the noise says.
    confidence = torch.where(unknown, confidence, torch.inf)
    left = unknown.sum(-1, keepdim=True)
    count = torch.minimum(left - 1, planned).clamp_min(1)
    count = torch.where((planned > 0) & (left > 0), count, 0)
    cut_off = confidence.sort(dim=-1).values.gather(-1, count)
    return (confidence < cut_off) & unknown


class Schedule(NamedTuple):
    """What the host knows of a row's steps before the first one."""

    temperatures: tuple[float, ...]
    planned: tuple[int, ...]  # tokens that stay masked after each step; 0 after the last


def schedule(spec: RenderSpec, seq_len: int, start_masked: int, kind: str) -> Schedule:
    """Computed as upstream's scheduler does on a CPU, float32 rounding included."""
    steps = spec.num_inference_steps
    temperatures = torch.linspace(*spec.temperature, steps).tolist()
    inpaint = spec.mode is Mode.INPAINT
    # This row's own share: upstream takes one over the whole batch.
    share = torch.tensor(start_masked) / seq_len if inpaint else torch.tensor(1.0)
    ratios = [mask_ratio("linear" if inpaint else kind, step + 1, steps) for step in range(steps)]
    planned = [max(int((seq_len * (share * ratio)).floor()), 1) for ratio in ratios]
    planned[-1] = 0
    return Schedule(tuple(temperatures), tuple(planned))


@functools.lru_cache(maxsize=4096)
def mask_ratio(kind: str, done: int, steps: int) -> Tensor:
    """Share of the tokens that is masked after ``done`` of ``steps`` steps."""
    # One number at a time: torch's vector cosine differs from its scalar one in the last bit.
    ratio = torch.tensor([[done]]) / steps
    return (torch.cos(ratio * math.pi / 2) if kind == "cosine" else 1 - ratio)[0, 0]
