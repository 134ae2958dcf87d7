"""One denoising step's choices: which code each masked token becomes, and which stay masked.

Two implementations of one contract: here in plain torch, a row at a time and only for what is
masked; triton_sampler.py moves a whole tile without a word to the host.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from farm_workers.engine.row import Live, not_finite, row_error

TINY = 1e-20  # below it a logarithm is cut off, as upstream does
UNSEEN = -1.0  # the probability of a token that no step has predicted


class State(NamedTuple):
    """The tokens of a tile, each (half-slots, tokens); a row's lie in all of its half-slots."""

    tokens: Tensor
    predicted: Tensor  # what each token is, or would be if its row ended now
    probability: Tensor  # of the predicted token when it was chosen

    @classmethod
    def empty(cls, halves: int, seq_len: int, device: torch.device) -> "State":
        tokens = torch.zeros(halves, seq_len, dtype=torch.int64, device=device)
        return cls(
            tokens,
            torch.zeros_like(tokens),
            torch.full((halves, seq_len), UNSEEN, dtype=torch.float32, device=device),
        )


class Sampler(Protocol):
    """Moves the rows of a tile on by a step; what a row gets depends on that row alone."""

    def enter(self, live: Live, tokens: Tensor) -> None:
        """Set the state of a row's half-slots."""

    def leave(self, live: Live) -> None:
        """Forget a row, whether it has entered or not."""

    @property
    def groups(self) -> int:
        """Groups of rows that the next step moves on one after the other."""

    def step(self, features: Tensor, rows: Sequence[Live], groups: int | None = None) -> None:
        """After a forward pass: features (half-slots, tokens, channels) of all half-slots.

        ``groups`` are said where a graph is recorded, before the rows are there.
        """

    def outcome(self, rows: Sequence[Live]) -> tuple[Tensor, Tensor, Sequence[int]]:
        """Of rows that are done, all in device memory that no later step changes.

        Returns tokens (places, tokens), confidence and failure (places, 2), each row's place.
        """


class TorchSampler:
    """Every shape follows from one row alone, and so does every bit."""

    groups = 1

    def __init__(self, model: Any, state: State) -> None:
        self._model, self._state = model, state

    def enter(self, live: Live, tokens: Tensor) -> None:
        for slot in live.slots:
            self._state.tokens[slot] = tokens
        self._state.predicted[live.slots[0]] = tokens
        self._state.probability[live.slots[0]] = UNSEEN

    def leave(self, live: Live) -> None:
        """Nothing of it is kept."""

    def step(self, features: Tensor, rows: Sequence[Live], groups: int | None = None) -> None:
        for live in rows:
            try:
                self._step(features, live)
            except Exception as error:
                live.error = row_error(error)

    def _step(self, features: Tensor, live: Live) -> None:
        state, model, slot = self._state, self._model, live.slots[0]
        tokens, predicted, probability = (part[slot] for part in state)
        unknown = tokens == model.info.mask_token_id
        places = unknown.nonzero()[:, 0]
        if not len(places):  # equal confidences were all fixed together
            return
        logits = model.logits(features[list(live.slots)][:, places]).float()
        scores = logits[0]
        if len(logits) == 2:
            scores = guide(scores, logits[1], live.spec.guidance_scale)
        race = live.draws.race(live.step, unknown.cpu(), model.info.codebook_size)
        codes, chosen = choose(scores, race.to(scores.device))
        if not math.isfinite(chosen.sum()):
            raise not_finite()
        predicted[places] = codes
        probability[places] = chosen
        settled = predicted
        if planned := live.schedule.planned[live.step]:
            stay = stay_masked(
                probability,
                unknown,
                live.draws.order(live.step, len(unknown)).to(unknown.device),
                live.schedule.temperatures[live.step],
                planned,
            )
            settled = predicted.masked_fill(stay, model.info.mask_token_id)
        for half in live.slots:
            state.tokens[half] = settled

    def outcome(self, rows: Sequence[Live]) -> tuple[Tensor, Tensor, Sequence[int]]:
        slots = [live.slots[0] for live in rows]
        facts = [
            [mean_confidence(self._state.probability[slot], live.painted), 0.0]
            for slot, live in zip(slots, rows, strict=True)
        ]
        confidence = torch.tensor(facts, dtype=torch.float64)
        return self._state.tokens[slots], confidence, range(len(rows))


def mean_confidence(probability: Tensor, painted: Tensor) -> float:
    """Of the tokens that started masked, when each was fixed."""
    chosen = probability[painted.to(probability.device)]
    return float(chosen.mean()) if len(chosen) else 1.0


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


def guide(uncond: Tensor, cond: Tensor, scale: Tensor | float) -> Tensor:
    return (cond - uncond).mul_(scale).add_(uncond)


def stay_masked(
    probability: Tensor,
    unknown: Tensor,
    uniform: Tensor,
    temperature: Tensor | float,
    planned: Tensor | int,
) -> Tensor:
    """Which tokens of each row, (..., tokens), remain masked: the least confident ones.

    ``planned`` is how many the schedule wants; 0 on the last step. At least one token is fixed in
    a step and, before the last, at least one stays masked, unless the least confident ones are
    equally so: those are fixed together, as upstream does. A picture of a single token has that
    token fixed at once.
    """
    noise = -torch.log((-torch.log(uniform.clamp(TINY))).clamp(TINY))
    confidence = torch.log(probability.clamp(TINY)) + temperature * noise
    # Tokens that are fixed are out of the contest, whatever the noise says.
    confidence.masked_fill_(~unknown, torch.inf)
    left = unknown.sum(-1, keepdim=True)
    count = (left - 1).clamp_max(planned).clamp_(1, unknown.shape[-1] - 1)
    count = torch.where((left > 0) & (planned > 0), count, 0)
    cut_off = confidence.sort(dim=-1).values.gather(-1, count)
    return (confidence < cut_off) & unknown
