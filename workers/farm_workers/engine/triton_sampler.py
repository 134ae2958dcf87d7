# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""The sampler of a GPU: a whole tile in two kernels without a word to the host."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from farm.spec import MAX_STEPS
from farm_workers.engine import sampler
from farm_workers.engine.rng import Stream
from farm_workers.engine.row import Live
from farm_workers.engine.sampler import UNSEEN, State

CODE_BLOCK = 1024
HEADER = 8  # words of a record: the fields below; then come temperatures and planned counts
SEED_LOW, SEED_HIGH, STEP, SCALE, PARTNER, ACTIVE, PLACE = map(tl.constexpr, range(7))
TEMPERATURES, PLANNED = tl.constexpr(HEADER), tl.constexpr(HEADER + MAX_STEPS)
LAST_STEP = tl.constexpr(MAX_STEPS - 1)
CODES_STREAM, ORDER_STREAM = tl.constexpr(int(Stream.CODES)), tl.constexpr(int(Stream.ORDER))
TINY = tl.constexpr(sampler.TINY)


class TritonSampler:
    """Schedules lie on the device, so a step needs nothing from the host but the launches.

    Each half-slot has a record of int32 words, some of them the bits of a float. In the first
    half-slot of a row it is active and names its partner, whose forward pass sees the prompt.

    Guidance comes before the scores, which are linear in the features, so a row needs the scores
    of one half. They are made of a group of rows at a time, always as many: a guided row takes two
    half-slots and one place in a group, so one group is enough where all rows are guided.
    """

    def __init__(self, model: Any, state: State) -> None:
        self._model, self._state = model, state
        halves, like = len(state.tokens), state.tokens
        self._records = like.new_zeros(halves, HEADER + 2 * MAX_STEPS, dtype=torch.int32)
        self._outcome = like.new_zeros(halves, 2, dtype=torch.float32)  # confidence, failure
        self._group = max(halves // 2, 1)
        self._places: dict[int, int] = {}  # of rows in the groups, by their first half-slots

    @property
    def groups(self) -> int:
        return max(self._places.values(), default=0) // self._group + 1

    def enter(self, live: Live, tokens: Tensor) -> None:
        home, partner = live.slots[0], live.slots[-1]
        taken = set(self._places.values())
        place = self._places[home] = next(n for n in itertools.count() if n not in taken)
        words = self._model.device.upload(record(live, place))
        self._records[home].copy_(words, non_blocking=True)
        if partner != home:
            self._records[partner, int(ACTIVE)].zero_()
        for slot in live.slots:
            self._state.tokens[slot].copy_(tokens)
        self._state.predicted[home].copy_(tokens)
        self._state.probability[home].fill_(UNSEEN)
        self._outcome[home].zero_()

    def leave(self, live: Live) -> None:
        self._places.pop(live.slots[0], None)

    def step(self, features: Tensor, rows: Sequence[Live], groups: int | None = None) -> None:
        arguments = (self._records, self._state, self._model.info.mask_token_id)
        groups = groups or self.groups
        guided = guide(features.contiguous(), groups * self._group, *arguments)
        for number, group in enumerate(guided.split(self._group)):
            scores = self._model.logits(group)
            draw(scores.contiguous(), number * self._group, *arguments)
        settle(*arguments, self._outcome)

    def outcome(self, rows: Sequence[Live]) -> tuple[Tensor, Tensor, Sequence[int]]:
        # The whole tile, in two copies: picking rows would cost the same and an upload more.
        slots = [live.slots[0] for live in rows]
        return self._state.tokens.clone(), self._outcome.clone(), slots


def record(live: Live, place: int) -> Tensor:
    """A row's schedule, seed and place in the groups as one vector of int32 words."""
    plan, seed = live.schedule, live.pending.row.seed
    words = np.zeros(HEADER + 2 * MAX_STEPS, dtype=np.int32)
    unsigned, numbers = words.view(np.uint32), words.view(np.float32)
    unsigned[SEED_LOW], unsigned[SEED_HIGH] = seed & 0xFFFFFFFF, seed >> 32
    words[STEP], numbers[SCALE] = live.step, live.spec.guidance_scale
    words[PARTNER], words[ACTIVE], words[PLACE] = live.slots[-1], 1, place
    numbers[TEMPERATURES : TEMPERATURES + len(plan.temperatures)] = plan.temperatures
    words[PLANNED : PLANNED + len(plan.planned)] = plan.planned
    return torch.from_numpy(words)


@triton.jit
def _unit(word):
    """A 32-bit word to a float strictly between 0 and 1, as rng.unit does."""
    return tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.9999999403953552)


@triton.jit
def _exponential(word):
    """-log1p(-u) of a 32-bit word, accurate near 0 without a library call."""
    uniform = _unit(word)
    rest = 1.0 - uniform
    scaled = tl.log(rest) * uniform / (rest - 1.0)
    return tl.where(rest == 1.0, uniform, scaled)


@triton.jit
def _wanted(record, token_ptr, first, count, mask_id):
    """Whether a token is masked and its row has one of the places."""
    place = tl.load(record + PLACE) - first
    inside = (place >= 0) & (place < count) & (tl.load(record + ACTIVE) != 0)
    return inside & (tl.load(token_ptr) == mask_id)


@triton.jit
def _guide(
    features_ptr, record_ptr, tokens_ptr, out_ptr, seq_len, channels, record_stride, count, mask_id,
    BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    half, token = line // seq_len, line % seq_len
    record = record_ptr + half * record_stride
    if _wanted(record, tokens_ptr + line, 0, count, mask_id):
        at = tl.arange(0, BLOCK)
        inside = at < channels
        x = tl.load(features_ptr + line * channels + at, mask=inside, other=0.0).to(tl.float32)
        partner = tl.load(record + PARTNER).to(tl.int64)
        if partner != half:
            scale = tl.load(record + SCALE).to(tl.float32, bitcast=True)
            prompted = features_ptr + (partner * seq_len + token) * channels
            x += scale * (tl.load(prompted + at, mask=inside, other=0.0).to(tl.float32) - x)
        target = out_ptr + (tl.load(record + PLACE).to(tl.int64) * seq_len + token) * channels
        tl.store(target + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def guide(features: Tensor, places: int, records: Tensor, state: State, mask_id: int) -> Tensor:
    """Guided features (places, tokens, channels) of those of all half-slots; only what belongs to
    masked tokens is written."""
    halves, seq_len, channels = features.shape
    assert features.is_contiguous()
    guided = features.new_empty(places, seq_len, channels)
    _guide[(halves * seq_len,)](
        features, records, state.tokens, guided, seq_len, channels, records.stride(0), places,
        mask_id, BLOCK=triton.next_power_of_2(channels),
    )  # fmt: skip
    return guided


@triton.jit
def _draw(
    logits_ptr, record_ptr, tokens_ptr, predicted_ptr, probability_ptr,
    seq_len, codes, record_stride, first_place, count, mask_id,
    QUADS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    half, token = place // seq_len, place % seq_len
    record = record_ptr + half * record_stride
    if _wanted(record, tokens_ptr + place, first_place, count, mask_id):
        seed = _seed(record)
        step = tl.load(record + STEP)
        row = (tl.load(record + PLACE) - first_place).to(tl.int64)
        line = logits_ptr + (row * seq_len + token) * codes
        top, total = float("-inf"), 0.0
        best, best_logit, best_code = float("-inf"), 0.0, 0
        for first in range(0, codes, 4 * QUADS):
            quad = first // 4 + tl.arange(0, QUADS)
            at = first + tl.arange(0, 4 * QUADS)
            inside = at < codes
            logit = tl.load(line + at, mask=inside, other=float("-inf")).to(tl.float32)
            zero = quad * 0
            w0, w1, w2, w3 = tl.philox(
                seed, quad, zero + token.to(tl.int32), zero + step, zero + CODES_STREAM
            )
            words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(4 * QUADS)
            score = tl.where(inside, logit - tl.log(_exponential(words)), float("-inf"))
            winner = tl.argmax(score, 0)
            found = tl.max(score, 0)
            here = tl.max(tl.where(tl.arange(0, 4 * QUADS) == winner, logit, float("-inf")), 0)
            better = found > best
            best_code = tl.where(better, first + winner, best_code)
            best_logit = tl.where(better, here, best_logit)
            best = tl.where(better, found, best)
            higher = tl.maximum(top, tl.max(logit, 0))
            terms = tl.where(inside, tl.exp(logit - higher), 0.0)
            total = total * tl.exp(top - higher) + tl.sum(terms, 0)
            top = higher
        # Where a score is nan, the largest may be found behind the last code.
        code = tl.minimum(best_code, codes - 1)
        tl.store(predicted_ptr + place, tl.cast(code, tl.int64))
        tl.store(probability_ptr + place, tl.exp(best_logit - top) / total)


@triton.jit
def _seed(record):
    low = tl.load(record + SEED_LOW).to(tl.int64) & 0xFFFFFFFF
    return (tl.load(record + SEED_HIGH).to(tl.int64) << 32) | low


def draw(logits: Tensor, first: int, records: Tensor, state: State, mask_id: int) -> None:
    """Softmax and the race of every masked token of a group, in one pass over the scores.

    Writes codes and their probabilities; no noise touches memory. ``logits`` are (places, tokens,
    codes) of the rows with places from ``first`` on, ``records`` those of TritonSampler.
    """
    count, seq_len, codes = logits.shape
    assert logits.is_contiguous()
    _draw[(state.tokens.numel(),)](
        logits, records, *state, seq_len, codes, records.stride(0), first, count, mask_id,
        QUADS=CODE_BLOCK // 4,
    )  # fmt: skip


@triton.jit
def _settle(
    record_ptr, tokens_ptr, predicted_ptr, probability_ptr, outcome_ptr,
    seq_len, record_stride, mask_id,
    BLOCK: tl.constexpr,
):  # fmt: skip
    half = tl.program_id(0).to(tl.int64)
    record = record_ptr + half * record_stride
    if tl.load(record + ACTIVE) != 0:
        step = tl.load(record + STEP)
        temperature = tl.load(record + TEMPERATURES + step).to(tl.float32, bitcast=True)
        planned = tl.load(record + PLANNED + step)
        at = tl.arange(0, BLOCK)
        inside = at < seq_len
        place = half * seq_len + at
        token = tl.load(tokens_ptr + place, mask=inside, other=0)
        unknown = inside & (token == mask_id)
        predicted = tl.load(predicted_ptr + place, mask=inside, other=0)
        probability = tl.load(probability_ptr + place, mask=inside, other=-1.0)
        zero = at * 0
        word, _, _, _ = tl.philox(_seed(record), zero, at, zero + step, zero + ORDER_STREAM)
        noise = -tl.log(tl.maximum(-tl.log(tl.maximum(_unit(word), TINY)), TINY))
        confidence = tl.log(tl.maximum(probability, TINY)) + temperature * noise
        confidence = tl.where(unknown, confidence, float("inf"))
        left = tl.sum(unknown.to(tl.int32), 0)
        count = tl.minimum(tl.maximum(tl.minimum(left - 1, planned), 1), seq_len - 1)
        count = tl.where((planned > 0) & (left > 0), count, 0)
        # Integers in the order of the floats; the cut-off is built from its highest bit down.
        bits = confidence.to(tl.int32, bitcast=True).to(tl.int64)
        key = tl.where(bits >= 0, bits + 0x80000000, -1 - bits)
        cut_off = tl.sum(key, 0) * 0
        for bit in tl.static_range(32):
            higher = cut_off + (1 << (31 - bit))
            below = tl.sum((key < higher).to(tl.int32), 0)
            cut_off = tl.where(below <= count, higher, cut_off)
        stay = unknown & (key < cut_off)
        settled = tl.where(unknown, tl.where(stay, mask_id, predicted), token)
        tl.store(tokens_ptr + place, settled, mask=inside)
        partner = tl.load(record + PARTNER).to(tl.int64)
        tl.store(tokens_ptr + partner * seq_len + at, settled, mask=inside)
        finite = (probability == probability) & (tl.abs(probability) < float("inf"))
        wrong = tl.sum((unknown & (finite == 0)).to(tl.int32), 0)
        seen = inside & (probability >= 0)
        number = tl.sum(seen.to(tl.int32), 0)
        mean = tl.sum(tl.where(seen, probability, 0.0), 0) / tl.maximum(number, 1)
        tl.store(outcome_ptr + 2 * half, tl.where(number > 0, mean, 1.0))
        if wrong > 0:
            tl.store(outcome_ptr + 2 * half + 1, 1.0)
        tl.store(record + STEP, tl.minimum(step + 1, LAST_STEP))


def settle(records: Tensor, state: State, mask_id: int, outcome: Tensor) -> None:
    """Order noise, confidence and the cut-off of sampler.stay_masked, then the new tokens.

    Also counts the step and writes mean confidence and failure of each row to ``outcome``.
    """
    halves, seq_len = state.tokens.shape
    _settle[(halves,)](
        records, *state, outcome, seq_len, records.stride(0), mask_id,
        BLOCK=triton.next_power_of_2(seq_len), num_warps=4 if seq_len <= 1024 else 16,
    )  # fmt: skip
