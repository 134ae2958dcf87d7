"""A tile whose whole step stays on the device: fixed shapes, fixed addresses, one CUDA graph."""

import torch
from torch import Tensor

from farm.spec import MAX_STEPS
from farm_workers.engine import kernels
from farm_workers.engine.admission import Live
from farm_workers.engine.checkpoint import Parts
from farm_workers.engine.conditioning import Conditioned
from farm_workers.engine.philox import Stream, uniforms
from farm_workers.engine.rng import signed
from farm_workers.engine.sampler import stay_masked
from farm_workers.engine.tiles import Tile

WARM_UP_STEPS = 3  # before a capture: libraries allocate their workspaces on first use


class DeviceTile(Tile):
    """Schedules lie on the device, so a step needs nothing from the host but the launch.

    Empty slots run along with no token masked; what they compute is never read.
    """

    def __init__(
        self, parts: Parts, grid: tuple[int, int], *, halves: int, width: int, urgent: bool
    ) -> None:
        super().__init__(parts, grid, halves=halves, width=width, urgent=urgent)
        seq_len = grid[0] * grid[1]
        like = {"device": parts.device}
        self._temperatures = torch.zeros(width, MAX_STEPS, **like)
        self._planned = torch.zeros(width, MAX_STEPS, dtype=torch.int64, **like)
        self._steps = torch.zeros(width, dtype=torch.int64, **like)
        self._seeds = torch.zeros(width, dtype=torch.int64, **like)
        self._scales = torch.ones(width, **like)
        self.bad = torch.zeros(width, dtype=torch.bool, **like)
        self._order = torch.arange(seq_len, **like)
        self._held: tuple[Tensor, ...] = (
            self.tokens, self.predicted, self.probability, self.packed, self._temperatures,
            self._planned, self._steps, self._seeds, self._scales, self.bad,
        )  # fmt: skip
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def by_row(self) -> bool:
        return False

    def enter(self, live: Live, tokens: Tensor, conditioned: list[Conditioned]) -> None:
        slot, count = len(self.rows), len(live.schedule.planned)
        super().enter(live, tokens, conditioned)
        self._temperatures[slot, :count] = torch.tensor(live.schedule.temperatures)
        self._planned[slot, :count] = torch.tensor(live.schedule.planned)
        self._steps[slot] = live.step
        self._seeds[slot] = signed(live.pending.row.seed)
        self._scales[slot] = live.spec.guidance_scale
        self.bad[slot] = False

    def leave(self, slot: int) -> None:
        last = len(self.rows) - 1
        if slot != last:
            for held in self._held:
                held[slot] = held[last]
            self.rows[slot] = self.rows[last]
        self.tokens[last] = 0  # nothing masked: the slot is idle
        self.rows.pop()

    def step(self) -> None:
        if self._graph is None:
            self._advance()
        else:
            self._graph.replay()
        for live in self.rows:
            live.step += 1
            live.steps_done += 1

    def failed(self, slot: int) -> bool:
        return bool(self.bad[slot])

    def capture(self) -> None:
        """Record the step as a CUDA graph; called at load, while the tile is empty."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._advance()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance()
        self._graph = graph

    def _advance(self) -> None:
        views = self._model.layout.views(self.packed)
        features = self._model.features(self.tokens, views, self.grid)
        logits = self._model.logits(features).contiguous()
        unknown = self.tokens == self._mask_id
        codes, chosen = kernels.sample(logits, unknown, self._scales, self._seeds, self._steps)
        self.bad |= (unknown & ~torch.isfinite(chosen)).any(-1)
        self.predicted.copy_(torch.where(unknown, codes, self.tokens))
        self.probability.copy_(torch.where(unknown, chosen, self.probability))
        at = self._steps[:, None]
        stay = stay_masked(
            self.probability,
            unknown,
            uniforms(self._seeds, self._steps, self._order, Stream.ORDER),
            self._temperatures.gather(1, at),
            self._planned.gather(1, at),
        )
        self.tokens.copy_(torch.where(stay, self._mask_id, self.predicted))
        self._steps.add_(1).clamp_(max=MAX_STEPS - 1)
