"""``farm verify``."""

import json
import time
from collections.abc import Callable
from typing import Annotated

import typer

from farm.cli.arguments import AsJson, JobId
from farm.cli.output import counter, one_line, pictures, say, say_error, say_note
from farm.errors import FarmError, OverQuota
from farm_client import Farm, Job
from farm_client.models import Difference, Verified

TURN_SECONDS = 5.0  # between two looks, besides the client's own patience


def verify(
    job: JobId,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove orphans and render lost pictures again.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Compare the manifest, the queue and the store of a job that has ended. The exit code is 1 if
    they differ, or with --repair, if something could not be repaired."""
    handle = Farm().job(job)
    lead = '{"differences": ['

    def tell(one: Difference) -> None:
        nonlocal lead
        if as_json:
            say(lead + json.dumps(one.model_dump(mode="json")))
            lead = ","
        else:
            say(one_line(str(one)))

    try:
        found = _in_turn(handle, repair, tell)
    except FarmError as error:
        if lead == ",":  # what was begun is closed, so that it can be read
            say(f'], "error": {json.dumps(error.to_dict())}}}')
        raise
    if as_json:
        rest = json.dumps(found.model_dump(mode="json", exclude={"differences"}))
        say(f"{lead.rstrip(',')}], {rest[1:]}")
    count = sum(found.kinds.values())
    differ = f"{count:,} difference" if count else "no difference"
    told = f"{handle.id}: {pictures(found.pictures)} checked, {differ}" + ("s" if count > 1 else "")
    if count > 1:
        told += " (" + ", ".join(f"{kind} {one:,}" for kind, one in found.kinds.items()) + ")"
    if repair and count:
        told += f", {count - found.left:,} repaired or under way (generation {found.generation})"
    elif count:
        told += f"; farm verify {handle.id} --repair repairs what can be"
    say_error(told)
    return 1 if found.left else 0


def _in_turn(job: Job, repair: bool, tell: Callable[[Difference], None]) -> Verified:
    """A large job takes longer than the client's patience, so those that wait for it go on."""
    noted = False
    while True:
        try:
            return job.verify(repair=repair, tell=tell, progress=counter())
        except OverQuota as error:
            if not noted:
                say_note(f"{error.message}; waiting")
            noted = True
            time.sleep(TURN_SECONDS)
