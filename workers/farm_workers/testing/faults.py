"""Faults on purpose: an engine that fails as hardware does, for rows whose prompt asks for it.

``FARM_FAULTS="segfault:a row that crashes,nan:a row that fails"`` names a fault and a part of the
prompts that it strikes.
"""

import enum
import signal
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from farm.errors import FarmError, InvalidInput, OutOfMemory, RenderError
from farm.spec import Row
from farm_workers.render_engine import RenderEngine, RowResult
from farm_workers.testing.wrapped_engine import WrappedEngine

SLOW_SECONDS = 0.5  # added to every step while a slow row is in the engine
HANG_SECONDS = 1e6


class Fault(enum.StrEnum):
    OOM = "oom"  # the row does not fit into the device's memory
    NAN = "nan"  # its logits are not finite
    HANG = "hang"  # the step never returns
    SEGFAULT = "segfault"  # the process dies
    STICKY = "sticky"  # this step and every later one fails
    SLOW = "slow"  # the step takes longer


@dataclass(frozen=True)
class FaultyResult:
    """What leaves the engine in place of a row that a fault has struck."""

    key: Hashable
    index: int
    steps: int
    error: FarmError
    tokens: None = None
    pixels: None = None
    confidence: float = 0.0
    truncated: bool = False
    numerics: str = ""


class FaultyEngine(WrappedEngine):
    """Any engine, with faults planted in it."""

    def __init__(self, engine: RenderEngine, faults: Iterable[str]) -> None:
        super().__init__(engine)
        self._faults = [_parse(text) for text in faults]
        self._live: dict[tuple[Hashable, int], Fault] = {}
        self._broken = False

    def add(self, key: Hashable, row: Row, **inputs: Any) -> None:
        super().add(key, row, **inputs)
        for fault, text in self._faults:
            if text in (row.prompt or ""):  # a render of embeds has no prompt
                self._live[key, row.index] = fault

    def cancel(self, keys: Iterable[Hashable]) -> None:
        gone = set(keys)
        super().cancel(gone)
        self._live = {row: fault for row, fault in self._live.items() if row[0] not in gone}

    def step(self) -> list[RowResult]:
        present = set(self._live.values())
        if Fault.SEGFAULT in present:
            signal.raise_signal(signal.SIGSEGV)  # of this thread, as a real one is
        if Fault.HANG in present:
            time.sleep(HANG_SECONDS)
        if Fault.SLOW in present:
            time.sleep(SLOW_SECONDS)
        self._broken = self._broken or Fault.STICKY in present
        if self._broken:
            raise RuntimeError("device-side assert triggered")
        return [self._struck(result) for result in super().step()]

    def _struck(self, result: RowResult) -> RowResult:
        match self._live.pop((result.key, result.index), None):
            case Fault.OOM:
                error: FarmError = OutOfMemory("the row did not fit")
            case Fault.NAN:
                error = RenderError("its logits are not finite")
            case _:
                return result
        return FaultyResult(result.key, result.index, result.steps, error)


def _parse(text: str) -> tuple[Fault, str]:
    name, _, part = text.partition(":")
    if name not in set(Fault) or not part:
        raise InvalidInput(
            f"{text!r} is not a fault",
            field="FARM_FAULTS",
            hint=f"one of {', '.join(Fault)}, a colon, and a part of a prompt",
        )
    return Fault(name), part
