"""``farm rm`` and ``farm du``."""

from collections.abc import Iterator
from typing import Annotated

import typer

from farm.cli.arguments import AsJson, JobIds
from farm.cli.output import counter, one_line, say, say_error, say_json
from farm_client import Farm, Usage

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def rm(jobs: JobIds, as_json: AsJson = False) -> None:
    """Delete ended jobs with everything that the farm has of them: pictures, manifest and history.
    What was fetched or exported stays. A call that was interrupted goes on when it is repeated."""
    farm, show = Farm(), counter(noun="object")
    for handle in [farm.job(job) for job in jobs]:
        gone = handle.remove(tell=None if show is None else lambda told: show(told.objects))
        if as_json:
            say_json({"id": handle.id, **gone.model_dump(mode="json")})
        else:
            say_error(f"{handle.id} removed: {gone.objects:,} objects, {size_text(gone.bytes)}")


def du(
    jobs: Annotated[list[str] | None, typer.Argument(metavar="[JOB…]", show_default=False)] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also jobs that the queue has forgotten."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what your jobs and uploads take up in the farm's store."""
    farm = Farm()
    objects = size = 0
    for one in _usages(farm, jobs or [], everything):
        objects, size = objects + one.objects, size + one.bytes
        if as_json:
            say_json(one.model_dump(mode="json"))
        else:
            say(one_line(_line(one)))
    say_error(f"{size_text(size)} in {objects:,} objects")


def _usages(farm: Farm, jobs: list[str], everything: bool) -> Iterator[Usage]:
    if jobs:
        return (farm.job(job).usage() for job in jobs)
    return farm.usage(everything=everything)


def _line(one: Usage) -> str:
    facts = f"{size_text(one.bytes):>9} {one.objects:>9,}  {one.name}"
    return f"{facts} {one.state or ''} {one.title or ''}".rstrip()


def size_text(size: float) -> str:
    """``1.5 MB``; a kB is a thousand bytes."""
    for unit in UNITS:
        if size < 999.5 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
