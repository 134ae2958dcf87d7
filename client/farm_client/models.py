"""What the farm says about jobs and pictures."""

import base64
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from farm.errors import RejectedRender
from farm.job import TERMINAL_JOBS, JobState
from farm_client.pillow import PillowImage, open_picture


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
    keep: int | None = None  # seconds after its end; then the farm removes it
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
    alone: int = 0  # tasks that a crashed worker held and that wait to run alone
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
    """The result of a comparison."""

    pictures: int  # that were looked at
    differences: tuple[Difference, ...]  # the first 10,000
    kinds: dict[str, int] = {}  # how many there are in all, by kind
    left: int  # of them, not repaired
    generation: int  # of the job; a repair that makes pictures again starts a new one


class LaneEstimate(_Told):
    """What one checkpoint, mode and size has to do."""

    pictures: int
    tasks: int
    row_steps: int
    pace: float  # row-steps/s of all workers together; 0 if none has measured it

    def __add__(self, other: "LaneEstimate") -> "LaneEstimate":
        return LaneEstimate(
            pictures=self.pictures + other.pictures,
            tasks=self.tasks + other.tasks,
            row_steps=self.row_steps + other.row_steps,
            pace=other.pace,
        )


class Estimate(NamedTuple):
    """What renders would come to."""

    renders: int  # that would be taken
    rejected: tuple[RejectedRender, ...]  # the first of those that would not
    rejected_count: int
    pictures: int
    bytes: int  # of the pictures in the store, roughly
    lanes: Mapping[str, LaneEstimate]
    workers: int

    @property
    def tasks(self) -> int:
        return sum(lane.tasks for lane in self.lanes.values())

    @property
    def seconds(self) -> float | None:
        """How long all workers would take that do nothing else; None where a lane is new."""
        if not all(lane.pace for lane in self.lanes.values()):
            return None
        return sum(lane.row_steps / lane.pace for lane in self.lanes.values())

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return {
            **self._asdict(),
            "rejected": [one.to_dict() for one in self.rejected],
            "lanes": {name: lane.model_dump() for name, lane in self.lanes.items()},
            "tasks": self.tasks,
            "seconds": self.seconds,
        }


class NamedAdapter(_Told):
    """A LoRA adapter that renders can name."""

    name: str
    sha256: str  # of the file as the farm keeps it, with its alpha
    size: int  # bytes
    rank: int  # the largest
    alpha: float | None = None  # None where the layers have different ones
    targets: tuple[str, ...] = ()  # kinds of layers, such as to_q
    created_at: datetime | None = None


class Asset(_Told):
    id: str
    kind: str
    size: int
    width: int | None = None
    height: int | None = None
    notes: tuple[str, ...] = ()


class Preview(_Told):
    """A picture on its way, as it looked after a step."""

    render: int
    image: int
    step: int
    steps: int
    confidence: float  # mean probability of its tokens at that step
    picture: str  # a small JPEG file, as a data URL

    def read(self) -> bytes:
        """The JPEG file."""
        return base64.b64decode(self.picture.partition(",")[2])

    def pil(self) -> PillowImage:
        """The picture; needs Pillow."""
        return open_picture(self.read())

    def _repr_jpeg_(self) -> bytes:
        return self.read()


_NOT_TOLD = frozenset({"url", "offset"})


class Picture(_Told):
    """One picture, or why there is none."""

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
    shard: str | None = None  # name of the object that holds other pictures, too
    offset: int | None = None  # of the picture's first byte in there

    @property
    def key(self) -> tuple[int, int, int]:
        """Names it among everything that its job ever made."""
        return self.render, self.image, self.generation

    def line(self) -> dict[str, Any]:
        """Its line in ``manifest.jsonl``, beside a file of its own."""
        return {name: value for name, value in self if name not in _NOT_TOLD}


class Shard(_Told):
    """An object of the farm's store that holds several pictures."""

    shard: str  # its name among those of its generation
    generation: int
    size: int  # bytes
    sha256: str
    url: str
    gateway_url: str | None = None  # for those who do not reach the store

    @property
    def file(self) -> str:
        """Its name among those of all generations, with the same suffix."""
        stem, dot, suffix = self.shard.partition(".")
        return f"{stem}.{self.generation}{dot}{suffix}" if self.generation else self.shard


class Page(NamedTuple):
    """Pictures that were listed together, and what they lie in."""

    pictures: tuple[Picture, ...]
    shards: Mapping[tuple[int, str], Shard]  # by generation and name

    @classmethod
    def of(cls, told: Mapping[str, Any], pictures: Iterable[Picture]) -> "Page":
        """Args:
        told: the farm's answer.
        pictures: those of them that are wanted.
        """
        shards = map(Shard.model_validate, told.get("shards", ()))
        return cls(tuple(pictures), {(one.generation, one.shard): one for one in shards})

    def shard_of(self, picture: Picture) -> Shard | None:
        if picture.shard is None or picture.offset is None or picture.size is None:
            return None
        return self.shards.get((picture.generation, picture.shard))


class Removed(_Told):
    """What was deleted with a job."""

    objects: int
    bytes: int


class Usage(_Told):
    """What a job, or a kind of uploads, takes up in the farm's store."""

    name: str  # a job's id, ``assets`` or ``adapters``
    objects: int
    bytes: int
    title: str | None = None  # the job's name
    state: JobState | None = None  # None where the queue has forgotten the job
