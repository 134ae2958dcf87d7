"""A job and its tasks: what a user submits, what a worker leases, and the states of both."""

import enum
import re
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from farm.errors import InvalidInput
from farm.renders import NumberedSpec, Renders
from farm.spec import Form, Lane, Parameter, explain, parameters_of
from farm.stored_record import StoredRecord

MAX_NAME = 200  # characters
MAX_IDEMPOTENCY_KEY = 200
MAX_TASK_PICTURES = 1000
SHARD_PICTURES = 1000  # of a shard, if the submission does not say how many
SHARD_PIXELS = 2**26  # of all pictures of a shard: storing it takes that much memory
TASK_SECONDS = 20  # measured work that one task should take at most
DEFAULT_ROW_STEPS_PER_SECOND = 120  # of a lane that no worker has measured yet
MAX_DEADLINE_DAYS = 366
MAX_JOB_LANES = 256  # checkpoints, modes and sizes; cancelling a job costs Redis 0.2 ms for each
RETENTION_DAYS = 30.0  # that a job is known after its end
OPEN_HOURS = 24.0  # that a job which comes in by pieces waits for the next one
SETTLED_HOURS = 2.0  # that workers may still store a cancelled job's; twice a publisher's patience
MIN_KEEP_SECONDS, MAX_KEEP_DAYS = 60, 36_500
MAX_PIECE_LINES = 2000  # of a job that comes in pieces; task numbers depend on it
MAX_CALL_PIECES = 5  # that come in one call
MAX_LINE_BYTES = 2**20  # of one render as it is written
MAX_ASSET_BYTES = 100 * 2**20
CELL = 0  # of this farm; part of every job id, so that several farms can be one service

_JOB_ID = re.compile(r"^j\d+-[0-9a-hjkmnp-tv-z]{26}$")
_SINK = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


class Priority(enum.StrEnum):
    """The classes of work, in the order in which they are served."""

    URGENT = "urgent"  # someone is waiting at the screen
    NORMAL = "normal"
    BULK = "bulk"  # a dataset; takes what the others leave

    @property
    def rank(self) -> int:
        """0 for the class that is served first."""
        return list(Priority).index(self)


class Format(enum.StrEnum):
    PNG = "png"
    WEBP = "webp"  # lossless
    JPEG = "jpeg"
    TOKENS = "tokens"  # a safetensors file with the VQ token ids; the pipelines' "latent" output


class TaskState(enum.StrEnum):
    QUEUED = "queued"  # ready for any worker with room
    LEASED = "leased"  # a session holds it
    WAITING = "waiting"  # will be queued again later
    DONE = "done"  # its pictures and its manifest part are stored
    FAILED = "failed"  # it ran out of attempts
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # its deadline passed before it started


class JobState(enum.StrEnum):
    OPEN = "open"  # more pieces may come in; work may have started
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # more pictures failed than max_failed
    CANCELLED = "cancelled"


TERMINAL_JOBS = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


def _moment(value: Any) -> Any:
    """RFC 3339 text becomes a time; a time without a zone is refused rather than guessed."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"{value!r} is not a time; write it like 2026-12-31T18:00:00Z"
            ) from None
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError("has no time zone; add Z or +01:00")
    return value


_KEEP = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _duration(value: Any) -> Any:
    """Seconds from ``30d``, ``12h`` and the like; a number without a unit might mean anything."""
    if value is None:
        return None
    found = _KEEP.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"{str(value)[:40]!r} is not a time; write it like 30d, 12h or 90m")
    seconds = round(float(found[1]) * _UNIT_SECONDS[found[2]])
    if not MIN_KEEP_SECONDS <= seconds <= MAX_KEEP_DAYS * 86400:
        raise ValueError(f"must be {MIN_KEEP_SECONDS}s to {MAX_KEEP_DAYS:,}d")
    return seconds


class JobOptions(BaseModel):
    """How a job is run and stored: everything except the renders themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[
        str | None, Field(max_length=MAX_NAME), Parameter(help="A name for the job")
    ] = None
    priority: Annotated[Priority, Parameter(help=", ".join(Priority), metavar="NAME")] = (
        Priority.NORMAL
    )
    # Which sinks there are, ``farm.sinks.registry`` knows.
    sink: Annotated[
        str,
        Parameter(
            help="How pictures are stored: images, webdataset, parquet, tokens, or an "
            "installed one",
            metavar="NAME",
        ),
    ] = "images"
    shard_size: Annotated[
        Annotated[int, Field(strict=True)] | None,
        Parameter(
            help=f"Pictures in a shard, fewer of large ones; default {SHARD_PICTURES:,}",
            form=Form.INTEGER,
            least=1,
            most=MAX_TASK_PICTURES,
            metavar="N",
        ),
    ] = None
    format: Annotated[Format, Parameter(help=", ".join(Format), metavar="KIND")] = Format.PNG
    seed: Annotated[
        int | None,
        Field(strict=True, lt=2**53),
        Parameter(
            help="Seeds of renders without one are derived from it", form=Form.INTEGER, least=0
        ),
    ] = None
    max_failed: Annotated[
        int,
        Field(strict=True),
        Parameter(
            help="Pictures that may fail before the job does",
            form=Form.INTEGER,
            least=0,
            metavar="N",
        ),
    ] = 0
    deadline: Annotated[
        Annotated[datetime, BeforeValidator(_moment)] | None,
        Parameter(help="RFC 3339; what has not started by then never does", metavar="TIME"),
    ] = None
    keep: Annotated[
        int | None,  # seconds
        BeforeValidator(_duration, json_schema_input_type=str | None),
        PlainSerializer(lambda seconds: f"{seconds}s", when_used="json-unless-none"),
        # Left out where it is not given, so that older submissions keep their fingerprints.
        Field(exclude_if=lambda value: value is None),
        Parameter(help="Delete the job so long after its end, such as 30d or 12h", metavar="TIME"),
    ] = None
    idempotency_key: Annotated[
        str | None,
        Field(min_length=1, max_length=MAX_IDEMPOTENCY_KEY),
        Parameter(help="The same key never makes a second job"),
    ] = None

    @field_validator("name", "idempotency_key")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and not value.isprintable():
            raise ValueError("has characters that cannot be printed; remove them")
        return value

    @field_validator("sink")
    @classmethod
    def _sink_name(cls, value: str) -> str:
        if not _SINK.fullmatch(value):
            raise ValueError(f"{value[:40]!r} is not the name of a sink")
        return value

    @model_validator(mode="before")
    @classmethod
    def _format_of_sink(cls, data: Any) -> Any:
        """The sink of tokens stores nothing else, so the format need not be said twice."""
        if not isinstance(data, Mapping):
            return data
        if data.get("sink") == "tokens":
            if data.get("format", Format.TOKENS) != Format.TOKENS:
                raise ValueError("format: the sink tokens stores no pictures; leave it out")
            return {**data, "format": Format.TOKENS}
        if data.get("sink") == "parquet" and data.get("format") == Format.TOKENS:
            raise ValueError("format: Parquet files of tokens are what the sink tokens makes")
        return data

    @field_validator("deadline")
    @classmethod
    def _near(cls, value: datetime | None) -> datetime | None:
        if value is not None and value - datetime.now(UTC) > timedelta(days=MAX_DEADLINE_DAYS):
            raise ValueError(f"is more than {MAX_DEADLINE_DAYS} days away")
        return value

    def check_deadline(self) -> None:
        """Of a new job it is ahead; one that is sent again may be there although it has passed."""
        if self.deadline is not None and self.deadline <= datetime.now(UTC):
            raise InvalidInput(f"{self.deadline.isoformat()} has passed", field="deadline")

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Options from JSON-like data; raises ``InvalidInput`` with the field and a hint."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise explain(error, data, OPTIONS) from None


OPTIONS: Mapping[str, Parameter] = parameters_of(JobOptions)


_ONE_BY_ONE = TypeAdapter(tuple[NumberedSpec, ...])


class Chunk(StoredRecord):
    """The immutable content of one task: everything a worker needs besides the assets' bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    number: int  # of the task in its job
    tenant: str
    sink: str
    format: Format
    lane: str
    renders: Renders

    @field_validator("renders", mode="before")
    @classmethod
    def _one_by_one(cls, value: Any) -> Any:
        """Before schema 2 there was an object for each render."""
        if isinstance(value, list | tuple):
            return Renders.of(_ONE_BY_ONE.validate_python(value))
        return value

    @property
    def pictures(self) -> int:
        return self.renders.pictures

    @property
    def cost(self) -> int:
        """Row-steps."""
        return self.renders.cost


class TaskDraft(NamedTuple):
    """A task as it is queued. ``inline`` is the chunk's JSON where it is small, else empty."""

    number: int
    lane: Lane
    pictures: int
    cost: int  # row-steps
    inline: str = ""


class Lease(NamedTuple):
    """A task that a session holds."""

    job: str
    number: int
    generation: int
    attempt: int
    lane: str  # empty for the task that finalises its job
    pictures: int
    cost: int
    priority: Priority
    alone: bool  # its worker crashed while it ran: it now runs row by row
    inline: str
    skip: tuple[int, ...] = ()  # rows that crashed their worker twice while running alone

    @property
    def finalise(self) -> bool:
        return not self.lane

    @property
    def key(self) -> str:
        """Names the task among everything a session holds."""
        return f"{self.job}/{self.generation}/{self.number}"


class Receipt(BaseModel):
    """What a worker reports of a finished task; stored with the task."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: int  # pictures
    failed: int
    size: int  # bytes stored
    part: str  # key of the manifest part
    part_sha256: str
    numerics: str


def job_id(now: float | None = None) -> str:
    """A new id: the cell, 48 bits of time in ms and 80 random bits, as a ULID."""
    number = int((time.time() if now is None else now) * 1000) << 80 | secrets.randbits(80)
    return f"j{CELL}-" + "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def job_number(job: str) -> int:
    """The 128 bits of an id: 48 of time in ms, 80 random ones."""
    number = 0
    for digit in check_job_id(job).partition("-")[2]:
        number = number << 5 | _CROCKFORD.index(digit)
    return number % 2**128


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None


def check_job_id(text: str) -> str:
    if not is_job_id(text):
        raise InvalidInput(
            f"{text[:80]!r} is not a job id",
            field="job",
            hint="farm ls shows the jobs and their ids",
        )
    return text
