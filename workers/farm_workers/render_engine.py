"""The part of an engine that a worker uses."""

from collections.abc import Sequence
from typing import Any, Protocol

from farm.spec import Lane, Row


class RenderEngine(Protocol):
    """``Engine``, or what stands in for it or around it in tests."""

    numerics: str

    @property
    def idle(self) -> bool: ...
    def room(self, lane: Lane) -> int: ...
    def add(self, key: Any, row: Row, **inputs: Any) -> None: ...
    def step(self) -> Sequence[Any]: ...
    def cancel(self, keys: Any) -> None: ...
