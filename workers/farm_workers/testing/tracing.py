"""Counts how often each row was started, for tests: after a kill nothing else shows it."""

import os
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from farm.spec import Lane, Row
from farm_workers.render_engine import Adapter, RenderEngine, RowResult


class TracedEngine:
    """Any engine; writes a line for each row that it starts to a file that workers may share."""

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

    def step(self) -> Sequence[RowResult]:
        return self._engine.step()

    def read_adapter(self, data: bytes) -> Adapter:
        return self._engine.read_adapter(data)

    def cancel(self, keys: Iterable[Hashable]) -> None:
        self._engine.cancel(keys)
