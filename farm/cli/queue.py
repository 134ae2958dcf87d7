"""``farm queue``: for operators; it talks to Redis, not to the gateway."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.arguments import AsJson, Data
from farm.cli.output import one_line, say, say_error, say_json
from farm.errors import InvalidInput
from farm.job import TERMINAL_JOBS

if TYPE_CHECKING:
    from farm.queue import JobStatus, Queue

queue = typer.Typer(
    help="Check the queue, list everyone's jobs, or set a tenant's share.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
)


@queue.command("check")
def check(
    repair: Annotated[bool, typer.Option("--repair", help="Repair what is wrong.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Recount every job and compare the queue's indexes with it. Redis does nothing else while it
    counts one job. The exit code is 1 if something was wrong, even if it was repaired."""
    found = connect_queue(data).check(repair=repair)
    for line in found:
        if as_json:
            say_json({"finding": line, "repaired": repair})
        else:
            say(one_line(line))
    count = f"{len(found) or 'no'} finding{'' if len(found) == 1 else 's'}"
    ending = ", repaired" if repair else "; farm queue check --repair repairs them"
    say_error(f"queue: {count}{ending if found else ''}")
    return 1 if found else 0


@queue.command("jobs")
def jobs(data: Data = None, as_json: AsJson = False) -> None:
    """List the unfinished jobs of all tenants; with --json, one line of JSON for each."""
    farm_queue = connect_queue(data)
    for tenant in farm_queue.tenants():
        for status in farm_queue.all_jobs(tenant):
            if status.state not in TERMINAL_JOBS:
                told = {"tenant": tenant, **status.model_dump(mode="json")}
                say_json(told) if as_json else say(_row(tenant, status))


@queue.command("weight")
def weight(
    tenant: Annotated[str, typer.Argument(metavar="TENANT", show_default=False)],
    share: Annotated[
        float,
        typer.Argument(
            metavar="NUMBER", help="From 0.001 to 1000; default: 1.", show_default=False
        ),
    ],
    data: Data = None,
) -> None:
    """Set a tenant's weight: with 2 it gets twice the work of a tenant with 1, in each class."""
    connect_queue(data).set_weight(tenant, share)
    say_error(one_line(f"{tenant} has weight {share:g}"))


def _row(tenant: str, status: "JobStatus") -> str:
    state = "paused" if status.paused else status.state
    counts = f"{status.images.done + status.images.failed}/{status.images.total}"
    told = f"{status.id}  {tenant}  {state}  {status.priority}  {counts}  {status.name or ''}"
    return one_line(told).rstrip()


def connect_queue(data: Path | None) -> "Queue":
    """The queue that REDIS_URL and FARM_NAME name, or that of the farm on this machine."""
    try:
        from farm.queue import Queue, connect
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to reach the queue", hint='pip install "amused-farm[gateway]"'
        ) from None
    from farm.local.valkey import ServerProcess
    from farm.paths import data_dir

    folder = (data or data_dir()).expanduser().absolute()
    url = os.environ.get("REDIS_URL") or ServerProcess(folder / "valkey").url
    return Queue(connect(url), farm=os.environ.get("FARM_NAME", "farm"))
