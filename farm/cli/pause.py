"""``farm pause`` and ``farm resume``."""

from farm.cli.arguments import AsJson, JobIds
from farm.cli.output import one_line, say_error, say_json
from farm_client import Farm, JobStatus


def pause(jobs: JobIds, as_json: AsJson = False) -> None:
    """Start no more work of jobs until they are resumed; what is running continues."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        _tell(handle.pause(), "paused", as_json)


def resume(jobs: JobIds, as_json: AsJson = False) -> None:
    """Resume paused jobs."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        _tell(handle.resume(), "resumed", as_json)


def _tell(status: JobStatus, what: str, as_json: bool) -> None:
    if as_json:
        say_json(status.model_dump(mode="json"))
    else:
        say_error(one_line(f"{status.id} {status.state if status.ended else what}"))
