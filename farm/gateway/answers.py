"""What the API answers; its description at ``/openapi.json`` is made from these."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from farm.ingest.adapters import NamedAdapter
from farm.job import JobState
from farm.queue import JobStatus
from farm.queue.why import WaitsFor
from farm.spec import CheckpointInfo


def _none(value: object) -> bool:
    return value is None


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorFacts(Answer):
    """What was wrong, and the way out. Those of pictures may have been stored by another version,
    with facts of its own."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str
    field: str | None = Field(None, exclude_if=_none)  # the input that it is about
    hint: str | None = Field(None, exclude_if=_none)
    line: int | None = Field(None, exclude_if=_none)  # where that stood in a body of lines, from 1
    column: int | None = Field(None, exclude_if=_none)
    retryable: bool = False


class Rejected(ErrorFacts):
    """A render that was refused; others of its job may have been taken."""

    render: int  # index in the job, from 0


class Refusal(Answer):
    """Every answer with a status of 400 and above."""

    error: ErrorFacts
    errors: tuple[Rejected, ...] | None = Field(None, exclude_if=_none)  # where no render was taken


class Jobs(Answer):
    jobs: list[JobStatus]
    next: str | None  # the cursor for ``before``; None at the end


class Opened(Answer):
    """A job that is sent in pieces."""

    id: str
    state: JobState
    created: bool  # False where the idempotency key has made it before
    seed: int  # that seeds of renders without one are derived from


class Submitted(JobStatus):
    created: bool
    accepted: int  # renders
    errors: list[Rejected]  # the first of those that were refused


class PieceTaken(Answer):
    piece: int
    pieces: int  # that the body had
    accepted: int  # renders
    pictures: int
    rejected: int
    errors: list[Rejected]


class LaneEstimate(Answer):
    """What one checkpoint, mode and size has to do."""

    pictures: int
    tasks: int
    row_steps: int
    pace: float  # row-steps/s of all workers together; 0 if none has measured it


class Estimate(Answer):
    accepted: int  # renders
    rejected: int
    errors: list[Rejected]
    pictures: int
    bytes: int  # of the pictures in the store, roughly
    lanes: dict[str, LaneEstimate]
    workers: int


class Image(Answer):
    """A picture, or why there is none: then ``error`` says it, and there is no ``file``."""

    render: int  # index in the job
    image: int  # index in the render
    generation: int  # the retry that made it
    file: str | None  # a name to keep it under
    sha256: str | None  # of the file
    size: int | None  # bytes
    width: int
    height: int
    seed: int
    tokens_sha256: str | None
    numerics: str | None
    confidence: float | None  # mean probability of its tokens
    notes: list[str]
    error: ErrorFacts | None
    spec: dict[str, Any]  # the render, with every default filled in
    metadata: dict[str, Any]  # what the row said besides the parameters
    shard: str | None  # name of the object that holds other pictures, too
    offset: int | None  # of the picture's first byte in there
    url: str | None  # where to fetch it; a path is one of this gateway's


class Shard(Answer):
    """An object of the store that holds several pictures."""

    shard: str
    generation: int
    size: int
    sha256: str
    url: str
    gateway_url: str  # for callers who do not reach the store


class Images(Answer):
    images: list[Image]
    early: list[Image]  # of tasks that still run
    shards: list[Shard]
    next: str  # the cursor for ``after``
    state: JobState


class Preview(Answer):
    """A picture on its way, as it looked after a step."""

    render: int
    image: int
    step: int
    steps: int
    confidence: float
    picture: str  # a small JPEG file, as a data URL


class Previews(Answer):
    previews: list[Preview]
    state: JobState


class LaneQueue(Answer):
    """A job's ready work for one checkpoint, mode and size."""

    lane: str
    tasks: int
    pictures: int
    row_steps: int  # per picture of its next task
    position: int  # among the caller's jobs of this class, from 1
    earlier: int  # pictures of those before it
    higher: int  # pictures of higher classes
    weight: float
    weights: float
    share: float  # of its class's work that the caller gets


class Why(Answer):
    status: JobStatus
    waits_for: WaitsFor
    alone: int  # tasks that a crashed worker held and that wait to run alone
    lanes: list[LaneQueue]
    workers: int  # that serve it
    seconds: float | None  # until its end, roughly
    note: str | None


class ScoresAdded(Answer):
    scorer: str
    rows: int


class Adapters(Answer):
    adapters: list[NamedAdapter]


class AdapterRemoved(Answer):
    name: str
    removed: bool  # False where there was none


class Checkpoint(CheckpointInfo):
    default: bool


class Checkpoints(Answer):
    checkpoints: list[Checkpoint]


class Health(Answer):
    status: str
    version: str


class Ready(Answer):
    ready: bool
    queue: str  # ok, or what is wrong
    store: str
    workers: int
    note: str | None = Field(None, exclude_if=_none)  # what the scheduler says of its cluster
    placed: int | None = Field(None, exclude_if=_none)  # workers that it wants there
    missing: list[str] | None = Field(None, exclude_if=_none)  # those that do not run, and why
