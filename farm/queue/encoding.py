"""How jobs, tasks and receipts are encoded for the scripts and decoded from their replies."""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from farm.errors import InvalidInput
from farm.job import (
    Format,
    JobState,
    Lease,
    Receipt,
    TaskDraft,
    TaskState,
    check_job_id,
)
from farm.queue.constants import CLASSES, MAX_ROWS
from farm.queue.messages import (
    PLANNED,
    Finished,
    Heartbeat,
    ImageCounts,
    JobHeader,
    JobStatus,
    Outcome,
    Progress,
    Restored,
    TaskCounts,
    Told,
    Verdict,
)
from farm.queue.why import LaneQueue
from farm.spec import Lane

BY_ROW = 1  # how a task runs that was there when its worker crashed
TASK_STATES = {
    "q": TaskState.QUEUED,
    "l": TaskState.LEASED,
    "w": TaskState.WAITING,
    "d": TaskState.DONE,
    "f": TaskState.FAILED,
    "c": TaskState.CANCELLED,
    "e": TaskState.EXPIRED,
}
JOB_STATES = {
    "o": JobState.OPEN,
    "c": JobState.QUEUED,
    "d": JobState.DONE,
    "f": JobState.FAILED,
    "x": JobState.CANCELLED,
}

# The fields of a job's header that count (lua/parts/job_record.lua).
IMAGE_COUNTS = {"total": "i", "done": "id", "failed": "if", "expired": "ix", "running_done": "rd"}
TASK_COUNTS = {
    "total": "n",
    "queued": "nq",
    "leased": "nl",
    "waiting": "nw",
    "done": "nd",
    "failed": "nf",
    "cancelled": "nc",
    "expired": "nx",
}


def milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def to_json(data: Any) -> str:
    """A long list is sent as one text: the client would encode each value in Python."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def header_arguments(header: JobHeader) -> list[Any]:
    options = header.options
    deadline = options.deadline
    stored = options.model_dump(
        mode="json", exclude_defaults=True, exclude={"idempotency_key", "deadline", "priority"}
    )
    return [
        check_job_id(header.job),
        header.tenant,
        header.fingerprint,
        options.idempotency_key or "",
        options.priority.rank,
        to_json(stored),
        "" if deadline is None else milliseconds(deadline),
    ]


def task_arguments(tasks: Sequence[TaskDraft]) -> list[Any]:
    if len(tasks) > MAX_ROWS:
        raise InvalidInput(f"{len(tasks)} tasks; at most {MAX_ROWS} in one call", field="tasks")
    for task in tasks:
        if task.number < 0 or task.pictures < 1 or task.cost < 0:
            raise InvalidInput(f"task {task.number} has no pictures", field="tasks")
    rows = [
        (str(task.number), str(task.lane), str(task.pictures), str(task.cost), task.inline)
        for task in tasks
    ]
    return [to_json(rows)]


def restored(task: Restored) -> list[Any]:
    size = [task_name(task), str(task.lane), str(task.pictures), str(task.cost)]
    retry = "1" if task.retry else "0"
    if task.receipt is not None:
        done, failed = task.receipt.done, task.receipt.failed
        packed = to_json(pack(task.receipt))
        return [*size, "d", done, failed, packed, task.receipt.numerics, retry]
    if task.lost:
        return [*size, "f", 0, task.pictures, "it ran out of attempts", "", retry]
    return [*size, "q", 0, 0, "", "", "0"]


def pack(receipt: Receipt) -> list[Any]:
    return [receipt.done, receipt.failed, receipt.size, receipt.part, receipt.part_sha256]


def task_name(task: Lease | Finished | Restored) -> str:
    return f"{task.generation}/{task.number}" if task.generation else str(task.number)


def numbers(name: str) -> tuple[int, int]:
    """Number and generation of a task, from its name."""
    generation, _, number = name.rpartition("/")
    return int(number), int(generation or 0)


def lease(row: Sequence[Any]) -> Lease:
    key, attempt, lane, pictures, cost, number_of_class, alone, inline, skip = row
    # Lua's JSON writes an empty list as an empty object; tuple() reads both.
    job, generation, number = key.split("/")
    return Lease(
        job=job,
        number=int(number),
        generation=int(generation),
        attempt=int(attempt),
        lane=lane,
        pictures=int(pictures),
        cost=int(cost),
        priority=CLASSES[number_of_class],
        alone=int(alone) == BY_ROW,
        inline=inline,
        skip=tuple(skip),
    )


def progress(key: str, at: Progress | tuple[int, int]) -> list[Any]:
    done, failed, row = Progress(*at)
    return [key, done, failed, "" if row is None else row]


def heartbeat_arguments(
    session: str,
    room: int,
    progress_by_key: Mapping[str, Progress | tuple[int, int]],
    stats: Mapping[str, Any],
    ms: int,
) -> list[Any]:
    planned = {name: stats[name] for name in PLANNED if name in stats}
    rows = [value for key, at in progress_by_key.items() for value in progress(key, at)]
    return [session, ms, room, to_json(stats), to_json(planned), *rows]


def heartbeat(reply: Sequence[Any]) -> Heartbeat:
    command, held, cancelled, unplanned = reply
    return Heartbeat(set(held), set(cancelled), command or None, bool(unplanned))


@functools.lru_cache(4_096)  # as many as sessions; most told nothing since the last look
def told(text: str) -> Told:
    stats = json.loads(text)
    return Told(
        int(stats.get("beat", 0)),
        int(stats.get("urgent_room", 0)),
        int(stats.get("unbegun", 0)),
        frozenset(map(Lane.parse, stats.get("lanes", ()))),
    )


def lane_queue(row: Sequence[Any]) -> LaneQueue:
    lane, tasks, pictures, row_steps, position, earlier, higher, weight, weights = row
    return LaneQueue(
        lane=Lane.parse(lane),
        tasks=tasks,
        pictures=pictures,
        row_steps=row_steps,
        position=position,
        earlier=earlier,
        higher=higher,
        weight=float(weight),
        weights=float(weights),
    )


def totals(values: Sequence[Any]) -> ImageCounts:
    named = zip(IMAGE_COUNTS, values, strict=True)
    return ImageCounts(**{name: int(value or 0) for name, value in named})


def completion(lease: Lease, receipt: Receipt) -> list[Any]:
    return [
        lease.job,
        task_name(lease),
        lease.attempt,
        receipt.done,
        receipt.failed,
        to_json(pack(receipt)),
        receipt.numerics,
    ]


def outcomes(reply: str) -> list[Outcome]:
    return [
        Outcome(Verdict(verdict), receipt(winner, numerics) if winner else None)
        for verdict, winner, numerics in json.loads(reply)
    ]


def receipt(packed: str, numerics: str) -> Receipt:
    done, failed, size, part, part_sha256 = json.loads(packed)
    return Receipt(
        done=done,
        failed=failed,
        size=size,
        part=part,
        part_sha256=part_sha256,
        numerics=numerics,
    )


def _moment(milliseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None


def status(job: str, fields: Sequence[str]) -> JobStatus:
    """From a job's header as Redis stores it, with its short field names."""
    header = dict(zip(fields[::2], fields[1::2], strict=True))
    options = json.loads(header["o"])
    state = JOB_STATES[header["s"]]
    started = _moment(header.get("b"))
    if state is JobState.QUEUED and started is not None:
        state = JobState.RUNNING

    def number(field: str) -> int:
        return int(header.get(field, 0))

    created = _moment(header["c"])
    assert created is not None
    return JobStatus(
        id=job,
        name=options.get("name"),
        state=state,
        paused="ps" in header,
        priority=CLASSES[number("p")],
        sink=options.get("sink", "images"),
        format=Format(options.get("format", Format.PNG)),
        created_at=created,
        started_at=started,
        ended_at=_moment(header.get("e")),
        deadline=_moment(header.get("dl")),
        generation=number("g"),
        images=ImageCounts(**{name: number(field) for name, field in IMAGE_COUNTS.items()}),
        tasks=TaskCounts(**{name: number(field) for name, field in TASK_COUNTS.items()}),
        row_steps=number("k"),
        rejected=number("rj"),
        max_failed=options.get("max_failed", 0),
        keep=int(options["keep"].removesuffix("s")) if "keep" in options else None,
        reason=header.get("r"),
    )
