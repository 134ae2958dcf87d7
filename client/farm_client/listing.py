"""The pictures of a job as the farm lists them, page by page."""

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from farm.job import TERMINAL_JOBS, JobState
from farm_client.connection import Connection, path_of
from farm_client.models import Page, Picture
from farm_client.transport import Crew

FIRST_POLL_SECONDS, MAX_POLL_SECONDS = 0.1, 0.4
START = "0.0.0"

Early = set[tuple[int, int, int]]  # pictures that were given before their task ended


class Listing:
    """Args:
    connection: to the farm.
    job: its id.
    """

    def __init__(self, connection: Connection, job: str) -> None:
        self._connection = connection
        self._path = path_of("v1", "jobs", job, "images")

    async def pages(self, follow: bool, timeout: float | None = None) -> AsyncGenerator[Page, None]:
        """Each picture once. The farm makes the next page while one is read.

        Args:
            follow: go on until the job ends; else stop after what is there.
            timeout: seconds; then the job is no longer followed.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        after, pause = START, FIRST_POLL_SECONDS
        early: Early = set()
        told = await self._ask(after)
        while True:
            following = None
            if told["next"] != after:
                after, pause = told["next"], FIRST_POLL_SECONDS
                following = _Following(self._connection.wire.crew(1), partial(self._ask, after))
                await following.begin()
            try:
                if fresh := _fresh(told, early):
                    yield Page.of(told, fresh)
                if following is not None:
                    told = await following.end()
                    continue
            except BaseException:  # the reader wants no more, or was cancelled
                if following is not None:
                    await following.stop()
                raise
            if not follow or JobState(told["state"]) in TERMINAL_JOBS or time.monotonic() > end:
                return
            await self._connection.wire.sleep(pause)
            pause = min(pause * 1.5, MAX_POLL_SECONDS)
            told = await self._ask(after)

    async def _ask(self, after: str) -> dict[str, Any]:
        told: dict[str, Any] = await self._connection.call(
            "GET", self._path, query={"after": after}
        )
        return told


class _Following:
    """An answer that is on its way while the one before it is read."""

    def __init__(self, crew: Crew, ask: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._crew = crew
        self._ask = ask
        self._told: dict[str, Any] = {}

    async def begin(self) -> None:
        await self._crew.give(self._run)

    async def end(self) -> dict[str, Any]:
        await self._crew.finish()
        return self._told

    async def stop(self) -> None:
        await self._crew.stop()

    async def _run(self) -> None:
        self._told = await self._ask()


def _fresh(told: Mapping[str, Any], early: Early) -> list[Picture]:
    """The pictures that were not given yet; a task that ends tells of all of its own again."""
    fresh = []
    for one in map(Picture.model_validate, told["images"]):
        if one.key not in early or one.error is not None:
            fresh.append(one)
        early.discard(one.key)
    for one in map(Picture.model_validate, told.get("early", ())):
        if one.key not in early:
            early.add(one.key)
            fresh.append(one)
    return fresh
