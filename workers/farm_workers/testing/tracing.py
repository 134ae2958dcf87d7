"""Counts how often each row was started, for tests: after a kill nothing else shows it."""

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from farm.spec import Row
from farm_workers.render_engine import RenderEngine
from farm_workers.testing.wrapped_engine import WrappedEngine


class TracedEngine(WrappedEngine):
    """Writes a line for each row that it starts to a file that workers may share."""

    def __init__(self, engine: RenderEngine, file: Path) -> None:
        super().__init__(engine)
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, key: Hashable, row: Row, **inputs: Any) -> None:
        super().add(key, row, **inputs)
        os.write(self._file, f"{key} {row.index}\n".encode())
