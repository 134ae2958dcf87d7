"""Taking what is in a queue now."""

import contextlib
import queue as queues
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def drain(held: "queues.SimpleQueue[T]", limit: int = 1_000_000) -> Iterator[T]:
    """At most so many items, without waiting for one."""
    with contextlib.suppress(queues.Empty):
        for _ in range(limit):
            yield held.get_nowait()
