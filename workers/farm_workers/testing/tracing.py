"""How often rows were started, for tests: after a kill this shows nowhere else."""

import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from farm.spec import Lane, Row
from farm_workers.render_engine import RenderEngine


class TracedEngine:
    """Any engine; each row that it starts is a line in a file, which many workers may share."""

    def __init__(self, engine: RenderEngine, file: Path) -> None:
        self._engine = engine
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.numerics = engine.numerics

    @property
    def idle(self) -> bool:
        return self._engine.idle

    def room(self, lane: Lane) -> int:
        return self._engine.room(lane)

    def add(self, key: Hashable, row: Row, **inputs: Any) -> None:
        self._engine.add(key, row, **inputs)
        os.write(self._file, f"{key} {row.index}\n".encode())

    def step(self) -> Sequence[Any]:
        return self._engine.step()

    def cancel(self, keys: Iterable[Hashable]) -> None:
        self._engine.cancel(keys)
