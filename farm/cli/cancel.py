"""``farm cancel``."""

from typing import Annotated

import typer

from farm.cli.output import one_line, say_error, say_json
from farm_client import Farm


def cancel(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Cancel jobs: queued work ends at once, running work at its next step."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        status = handle.cancel()
        if as_json:
            say_json(status.model_dump(mode="json"))
        else:
            say_error(one_line(f"{status.id} {status.state}"))
