"""A job as its submitter sees it."""

import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing

from farm.errors import (
    FarmError,
    JobCancelled,
    JobFailed,
    NotFound,
    RejectedRender,
    TimedOut,
    Unavailable,
)
from farm.job import TERMINAL_JOBS, JobState
from farm_client import display
from farm_client.connection import Connection, path_of
from farm_client.fetch import PARALLEL, Fetched, Fetcher, Sign
from farm_client.image import Image
from farm_client.listing import FIRST_POLL_SECONDS, MAX_POLL_SECONDS, Listing
from farm_client.models import (
    Difference,
    JobStatus,
    Page,
    Picture,
    Preview,
    Removed,
    Usage,
    Verified,
    Why,
)
from farm_client.progress import progress_line
from farm_client.streams import LINE_SECONDS, read_events, read_lines, read_usage
from farm_client.sync import drive, iterate

SHOWN = 12  # pictures of a job in a notebook
PREVIEW_SECONDS = 0.4  # as often as a worker sends them
MAX_DIFFERENCES = 10_000  # in memory; a lost store makes one for each of ten million pictures
QUIET_SECONDS = 45.0  # the farm sends a sign of life every 15

Progress = Callable[[JobStatus], None]


class JobHandle:
    """A job's id and the calls about it."""

    def __init__(
        self,
        connection: Connection,
        id: str,  # noqa: A002  the API's own word
        *,
        rejected: tuple[RejectedRender, ...] = (),
        rejected_count: int = 0,
        accepted: int | None = None,
        created: bool | None = None,
    ) -> None:
        self._connection = connection
        self.id = id
        self.rejected = rejected  # renders that were refused at the submission
        self.rejected_count = rejected_count  # of a very large job, more than are listed
        self.accepted = accepted  # renders that were taken; None if this was not said here
        self.created = created  # False: the idempotency key was known, so this is the earlier job

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    @property
    def connection(self) -> Connection:
        """To its farm."""
        return self._connection

    @property
    def _path(self) -> str:
        return path_of("v1", "jobs", self.id)

    async def _status(self) -> JobStatus:
        return JobStatus.model_validate(await self._connection.call("GET", self._path))

    async def _act(self, action: str, **query: str | None) -> JobStatus:
        told = await self._connection.call("POST", f"{self._path}/{action}", query=query)
        return JobStatus.model_validate(told)

    async def _why(self) -> Why:
        return Why.model_validate(await self._connection.call("GET", f"{self._path}/why"))

    async def _verify(
        self,
        repair: bool,
        tell: Callable[[Difference], None] | None,
        progress: Callable[[int], None] | None,
    ) -> Verified:
        differences: list[Difference] = []
        kinds: Counter[str] = Counter()
        async with self._connection.stream(
            f"{self._path}/verify", method="POST" if repair else "GET", seconds=LINE_SECONDS
        ) as opened:
            async for told in read_lines(opened.parts):
                if "difference" in told:
                    one = Difference.model_validate(told["difference"])
                    kinds[one.kind] += 1
                    if len(differences) < MAX_DIFFERENCES:
                        differences.append(one)
                    if tell is not None:
                        tell(one)
                if "checked" in told and progress is not None:
                    progress(told["checked"]["pictures"])
                if "verified" in told:
                    facts = {"differences": tuple(differences), "kinds": dict(kinds)}
                    return Verified.model_validate({**told["verified"], **facts})
        raise Unavailable("the farm closed the stream", hint="verify again")

    async def _remove(self, tell: Callable[[Removed], None] | None) -> Removed:
        """A call that was interrupted is repeated, and its deletions with it."""
        started, attempt, last = time.monotonic(), 0, Removed(objects=0, bytes=0)
        while True:
            try:
                async for told in self._removing():
                    last = told
                    if tell is not None:
                        tell(last)
                return last
            except NotFound:
                if not attempt:
                    raise
                return last  # the call before has done it, and its answer was lost
            except FarmError as error:
                await self._connection.pause(attempt, error, started)
            attempt += 1

    async def _removing(self) -> AsyncIterator[Removed]:
        async with self._connection.stream(
            self._path, method="DELETE", seconds=LINE_SECONDS
        ) as opened:
            async for told in read_lines(opened.parts):
                yield Removed.model_validate(told.get("removed") or told["removing"])
                if "removed" in told:
                    return
        raise Unavailable("the farm closed the stream", hint="remove it again")

    async def _usage(self) -> Usage:
        return await anext(read_usage(self._connection, f"{self._path}/usage"))

    async def _wait(
        self, timeout: float | None, progress: bool | Progress, check: bool
    ) -> JobStatus:
        tell = progress_line() if progress is True else progress
        end = None if timeout is None else time.monotonic() + timeout
        pause = FIRST_POLL_SECONDS
        while True:
            status = await self._status()
            if tell:
                tell(status)
            if status.ended:
                break
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimedOut(
                    f"job {self.id} is still {status.state} at the time-out; it continues",
                    hint=f"{status.images.done:,} of {status.images.total:,} pictures are done",
                )
            await self._connection.wire.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 1.5, MAX_POLL_SECONDS)
        if check:
            check_ended(status)
        return status

    async def _events(self) -> AsyncIterator[JobStatus]:
        """Every status the farm sends, until the last; it reconnects if the connection is lost."""
        started, attempt = time.monotonic(), 0
        while True:
            try:
                async with self._connection.stream(
                    f"{self._path}/events", seconds=QUIET_SECONDS
                ) as opened:
                    async for event, data in read_events(opened.parts):
                        started, attempt = time.monotonic(), 0
                        if event == "status":
                            yield JobStatus.model_validate_json(data)
                        elif event == "end":
                            return
                failure: FarmError = Unavailable("the farm closed the stream")
            except FarmError as error:
                failure = error
            await self._connection.pause(attempt, failure, started)
            attempt += 1

    async def _images(self, follow: bool = True) -> AsyncGenerator[Picture, None]:
        async with aclosing(self.pages(follow)) as pages:
            async for page in pages:
                for picture in page.pictures:
                    yield picture

    def pages(
        self, follow: bool = True, timeout: float | None = None
    ) -> AsyncGenerator[Page, None]:
        """The pictures as the farm lists them, several at a time and each once."""
        return Listing(self._connection, self.id).pages(follow, timeout)

    async def _previews(self) -> AsyncIterator[Preview]:
        """Each once; asks until the job has ended."""
        last: dict[tuple[int, int], Preview] = {}  # of the pictures that are on their way now
        while True:
            page = await self._connection.call("GET", f"{self._path}/previews")
            told = [Preview.model_validate(one) for one in page["previews"]]
            before, last = last, {(one.render, one.image): one for one in told}
            for place, one in last.items():
                if before.get(place) != one:
                    yield one
            if JobState(page["state"]) in TERMINAL_JOBS:
                return
            await self._connection.wire.sleep(PREVIEW_SECONDS)

    async def _fetch(
        self,
        folder: str | os.PathLike[str],
        follow: bool,
        parallel: int,
        progress: Callable[[int], None] | None,
        timeout: float | None,
        overwrite: bool,
        resume: bool,
        sign: Sign | None,
        shards: bool,
    ) -> Fetched:
        await self._status()  # it is there, and may be read, before the folder is touched
        fetcher = Fetcher(
            self._connection,
            folder,
            self.id,
            parallel,
            progress,
            overwrite=overwrite,
            resume=resume,
            sign=sign,
            shards=shards,
        )
        async with aclosing(self.pages(follow, timeout)) as pages:
            return await fetcher.fetch(pages)


class Job(JobHandle):
    """A job of a ``Farm``."""

    def _repr_html_(self) -> str:
        """For a notebook: how far it is, and its first pictures."""
        images = itertools.islice(self.images(follow=False), SHOWN)
        return display.job(self.status(), [image.figure() for image in images])

    def status(self) -> JobStatus:
        return drive(self._status())

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: bool | Progress = False,
        check: bool = True,
    ) -> JobStatus:
        """Wait for the end.

        Args:
            timeout: seconds; then ``TimedOut`` is raised, and the job continues.
            progress: True prints a line to stderr; a function is called with each status.
            check: raise ``JobFailed`` or ``JobCancelled`` instead of returning such a status.
        """
        return drive(self._wait(timeout, progress, check))

    def images(self, *, follow: bool = True) -> Iterator[Image]:
        """Pictures as they finish, in that order; with ``follow=False`` those that are there."""
        return (Image(self._connection, told) for told in iterate(self._images(follow)))

    def previews(self) -> Iterator[Preview]:
        """What pictures on their way look like, as their steps go, until the job has ended.

        Workers make previews only while someone asks, for a tenth of their time at most; pictures
        that take less than a second or two have none.
        """
        return iterate(self._previews())

    def events(self) -> Iterator[JobStatus]:
        """The status whenever it changes, until the job has ended."""
        return iterate(self._events())

    def cancel(self) -> JobStatus:
        return drive(self._act("cancel"))

    def pause(self) -> JobStatus:
        """Start no more of it until it is resumed; what is running continues."""
        return drive(self._act("pause"))

    def resume(self) -> JobStatus:
        return drive(self._act("resume"))

    def retry(self, reason: str | None = None) -> JobStatus:
        """Render the failed pictures of an ended job again; the others stay as they are.

        Args:
            reason: only those of tasks that failed for it: ``row``, the pictures' own errors;
                ``crash``, they crashed their worker; ``infra``, their worker was lost too often; or
                a part of the text that the task failed with.
        """
        return drive(self._act("retry", reason=reason))

    def remove(self, *, tell: Callable[[Removed], None] | None = None) -> Removed:
        """Delete the job, which has ended, with everything that the farm has of it.

        Args:
            tell: called now and then with what was deleted so far.
        """
        return drive(self._remove(tell))

    def usage(self) -> Usage:
        """What it takes up in the farm's store."""
        return drive(self._usage())

    def why(self) -> Why:
        """What it is waiting for, what goes first, and an estimate."""
        return drive(self._why())

    def verify(
        self,
        *,
        repair: bool = False,
        tell: Callable[[Difference], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Verified:
        """Compare the farm's manifest, queue and store of a job that has ended.

        Args:
            repair: remove what nothing lists, and render lost pictures again.
            tell: called with each difference as it is found; the result has the first 10,000.
            progress: called every few seconds with the number of pictures so far.
        """
        return drive(self._verify(repair, tell, progress))

    def fetch(
        self,
        folder: str | os.PathLike[str],
        *,
        follow: bool = True,
        parallel: int = PARALLEL,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
        overwrite: bool = False,
        resume: bool = False,
        sign: Sign | None = None,
        shards: bool = False,
    ) -> Fetched:
        """All pictures into a folder, with ``manifest.jsonl``; called again it fetches what is
        missing.

        Args:
            follow: stay until the job ends; else take what is there.
            parallel: downloads at a time.
            progress: called with the number of pictures so far.
            timeout: seconds; then a job that has not ended is no longer followed.
            overwrite: remove another job's pictures from the folder; else they are refused.
            resume: keep pictures there that are right, although nothing says whose they are.
            sign: adds content credentials to the files, as ``farm.formats.credentials.open_signer``
                makes it; what the farm has stored stays as it is.
            shards: fetch shards as they are stored, where the job has any: the manifest says in
                which one each picture lies, and its offset there.
        """
        return drive(
            self._fetch(
                folder, follow, parallel, progress, timeout, overwrite, resume, sign, shards
            )
        )


def check_ended(status: JobStatus) -> None:
    """Raise the error for a job that did not end well."""
    reason = f": {status.reason}" if status.reason else ""
    if status.state is JobState.FAILED:
        told = reason or f": {status.images.failed} of {status.images.total} pictures failed"
        raise JobFailed(f"job {status.id}{told}")
    if status.state is JobState.CANCELLED:
        raise JobCancelled(f"job {status.id} was cancelled{reason}")
