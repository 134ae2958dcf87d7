"""A worker whose engine only waits: ``python stub_worker.py NAME ROWS STEP_SECONDS``.

Its settings are in the environment, as for ``farm worker``. Everything around the engine is real.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np

from farm.checkpoints.inspect import Checkpoint
from farm.errors import FarmError
from farm.settings import load
from farm.spec import Lane, Row
from farm_workers.render_engine import Usage
from farm_workers.worker.crash_reporter import CrashReporter
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker

MEASURED = "seconds of a step: "  # what it says at its end


class StubResult(NamedTuple):
    """A row as the worker expects it, with a picture of noise."""

    key: Hashable
    index: int
    tokens: np.ndarray
    pixels: np.ndarray
    steps: int
    error: FarmError | None = None
    truncated: bool = False
    confidence: float = 1.0
    numerics: str = "stub"


class Live(NamedTuple):
    """A row in the engine."""

    key: Hashable
    row: Row
    urgent: bool
    left: int  # steps


class StubEngine:
    """A step takes the same time however many rows share it. Urgent rows have steps of their own,
    and every fifth one is left to the others, as in the engine for a GPU."""

    numerics, device = "stub", "nothing"

    def __init__(self, rows: int, step_seconds: float) -> None:
        self._rows, self._step_seconds = rows, step_seconds
        self._live: list[Live] = []
        self._steps, self.slept = 0, 0.0
        self._random = np.random.default_rng(os.getpid())

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def usage(self) -> Usage:
        return Usage(self._steps)

    def preview(self, key: Hashable, index: int) -> None:
        """None: its rows have nothing to show."""

    def room(self, lane: Lane) -> int:
        return self._rows - len(self._live)

    def add(self, key: Hashable, row: Row, *, urgent: bool = False, **_: Any) -> None:
        self._live.append(Live(key, row, urgent, row.spec.row_steps))

    def cancel(self, keys: Iterable[Hashable]) -> None:
        gone = set(keys)
        self._live = [live for live in self._live if live.key not in gone]

    def step(self) -> list[StubResult]:
        began = time.monotonic()
        time.sleep(self._step_seconds)
        self._steps += 1
        self.slept += time.monotonic() - began
        urgent = {live.urgent for live in self._live}
        turn = self._steps % 5 > 0 if len(urgent) == 2 else urgent == {True}
        moved = [
            live._replace(left=live.left - 1) if live.urgent is turn else live
            for live in self._live
        ]
        self._live = [live for live in moved if live.left > 0]
        return [self._result(live.key, live.row) for live in moved if live.left <= 0]

    @property
    def step_seconds(self) -> float:
        """Measured: a busy machine wakes a process late."""
        return self.slept / max(self._steps, 1)

    def _result(self, key: Hashable, row: Row) -> StubResult:
        height, width = row.spec.height, row.spec.width
        tokens = self._random.integers(0, 64, (height // 8, width // 8), dtype=np.uint16)
        pixels = self._random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        return StubResult(key, row.index, tokens, pixels, row.spec.row_steps)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    name, rows, step_seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

    engine = StubEngine(rows, step_seconds)

    def load_stub(_: Checkpoint, __: WorkerSettings) -> Any:
        return engine

    settings = load(WorkerSettings)
    reporter = CrashReporter(settings.redis_url, settings.name)
    worker = Worker(settings, name, load_engine=load_stub, crash_reporter=reporter)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()
    print(f"{MEASURED}{engine.step_seconds:.5f}", flush=True)


if __name__ == "__main__":
    main()
