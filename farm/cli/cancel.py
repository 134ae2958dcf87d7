"""``farm cancel``."""

from farm.cli.arguments import AsJson, JobIds
from farm.cli.output import one_line, say_error, say_json
from farm_client import Farm


def cancel(jobs: JobIds, as_json: AsJson = False) -> None:
    """Cancel jobs: queued work ends at once, running work at its next step."""
    farm = Farm()
    for handle in [farm.job(job) for job in jobs]:
        status = handle.cancel()
        if as_json:
            say_json(status.model_dump(mode="json"))
        else:
            say_error(one_line(f"{status.id} {status.state}"))
