"""Runs the asynchronous implementation without an event loop.

Every coroutine of this package awaits its transport and nothing else. The blocking transport never
suspends, so a coroutine on it runs to its end at the first step: the synchronous ``Farm`` is the
same code as ``AsyncFarm``, with no loop, no thread and no second copy.
"""

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

Result = TypeVar("Result")


def drive(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits for an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: Result = stop.value
        return value
    coroutine.close()
    raise AssertionError("a coroutine on the blocking transport must not suspend")


def iterate(items: AsyncIterator[Result]) -> Iterator[Result]:
    """The items of an asynchronous generator that never waits for an event loop."""
    try:
        while True:
            try:
                item = drive(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        if close := getattr(items, "aclose", None):
            drive(close())


async def _next(items: AsyncIterator[Result]) -> Result:
    return await anext(items)
