"""``farm fetch``."""

from typing import Annotated

import typer

from farm.cli.arguments import AsJson, JobId, Parallel
from farm.cli.flags import Overwrite, Resume
from farm.cli.output import counter, fail, pictures, say_error, say_json
from farm.cli.signing import Certificate, Key, Signing, signer
from farm.cli.watch import tell_end
from farm.errors import TimedOut
from farm_client import Farm, Job
from farm_client.fetch import PARALLEL, Sign


def fetch(
    job: JobId,
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to; made if missing."),
    ],
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Until the job ends, or only what is there now."),
    ] = True,
    parallel: Parallel = PARALLEL,
    overwrite: Overwrite = False,
    resume: Resume = False,
    shards: Annotated[
        bool, typer.Option("--shards", help="Shards as they are stored, not picture by picture.")
    ] = False,
    sign: Signing = False,
    certificate: Certificate = None,
    key: Key = None,
    as_json: AsJson = False,
) -> int:
    """Fetch a job's pictures and manifest.jsonl into a folder, as they finish. Files that are there
    already are not fetched again."""
    found = Farm().job(job)
    signed = signer(certificate, key) if sign else None
    return fetch_job(
        found,
        output,
        follow=wait,
        parallel=parallel,
        as_json=as_json,
        overwrite=overwrite,
        resume=resume,
        sign=signed,
        shards=shards,
    )


def fetch_job(
    job: Job,
    output: str,
    *,
    follow: bool = True,
    parallel: int = PARALLEL,
    as_json: bool = False,
    timeout: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    sign: Sign | None = None,
    shards: bool = False,
) -> int:
    fetched = job.fetch(
        output,
        follow=follow,
        parallel=parallel,
        progress=counter(),
        timeout=timeout,
        overwrite=overwrite,
        resume=resume,
        sign=sign,
        shards=shards,
    )
    status = job.status()
    if as_json:
        say_json({**fetched._asdict(), "folder": str(fetched.folder), "state": str(status.state)})
    failed = f", {fetched.failed:,} failed" if fetched.failed else ""
    kept = f" ({fetched.skipped:,} were there already)" if fetched.skipped else ""
    say_error(f"{pictures(fetched.pictures)} in {fetched.folder}{kept}{failed}")
    if not status.ended:
        if follow:
            return fail(TimedOut(f"job {job.id} is still {status.state}; it continues"))
        say_error(f"job {job.id} is still {status.state}; fetch again for the rest")
        return 0
    return tell_end(status, quiet=True)
