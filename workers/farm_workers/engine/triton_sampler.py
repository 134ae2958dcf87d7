# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""The sampler of a GPU: a whole tile in two kernels without a word to the host."""

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
SEED_LOW, SEED_HIGH, STEP, SCALE, PARTNER, ACTIVE = map(tl.constexpr, range(6))
TEMPERATURES, PLANNED = tl.constexpr(HEADER), tl.constexpr(HEADER + MAX_STEPS)
LAST_STEP = tl.constexpr(MAX_STEPS - 1)
CODES_STREAM, ORDER_STREAM = tl.constexpr(int(Stream.CODES)), tl.constexpr(int(Stream.ORDER))
TINY = tl.constexpr(sampler.TINY)


class TritonSampler:
    """Schedules lie on the device, so a step needs nothing from the host but the launches.

    Each half-slot has a record of int32 words, some of them the bits of a float. In the first
    half-slot of a row it is active and names its partner, whose forward pass sees the prompt.
    """

    def __init__(self, model: Any, state: State) -> None:
        self._model, self._state = model, state
        halves, like = len(state.tokens), state.tokens
        self._records = like.new_zeros(halves, HEADER + 2 * MAX_STEPS, dtype=torch.int32)
        self._outcome = like.new_zeros(halves, 2, dtype=torch.float32)  # confidence, failure

    def enter(self, live: Live, tokens: Tensor) -> None:
        home, partner = live.slots[0], live.slots[-1]
        self._records[home].copy_(self._model.device.upload(record(live)), non_blocking=True)
        if partner != home:
            self._records[partner, int(ACTIVE)].zero_()
        for slot in live.slots:
            self._state.tokens[slot].copy_(tokens)
        self._state.predicted[home].copy_(tokens)
        self._state.probability[home].fill_(UNSEEN)
        self._outcome[home].zero_()

    def step(self, features: Tensor, rows: Sequence[Live]) -> None:
        self.choose(self._model.logits(features))

    def choose(self, logits: Tensor) -> None:
        """From scores (half-slots, tokens, codes)."""
        mask_id = self._model.info.mask_token_id
        arguments = (self._records, self._state, mask_id)
        draw(logits.contiguous(), *arguments)
        settle(*arguments, self._outcome)

    def outcome(self, rows: Sequence[Live]) -> tuple[Tensor, Tensor, Sequence[int]]:
        # The whole tile, in two copies: picking rows would cost the same and an upload more.
        slots = [live.slots[0] for live in rows]
        return self._state.tokens.clone(), self._outcome.clone(), slots


def record(live: Live) -> Tensor:
    """A row's schedule and seed as one vector of int32 words."""
    plan, seed = live.schedule, live.pending.row.seed
    words = np.zeros(HEADER + 2 * MAX_STEPS, dtype=np.int32)
    unsigned, numbers = words.view(np.uint32), words.view(np.float32)
    unsigned[SEED_LOW], unsigned[SEED_HIGH] = seed & 0xFFFFFFFF, seed >> 32
    words[STEP], numbers[SCALE] = live.step, live.spec.guidance_scale
    words[PARTNER], words[ACTIVE] = live.slots[-1], 1
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
def _draw(
    logits_ptr, record_ptr, tokens_ptr, predicted_ptr, probability_ptr,
    seq_len, codes, record_stride, mask_id,
    QUADS: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    half, token = place // seq_len, place % seq_len
    record = record_ptr + half * record_stride
    unknown = tl.load(tokens_ptr + place) == mask_id
    if unknown & (tl.load(record + ACTIVE) != 0):
        seed = _seed(record)
        step = tl.load(record + STEP)
        scale = tl.load(record + SCALE).to(tl.float32, bitcast=True)
        partner = tl.load(record + PARTNER).to(tl.int64)
        line = logits_ptr + place * codes
        prompted = logits_ptr + (partner * seq_len + token) * codes
        guided = partner != half
        top, total = float("-inf"), 0.0
        best, best_logit, best_code = float("-inf"), 0.0, 0
        for first in range(0, codes, 4 * QUADS):
            quad = first // 4 + tl.arange(0, QUADS)
            at = first + tl.arange(0, 4 * QUADS)
            inside = at < codes
            logit = tl.load(line + at, mask=inside, other=float("-inf")).to(tl.float32)
            if guided:
                cond = tl.load(prompted + at, mask=inside, other=0.0).to(tl.float32)
                logit = tl.where(inside, logit + scale * (cond - logit), float("-inf"))
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
        tl.store(predicted_ptr + place, tl.cast(best_code, tl.int64))
        tl.store(probability_ptr + place, tl.exp(best_logit - top) / total)


@triton.jit
def _seed(record):
    low = tl.load(record + SEED_LOW).to(tl.int64) & 0xFFFFFFFF
    return (tl.load(record + SEED_HIGH).to(tl.int64) << 32) | low


def draw(logits: Tensor, records: Tensor, state: State, mask_id: int) -> None:
    """Guidance, softmax and the race of every masked token of a tile, in one pass over the scores.

    Writes codes and their probabilities; no noise touches memory. ``logits`` are (half-slots,
    tokens, codes), ``records`` those of TritonSampler.
    """
    halves, seq_len, codes = logits.shape
    assert logits.is_contiguous()
    _draw[(halves * seq_len,)](
        logits, records, *state, seq_len, codes, records.stride(0), mask_id, QUADS=CODE_BLOCK // 4
    )


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
