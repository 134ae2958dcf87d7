"""``farm status`` and ``farm ls``."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from farm.cli.arguments import AsJson, JobIds
from farm.cli.output import one_line, say, say_json
from farm.job import JobState
from farm_client import Farm, JobStatus


def status(jobs: JobIds, as_json: AsJson = False) -> None:
    """Show the state of jobs; with --json, one line of JSON for each."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        found = handle.status()
        if as_json:
            say_json(found.model_dump(mode="json"))
        else:
            say(_sentence(found))


def ls(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The most to list.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="List all of them.")] = False,
    state: Annotated[
        JobState | None,
        typer.Option("--state", metavar="STATE", help="Only in this state.", show_default=False),
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only with failed pictures.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the ids.")] = False,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first; with --json, one line of JSON for each."""
    shown = 0
    for found in Farm().jobs(None if every or state or failed else limit):
        if (state is not None and found.state is not state) or (failed and not found.images.failed):
            continue
        if as_json:
            say_json(found.model_dump(mode="json"))
        elif quiet:
            say(found.id)
        else:
            say(_row(found))
        shown += 1
        if not every and shown == limit:
            break


def _sentence(status: JobStatus) -> str:
    images = status.images
    state = f"{status.state}, paused" if status.paused and not status.ended else status.state
    parts = [f"{status.id} {state}: {images.finished} of {images.total} pictures"]
    if status.state is JobState.OPEN and status.created_at:
        parts.append(f"coming in for {_age(status.created_at)}")
    if images.failed:
        parts.append(f"{images.failed} failed")
    if status.rejected:
        parts.append(f"{status.rejected} renders refused")
    if status.reason:
        parts.append(status.reason)
    return one_line(", ".join(parts))


def _row(status: JobStatus) -> str:
    images = status.images
    age = _age(status.created_at) if status.created_at else ""
    counts = f"{images.finished}/{images.total}"
    return one_line(
        f"{status.id}  {status.state:<9}  {counts:>13}  {age:>4}  {status.name or ''}"
    ).rstrip()


def _age(created: datetime) -> str:
    seconds = max((datetime.now(UTC) - created).total_seconds(), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"
