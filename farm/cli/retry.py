"""``farm retry``."""

from typing import Annotated

import typer

from farm.cli.arguments import AsJson, JobIds
from farm.cli.output import one_line, pictures, say_error, say_json
from farm_client import Farm


def retry(
    jobs: JobIds,
    failed: Annotated[
        bool, typer.Option("--failed", help="The default: failed pictures are what is retried.")
    ] = True,
    reason: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Only what failed for it: row, crash, infra, or a part of the error's text.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Render the failed pictures of ended jobs again; the others stay as they are."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        status = handle.retry(reason)
        if as_json:
            say_json(status.model_dump(mode="json"))
        else:
            images = status.images
            left = pictures(images.total - images.finished)
            say_error(one_line(f"{status.id} {status.state}: {left} to render again"))
