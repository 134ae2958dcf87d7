"""``farm why``."""

from farm.cli.arguments import AsJson, JobId
from farm.cli.output import counted, duration, one_line, pictures, say, say_json
from farm_client import Farm, Why
from farm_client.models import LaneQueue

REASONS = {
    "nothing": "workers hold all of it",
    "pieces": "its sender has not sent the rest yet",
    "resume": "it is paused (farm resume continues it)",
    "worker": "no worker serves its checkpoint (farm doctor)",
    "higher": "work of a higher class goes first",
    "turn": "your earlier jobs go first",
    "room": "the workers are full",
    "empty-worker": "what a crashed worker held runs alone, on an otherwise idle worker",
    "retry": "a short wait before a failed attempt is repeated",
    "queue": "the queue's server takes no writes (farm doctor)",
    "store": "the store takes no files: it is full, read-only or unreachable (farm doctor)",
    "finalise": "its last file is being written",
}


def why(job: JobId, as_json: AsJson = False) -> None:
    """Show what a job is waiting for: its lanes, its place and share in each, and an estimate."""
    found = Farm().job(job).why()
    if as_json:
        say_json(found.model_dump(mode="json"))
        return
    say(one_line(f"{found.status.id} {found.status.state}: {_reason(found)}"))
    if found.note:
        say(one_line(f"  {found.note}"))
    for lane in found.lanes:
        say(one_line(_lane(lane)))
    if found.seconds:
        workers = counted(found.workers, "worker")
        say(f"about {duration(max(found.seconds, 1))} on {workers}")
    elif not found.status.ended:
        say("no estimate: no worker has measured its lanes yet, or nothing waits in them")


def _reason(found: Why) -> str:
    if found.status.ended:
        return "it has ended"
    return REASONS.get(found.waits_for, found.waits_for)


def _lane(lane: LaneQueue) -> str:
    told = f"  {lane.lane}: {pictures(lane.pictures)} ready, number {lane.position} of your jobs"
    if lane.earlier:
        told += f", {lane.earlier:,} of your own before them"
    if lane.higher:
        told += f", {lane.higher:,} of higher classes"
    return f"{told}, share {lane.share:.0%}"
