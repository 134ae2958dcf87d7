"""What the page shows, gathered from the queue and the store; every list is bounded."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import NamedTuple

from farm.errors import FarmError
from farm.gateway.answers import Image
from farm.job import TERMINAL_JOBS, JobState
from farm.queue import JobStatus, Queue, notice
from farm.queue.messages import LaneBacklog, Session, summed_paces
from farm.queue.why import WaitsFor, Why

JOBS_PAGE = 25
PICTURES_PAGE = 60
RECENT_JOBS = 12  # looked through for the newest pictures
MAX_LANES = 50
MAX_WORKERS = 100
MAX_MISSING = 50  # workers that do not run
MAX_TENANTS = 100
TENANT_JOBS = 100  # the newest of each
FAILURES_READ = 1000  # pictures of a job that are grouped by why they failed

_WAITS = {
    WaitsFor.PIECES: "The rest of the submission: its client has not sent everything yet.",
    WaitsFor.RESUME: "It is paused. Resume it to go on.",
    WaitsFor.WORKER: "A worker: none that serves its checkpoint is connected.",
    WaitsFor.HIGHER: "Work of a higher priority goes first.",
    WaitsFor.TURN: "Earlier jobs of the same tenant go first.",
    WaitsFor.ROOM: "Room: the workers are full.",
    WaitsFor.EMPTY_WORKER: "An empty worker: what is left runs alone after a crash.",
    WaitsFor.RETRY: "The next attempt: a failed one is tried again in a moment.",
    WaitsFor.STORE: "The store: nothing can be written there.",
    WaitsFor.FINALISE: "The last file: every picture is done.",
}


class Shown(NamedTuple):
    """A picture in a grid."""

    job: str
    render: int
    image: int
    url: str | None
    prompt: str
    error: str | None
    lost: bool  # with its task, before anything of it was made
    width: int
    height: int
    parameters: tuple[tuple[str, str], ...]


class FailureGroup(NamedTuple):
    reason: str
    retry: str  # what a retry of them asks for
    pictures: int
    examples: tuple[str, ...]  # prompts


class TenantUse(NamedTuple):
    """What a tenant asks of the farm; of pictures and jobs, those of its newest jobs."""

    name: str
    weight: float
    jobs: int  # that have not ended
    left: int  # pictures still to be made
    done: int
    failed: int
    bytes: int  # of input files


class Lane(NamedTuple):
    name: str
    priority: str
    tasks: int
    pictures: int
    row_steps: float  # a second, of all workers that measured it


def waits_for(why: Why) -> str | None:
    """None if workers hold what is left of it."""
    return _WAITS.get(why.waits_for)


def is_over(status: JobStatus) -> bool:
    return status.state in TERMINAL_JOBS


def may_retry(status: JobStatus) -> bool:
    return is_over(status) and status.state is not JobState.CANCELLED and status.images.failed > 0


def shown(job: str, image: Image) -> Shown:
    """From a picture as the API lists it."""
    spec = image.spec
    error = image.error
    named = {
        "size": f"{image.width} x {image.height}",
        "seed": image.seed,
        "steps": spec.get("num_inference_steps"),
        "guidance": spec.get("guidance_scale"),
        "mode": spec.get("mode"),
        "strength": spec.get("strength"),
        "adapters": ", ".join(
            f"{one['sha256'][:12]}:{one['scale']:g}" for one in spec.get("adapters", ())
        ),
        "negative prompt": spec.get("negative_prompt"),
        "checkpoint": spec.get("checkpoint"),
        "numerics": image.numerics,
        "notes": "; ".join(image.notes),
    }
    return Shown(
        job,
        image.render,
        image.image,
        image.url,
        spec.get("prompt") or "",
        None if error is None else error.message,
        error is not None and image.numerics is None,
        image.width,
        image.height,
        tuple((name, str(value)) for name, value in named.items() if value not in (None, "")),
    )


def failure_groups(failed: Iterable[Shown]) -> list[FailureGroup]:
    """Failed pictures by what the failure says, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    prompts: dict[tuple[str, str], list[str]] = {}
    for picture in failed:
        reason = picture.error or "unknown"
        # A task that was lost is known by what it says, a picture's own error as one of a kind.
        group = reason, reason if picture.lost else "row"
        counts[group] += 1
        examples = prompts.setdefault(group, [])
        if len(examples) < 3 and picture.prompt not in examples:
            examples.append(picture.prompt)
    return [
        FailureGroup(*group, count, tuple(prompts[group]))
        for group, count in counts.most_common(20)
    ]


def tenant_use(
    name: str, weight: float, newest: Sequence[JobStatus], kept: Mapping[str, int]
) -> TenantUse:
    living = [one.images for one in newest if not is_over(one)]
    return TenantUse(
        name,
        weight,
        len(living),
        sum(max(one.total - one.done - one.failed, 0) for one in living),
        sum(one.images.done for one in newest),
        sum(one.images.failed for one in newest),
        kept.get(name, 0),
    )


def lanes(backlog: Sequence[LaneBacklog], sessions: Sequence[Session]) -> list[Lane]:
    paces = summed_paces(sessions)
    found = [
        Lane(
            str(one.lane), str(one.priority), one.tasks, one.pictures, paces.get(str(one.lane), 0.0)
        )
        for one in sorted(backlog, key=lambda one: one.pictures, reverse=True)[:MAX_LANES]
    ]
    waiting = {lane.name for lane in found}
    idle = [Lane(name, "", 0, 0, pace) for name, pace in paces.items() if name not in waiting]
    return (found + idle)[:MAX_LANES]


def problems(
    queue: Queue, sessions: Callable[[], Sized], found: tuple[str | None, str | None]
) -> list[str]:
    """What is wrong with the farm, in sentences; empty if it works."""
    in_queue, in_store = found
    told = []
    if in_queue:
        told.append(f"The queue does not answer: {in_queue}")
    if in_store:
        told.append(f"The store cannot be written to: {in_store}")
    if not in_queue:
        try:
            workers, said = len(sessions()), notice.read(queue)
        except FarmError as error:
            return [*told, f"The queue does not answer: {error}"]
        if not workers:
            told.append("No worker is connected, so nothing is drawn. Jobs wait for one.")
        if said:
            told.append(f"The workers: {said}")
    return told
