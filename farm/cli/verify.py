"""``farm verify``."""

from typing import Annotated

import typer

from farm.cli.output import one_line, pictures, say, say_error, say_json
from farm_client import Farm


def verify(
    job: Annotated[str, typer.Argument(metavar="JOB", show_default=False)],
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove orphans and render lost pictures again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Compare the manifest, the queue and the store of a job that has ended. The exit code is 1 if
    they differ, or with --repair, if something could not be repaired."""
    handle = Farm().job(job)
    found = handle.verify(
        repair=repair, tell=None if as_json else lambda one: say(one_line(str(one)))
    )
    if as_json:
        say_json(found.model_dump(mode="json"))
    count = len(found.differences)
    differ = f"{count or 'no'} difference" + ("" if count < 2 else "s")
    told = f"{handle.id}: {pictures(found.pictures)} checked, {differ}"
    if repair and count:
        told += f", {count - found.left} repaired or under way (generation {found.generation})"
    elif count:
        told += f"; farm verify {handle.id} --repair repairs what can be"
    say_error(told)
    return 1 if found.left else 0
