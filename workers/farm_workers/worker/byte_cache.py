"""What was read last, in a bounded number of bytes."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Keeps values of at most so many bytes together, the newest at least; the least recently used
    goes first. Safe to call from many threads; two that miss the same value both make it.

    Args:
        limit: bytes.
        size_of: bytes of a value.
        told: called with whether a value was there, each time that one is wanted.
    """

    def __init__(
        self,
        limit: int,
        size_of: Callable[[Value], int],
        told: Callable[[bool], None] = lambda hit: None,
    ) -> None:
        self._limit = limit
        self._size_of = size_of
        self._told = told
        self._values: collections.OrderedDict[Hashable, Value] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.held = 0  # bytes

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            found = self._values.get(key)
            if found is not None:
                self._values.move_to_end(key)
        self._told(found is not None)
        if found is not None:
            return found
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.held += self._size_of(value)
            while self.held > self._limit and len(self._values) > 1:
                _, oldest = self._values.popitem(last=False)
                self.held -= self._size_of(oldest)
        return value
