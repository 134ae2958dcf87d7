"""The farm, from a program's side: ``Farm``, and ``AsyncFarm`` with ``await``.

Both are thin: each public method hands over to one asynchronous method of ``FarmHandle``, which
awaits its transport and nothing else (``farm_client.sync`` says how the synchronous one runs it).
Two other ways were refused: a background event loop makes every exception, Ctrl-C and fork of the
caller's program cross a thread border, and generated code is a second copy to read and to debug.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from farm.job import check_job_id
from farm.spec import CheckpointInfo
from farm_client.address import find_address
from farm_client.async_job import AsyncJob
from farm_client.connection import PATIENCE_SECONDS, Connection, path_of
from farm_client.inputs import FileInput
from farm_client.job import Job
from farm_client.models import Asset, Estimate, JobStatus, NamedAdapter, Usage
from farm_client.parameters import BulkOptions, Submission
from farm_client.streams import read_usage
from farm_client.submission import Submitter
from farm_client.sync import drive, iterate
from farm_client.transport import AsyncWire, BlockingWire, Wire
from farm_client.uploads import Uploads


class FarmHandle:
    """One farm's address and the calls that are not about one job."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._uploads = Uploads(connection)
        self._submitter = Submitter(connection, self._uploads)

    @property
    def url(self) -> str:
        return self._connection.address.url

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    async def _checkpoints(self) -> list[CheckpointInfo]:
        told = await self._connection.call("GET", "/v1/checkpoints")
        known = CheckpointInfo.model_fields
        return [
            CheckpointInfo.model_validate({k: v for k, v in one.items() if k in known})
            for one in told["checkpoints"]
        ]

    async def _adapters(self) -> list[NamedAdapter]:
        told = await self._connection.call("GET", "/v1/adapters")
        return [NamedAdapter.model_validate(one) for one in told["adapters"]]

    async def _remove_adapter(self, name: str) -> bool:
        told = await self._connection.call("DELETE", path_of("v1", "adapters", name))
        return bool(told["removed"])

    async def _jobs(self, limit: int | None) -> AsyncIterator[JobStatus]:
        before, left = None, limit
        while left is None or left > 0:
            page = await self._connection.call(
                "GET", "/v1/jobs", query={"limit": min(left or 100, 100), "before": before}
            )
            for told in page["jobs"]:
                yield JobStatus.model_validate(told)
            before = page["next"]
            if before is None:
                return
            left = None if left is None else left - len(page["jobs"])

    def _usage(self, everything: bool) -> AsyncIterator[Usage]:
        return read_usage(self._connection, "/v1/usage", {"everything": everything or None})


class Farm(FarmHandle):
    """A farm at an address. It can be pickled, for other processes and for Ray, with its key; each
    copy opens connections of its own.

    Args:
        url: its address; else ``FARM_URL``, else the farm that ``farm up`` started here.
        api_key: else ``FARM_API_KEY``.
        patience: seconds for which calls are repeated while the farm is away.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE_SECONDS,
        wire: Wire | None = None,
    ) -> None:
        address = find_address(url, api_key)
        super().__init__(
            Connection(address, wire or BlockingWire(address=address), patience=patience)
        )

    def submit(
        self, prompt: str | Sequence[str] | None = None, **parameters: Unpack[Submission]
    ) -> Job:
        """Submit one render, or several prompts with the same parameters, as one job. Files and
        pictures are uploaded. A call that is repeated after a lost answer makes no second job."""
        taken = drive(self._submitter.submit(prompt, dict(parameters)))
        return Job(self._connection, taken.id, **taken.facts())

    def submit_many(self, requests: Iterable[Any], **options: Unpack[BulkOptions]) -> Job:
        """Submit any number of renders as one job: an open JSONL file, or dicts, requests and
        prompts. What the farm refuses is in ``job.rejected``; the rest is rendered. To continue
        after an interruption, call it again with the same input and ``idempotency_key``, or with
        ``resume`` both times."""
        taken = drive(self._submitter.submit_many(requests, dict(options)))
        return Job(self._connection, taken.id, **taken.facts())

    def estimate(self, requests: Iterable[Any], **options: Unpack[BulkOptions]) -> Estimate:
        """What ``submit_many`` with the same arguments would come to. Input files are uploaded;
        nothing is submitted."""
        return drive(self._submitter.estimate(requests, dict(options)))

    def job(self, id: str) -> Job:  # noqa: A002
        """A job by its id; nothing is asked yet."""
        return Job(self._connection, check_job_id(id))

    def jobs(self, limit: int | None = None) -> Iterator[JobStatus]:
        """The newest first."""
        return iterate(self._jobs(limit))

    def usage(self, *, everything: bool = False) -> Iterator[Usage]:
        """What your jobs, the newest first, and uploads take up in the farm's store.

        Args:
            everything: also jobs that the queue has forgotten.
        """
        return iterate(self._usage(everything))

    def upload(self, file: FileInput) -> Asset:
        """Upload an input file; its id can be used in place of the file."""
        return drive(self._uploads.upload(file, "file"))

    def add_adapter(
        self, name: str, file: FileInput, *, alpha: float | None = None
    ) -> NamedAdapter:
        """Name a LoRA adapter, a safetensors file, so that renders can say ``adapters``.

        ``alpha`` is for a file that does not say its own; without either it counts as the rank.
        """
        return drive(self._uploads.add_adapter(name, file, alpha))

    def adapters(self) -> list[NamedAdapter]:
        """Yours, by name."""
        return drive(self._adapters())

    def remove_adapter(self, name: str) -> bool:
        """Forget a name; jobs that were accepted keep the adapter. False if there was none."""
        return drive(self._remove_adapter(name))

    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints that can be used; the first is the default."""
        return drive(self._checkpoints())

    def close(self) -> None:
        drive(self._connection.wire.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncFarm(FarmHandle):
    """``Farm`` for asynchronous code."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = PATIENCE_SECONDS,
        wire: Wire | None = None,
    ) -> None:
        address = find_address(url, api_key)
        super().__init__(Connection(address, wire or AsyncWire(address=address), patience=patience))

    async def submit(
        self, prompt: str | Sequence[str] | None = None, **parameters: Unpack[Submission]
    ) -> AsyncJob:
        taken = await self._submitter.submit(prompt, dict(parameters))
        return AsyncJob(self._connection, taken.id, **taken.facts())

    async def submit_many(
        self, requests: Iterable[Any], **options: Unpack[BulkOptions]
    ) -> AsyncJob:
        taken = await self._submitter.submit_many(requests, dict(options))
        return AsyncJob(self._connection, taken.id, **taken.facts())

    async def estimate(self, requests: Iterable[Any], **options: Unpack[BulkOptions]) -> Estimate:
        return await self._submitter.estimate(requests, dict(options))

    def job(self, id: str) -> AsyncJob:  # noqa: A002
        return AsyncJob(self._connection, check_job_id(id))

    async def jobs(self, limit: int | None = None) -> AsyncIterator[JobStatus]:
        async for status in self._jobs(limit):
            yield status

    async def usage(self, *, everything: bool = False) -> AsyncIterator[Usage]:
        async for one in self._usage(everything):
            yield one

    async def upload(self, file: FileInput) -> Asset:
        return await self._uploads.upload(file, "file")

    async def add_adapter(
        self, name: str, file: FileInput, *, alpha: float | None = None
    ) -> NamedAdapter:
        return await self._uploads.add_adapter(name, file, alpha)

    async def adapters(self) -> list[NamedAdapter]:
        return await self._adapters()

    async def remove_adapter(self, name: str) -> bool:
        return await self._remove_adapter(name)

    async def checkpoints(self) -> list[CheckpointInfo]:
        return await self._checkpoints()

    async def close(self) -> None:
        await self._connection.wire.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
