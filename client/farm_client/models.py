"""What the farm says of jobs and pictures."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from farm.job import TERMINAL_JOBS, JobState


class _Told(BaseModel):
    """Read from a server that may be newer: what it adds is kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ImageCounts(_Told):
    total: int = 0
    done: int = 0
    failed: int = 0
    running_done: int = 0  # finished inside tasks that still run

    @property
    def finished(self) -> int:
        return min(self.done + self.failed + self.running_done, self.total)


class JobStatus(_Told):
    id: str
    state: JobState
    images: ImageCounts = ImageCounts()
    name: str | None = None
    priority: str = "normal"
    format: str = "png"
    tasks: dict[str, int] = {}
    rejected: int = 0
    paused: bool = False
    generation: int = 0  # how often failed pictures were tried again
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    reason: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL_JOBS


class LaneQueue(_Told):
    """A job's ready work for one checkpoint, mode and size."""

    lane: str
    pictures: int
    position: int  # among the caller's own jobs, from 1
    earlier: int  # pictures of those before it
    higher: int  # pictures of higher classes
    share: float  # of its class's work that the caller gets


class Why(_Told):
    """Why a job is not done yet."""

    status: JobStatus
    waits_for: str
    alone: int = 0  # tasks that were aboard at a crash and wait to run alone
    lanes: tuple[LaneQueue, ...] = ()
    workers: int = 0  # that serve it
    seconds: float | None = None  # until its end, roughly
    note: str | None = None  # what stands in the way, in the words of the part that met it


class Difference(_Told):
    """Something that the manifest, the queue and the store of a job do not agree on."""

    kind: str
    subject: str
    expected: str = ""
    found: str = ""
    task: int | None = None

    def __str__(self) -> str:
        told = f"{self.kind} {self.subject}"
        if self.expected or self.found:
            told += f": expected {self.expected or 'nothing'}, found {self.found or 'nothing'}"
        return told


class Verified(_Told):
    """What a comparison came to."""

    pictures: int  # that were looked at
    differences: tuple[Difference, ...]
    left: int  # of them, not repaired
    generation: int  # of the job; a repair that makes pictures again starts a new one


class Asset(_Told):
    id: str
    kind: str
    size: int
    width: int | None = None
    height: int | None = None
    notes: tuple[str, ...] = ()


class Picture(_Told):
    """One picture, or the reason why there is none."""

    render: int
    image: int
    generation: int = 0  # the retry that made it
    file: str | None
    url: str | None
    sha256: str | None
    size: int | None = None
    width: int | None = None
    height: int | None = None
    seed: int
    tokens_sha256: str | None = None
    spec: dict[str, Any]
    error: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}  # what the row said besides the parameters

    def line(self) -> dict[str, Any]:
        """Its line in ``manifest.jsonl``."""
        return self.model_dump(mode="json", exclude={"url"})
