"""A job for asyncio."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from farm_client.fetch import PARALLEL, Fetched, Sign
from farm_client.image import AsyncImage
from farm_client.job import JobHandle, Progress
from farm_client.models import Difference, JobStatus, Preview, Removed, Usage, Verified, Why


class AsyncJob(JobHandle):
    """A job of an ``AsyncFarm``; see ``Job``."""

    async def status(self) -> JobStatus:
        return await self._status()

    async def wait(
        self,
        timeout: float | None = None,
        *,
        progress: bool | Progress = False,
        check: bool = True,
    ) -> JobStatus:
        return await self._wait(timeout, progress, check)

    async def images(self, *, follow: bool = True) -> AsyncGenerator[AsyncImage, None]:
        async with aclosing(self._images(follow)) as pictures:
            async for told in pictures:
                yield AsyncImage(self._connection, told)

    async def previews(self) -> AsyncIterator[Preview]:
        async for preview in self._previews():
            yield preview

    async def events(self) -> AsyncIterator[JobStatus]:
        async for status in self._events():
            yield status

    async def cancel(self) -> JobStatus:
        return await self._act("cancel")

    async def pause(self) -> JobStatus:
        return await self._act("pause")

    async def resume(self) -> JobStatus:
        return await self._act("resume")

    async def retry(self, reason: str | None = None) -> JobStatus:
        return await self._act("retry", reason=reason)

    async def remove(self, *, tell: Callable[[Removed], None] | None = None) -> Removed:
        return await self._remove(tell)

    async def usage(self) -> Usage:
        return await self._usage()

    async def why(self) -> Why:
        return await self._why()

    async def verify(
        self,
        *,
        repair: bool = False,
        tell: Callable[[Difference], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Verified:
        return await self._verify(repair, tell, progress)

    async def fetch(
        self,
        folder: str | os.PathLike[str],
        *,
        follow: bool = True,
        parallel: int = PARALLEL,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,  # the same word as in Job
        overwrite: bool = False,
        resume: bool = False,
        sign: Sign | None = None,
        shards: bool = False,
    ) -> Fetched:
        return await self._fetch(
            folder, follow, parallel, progress, timeout, overwrite, resume, sign, shards
        )
