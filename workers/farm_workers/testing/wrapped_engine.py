"""An engine that hands every call on to another one, for those that change a call or two."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from farm.spec import Lane, Row
from farm_workers.render_engine import Adapter, RenderEngine, RowPreview, RowResult, Usage


class WrappedEngine:
    def __init__(self, engine: RenderEngine) -> None:
        self._engine = engine
        self.numerics = engine.numerics
        self.device = engine.device

    @property
    def idle(self) -> bool:
        return self._engine.idle

    @property
    def usage(self) -> Usage:
        return self._engine.usage

    def room(self, lane: Lane) -> int:
        return self._engine.room(lane)

    def add(self, key: Hashable, row: Row, **inputs: Any) -> None:
        self._engine.add(key, row, **inputs)

    def read_adapter(self, data: bytes) -> Adapter:
        return self._engine.read_adapter(data)

    def cancel(self, keys: Iterable[Hashable]) -> None:
        self._engine.cancel(keys)

    def step(self) -> Sequence[RowResult]:
        return self._engine.step()

    def preview(self, key: Hashable, index: int) -> RowPreview | None:
        return self._engine.preview(key, index)
