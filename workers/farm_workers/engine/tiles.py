"""Slots for rows of one token grid: tensors that stay at their addresses while rows come and go."""

import torch
from torch import Tensor

from farm_workers.engine.admission import Live
from farm_workers.engine.checkpoint import Parts
from farm_workers.engine.conditioning import Conditioned
from farm_workers.engine.sampler import choose, guide, stay_masked


class Tile:
    """Rows that step together: all guided (two halves each) or all not, all urgent or all bulk.

    Rows lie in the first slots without gaps; when one leaves, the last takes its place.
    """

    def __init__(
        self, parts: Parts, grid: tuple[int, int], *, halves: int, width: int, urgent: bool
    ) -> None:
        self.grid, self.halves, self.width, self.urgent = grid, halves, width, urgent
        self.rows: list[Live] = []
        self._model, self._mask_id = parts.transformer, parts.info.mask_token_id
        self._codes = parts.info.codebook_size
        self._padded = parts.padded
        seq_len, device = grid[0] * grid[1], parts.device
        self.tokens = torch.zeros(width, seq_len, dtype=torch.int64, device=device)
        self.predicted = torch.zeros_like(self.tokens)
        self.probability = torch.ones(width, seq_len, dtype=torch.float32, device=device)
        layout = parts.transformer.layout
        self.packed = torch.zeros(width, halves, layout.size, dtype=parts.dtype, device=device)
        self._views: dict[int, list[Tensor]] = {}  # of the first so many rows of ``packed``

    @property
    def room(self) -> int:
        return self.width - len(self.rows)

    @property
    def cost(self) -> float:
        """Of one step, in tokens through the transformer."""
        return len(self.rows) * self.halves * self.tokens.shape[1]

    @property
    def by_row(self) -> bool:
        """Whether a row's step may be taken apart from the others'."""
        return not self._padded

    def enter(self, live: Live, tokens: Tensor, conditioned: list[Conditioned]) -> None:
        slot = len(self.rows)
        self.rows.append(live)
        self.tokens[slot] = tokens
        self.predicted[slot] = tokens
        self.probability[slot] = 1.0
        for half, given in enumerate(conditioned):
            self.packed[slot, half] = given.packed

    def leave(self, slot: int) -> None:
        """Free a slot; the tile's last row moves into the gap."""
        last = len(self.rows) - 1
        if slot != last:
            for held in (self.tokens, self.predicted, self.probability, self.packed):
                held[slot] = held[last]
            self.rows[slot] = self.rows[last]
        self.rows.pop()

    def failed(self, slot: int) -> bool:
        return self.rows[slot].failed

    def step(self) -> None:
        """One denoising step of every row."""
        # On a GPU the shape stays the same, whoever is there.
        count = self.width if self._padded else len(self.rows)
        if count not in self._views:
            self._views[count] = self._model.layout.views(self.packed[:count])
        views = self._views[count]
        features = self._model.features(self.tokens[:count], views, self.grid)
        for slot in range(len(self.rows)):
            self.advance(slot, features[slot])

    def advance(self, slot: int, features: Tensor) -> None:
        """A row's step after its forward pass."""
        live = self.rows[slot]
        self._sample(slot, live, features)
        live.step += 1
        live.steps_done += 1

    def _sample(self, slot: int, live: Live, features: Tensor) -> None:
        # Every shape below follows from this row alone, and so does every bit.
        unknown = self.tokens[slot] == self._mask_id
        if not bool(unknown.any()):  # equal confidences were all fixed together
            return
        logits = self._model.logits(features[:, unknown]).float()
        if self.halves == 2:
            logits = guide(logits[0], logits[1], logits.new_tensor(live.spec.guidance_scale))
        else:
            logits = logits[0]
        race = live.draws.race(live.step, unknown.cpu(), self._codes)
        codes, chosen = choose(logits, race.to(logits.device))
        if not bool(torch.isfinite(chosen).all()):
            live.failed = True
            return
        self.predicted[slot, unknown] = codes
        self.probability[slot, unknown] = chosen
        planned = live.schedule.planned[live.step]
        if planned == 0:
            self.tokens[slot] = self.predicted[slot]
            return
        stay = stay_masked(
            self.probability[slot][None],
            unknown[None],
            live.draws.order(live.step, len(unknown))[None].to(unknown.device),
            self.probability.new_tensor(live.schedule.temperatures[live.step]),
            self.tokens.new_tensor([[planned]]),
        )[0]
        self.tokens[slot] = torch.where(stay, self._mask_id, self.predicted[slot])
