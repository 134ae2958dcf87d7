"""An engine without a model: the same row gives the same picture, after as many steps as it has."""

import hashlib
import threading
import time
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
from fake_adapters import SIZES

from farm.errors import FarmError, RenderError
from farm.spec import CheckpointInfo, Lane, Row
from farm_workers.render_engine import Usage

BAD_PROMPT = "a row that fails"

INFO = CheckpointInfo(
    id="fake",
    revision="0",
    pixel_factor=8,
    size_multiple=8,
    native_height=32,
    native_width=32,
    default_guidance=4.0,
    vocab_size=1025,
    codebook_size=1024,
    mask_token_id=1024,
    text_tokens=77,
    pooled_dim=8,
    hidden_dim=8,
    sizes=SIZES,
)


class FakeDone(NamedTuple):
    key: Hashable
    index: int
    tokens: np.ndarray
    pixels: np.ndarray | None
    steps: int
    error: FarmError | None = None
    truncated: bool = False
    confidence: float = 1.0
    numerics: str = "fake"


class FakePreview(NamedTuple):
    step: int
    steps: int
    pixels: np.ndarray
    confidence: float = 0.5


class FakeAdapter(NamedTuple):
    sha256: str
    nbytes: int


class FakeEngine:
    """``gate`` holds every step back while it is not set; it closes by itself, once, when so many
    rows are rendered as ``pause_after`` says."""

    numerics = "fake"
    device = "paper"

    def __init__(self, rows: int = 8, step_seconds: float = 0.0) -> None:
        self.step_seconds = step_seconds
        self.healed = False  # then it draws the bad prompt too
        self.gate = threading.Event()
        self.gate.set()
        self.pause_after: int | None = None
        self.adapters_read = 0
        self.previews_made = self.steps = self.busy = 0
        self.rendered: list[tuple[Hashable, int]] = []
        self.cancelled: set[Hashable] = set()
        self._rows = rows
        self.drawn = 0  # pictures, not tokens alone
        self._live: list[tuple[Hashable, Row, int]] = []
        self._tokens_alone: set[tuple[Hashable, int]] = set()  # rows whose pictures are not wanted

    @property
    def idle(self) -> bool:
        return not self._live

    @property
    def usage(self) -> Usage:
        memory = {"used": 2**30, "reserved": 2 * 2**30, "total": 80 * 2**30}
        return Usage(self.steps, self.busy, self.steps * self._rows, memory)

    def room(self, lane: Lane) -> int:
        return self._rows - len(self._live)

    def read_adapter(self, data: bytes) -> FakeAdapter:
        self.adapters_read += 1
        return FakeAdapter(hashlib.sha256(data).hexdigest(), len(data))

    def add(self, key: Hashable, row: Row, **inputs: Any) -> None:
        assert self.room(row.spec.lane) > 0
        given = {name: adapter.sha256 for name, adapter in inputs.get("adapters", {}).items()}
        assert given == {one.sha256: one.sha256 for one in row.spec.adapters}
        self._live.append((key, row, row.spec.row_steps))
        if not inputs.get("pixels", True):
            self._tokens_alone.add((key, row.index))

    def cancel(self, keys: Iterable[Hashable]) -> None:
        gone = set(keys)
        self.cancelled |= gone
        self._live = [live for live in self._live if live[0] not in gone]

    def step(self) -> list[FakeDone]:
        self.gate.wait()
        time.sleep(self.step_seconds)
        self.steps += 1
        self.busy += len(self._live)
        self._live = [(key, row, left - 1) for key, row, left in self._live]
        done = [(key, row) for key, row, left in self._live if left == 0]
        self._live = [live for live in self._live if live[2] > 0]
        self.rendered += [(key, row.index) for key, row in done]
        if self.pause_after is not None and len(self.rendered) >= self.pause_after:
            self.pause_after = None
            self.gate.clear()
        results = [_picture(key, row, self.healed) for key, row in done]
        return [self._as_wanted(result) for result in results]

    def _as_wanted(self, result: FakeDone) -> FakeDone:
        if (result.key, result.index) in self._tokens_alone:
            return result._replace(pixels=None)
        self.drawn += 1
        return result

    def preview(self, key: Hashable, index: int) -> FakePreview | None:
        for one, row, left in self._live:
            if (one, row.index) == (key, index) and left < row.spec.row_steps:
                self.previews_made += 1
                steps = row.spec.row_steps
                pixels = np.full((row.spec.height, row.spec.width, 3), 99, np.uint8)
                return FakePreview(steps - left, steps, pixels)
        return None


def _picture(key: Hashable, row: Row, healed: bool) -> FakeDone:
    seed = int.from_bytes(
        hashlib.sha256(f"{row.spec.sha256}/{row.index}".encode()).digest()[:8], "big"
    )
    random = np.random.default_rng(seed)
    height, width = row.spec.height, row.spec.width
    bad = row.spec.prompt == BAD_PROMPT and not healed
    return FakeDone(
        key=key,
        index=row.index,
        tokens=random.integers(0, 1024, (height // 8, width // 8), dtype=np.uint16),
        pixels=random.integers(0, 256, (height, width, 3), dtype=np.uint8),
        steps=row.spec.row_steps,
        error=RenderError("its logits are not finite") if bad else None,
    )
