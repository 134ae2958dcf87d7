"""``farm pause`` and ``farm resume``."""

from typing import Annotated

import typer

from farm.cli.output import one_line, say_error, say_json
from farm_client import Farm, JobStatus

Ids = Annotated[list[str], typer.Argument(metavar="JOB…", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def pause(jobs: Ids, as_json: AsJson = False) -> None:
    """Start no more work of jobs until they are resumed; what is running continues."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        _tell(handle.pause(), "paused", as_json)


def resume(jobs: Ids, as_json: AsJson = False) -> None:
    """Resume paused jobs."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        _tell(handle.resume(), "resumed", as_json)


def _tell(status: JobStatus, what: str, as_json: bool) -> None:
    if as_json:
        say_json(status.model_dump(mode="json"))
    else:
        say_error(one_line(f"{status.id} {status.state if status.ended else what}"))
