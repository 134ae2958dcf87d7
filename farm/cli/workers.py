"""``farm workers``: for operators; it talks to Redis, not to the gateway."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.arguments import AsJson, Data
from farm.cli.output import counted, one_line, say, say_error, say_json
from farm.cli.queue import connect_queue
from farm.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from farm.queue import Session

LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 75.0  # beyond a drain's own time: a worker waits a minute for the store

workers = typer.Typer(
    help="List workers, or drain one. Alone it lists them.",
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)


@workers.callback()
def listed(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        ls()


@workers.command("ls")
def ls(data: Data = None, as_json: AsJson = False) -> None:
    """List the workers that are there, and those that a scheduler wants and that do not run."""
    from farm.queue import placed_workers

    farm_queue = connect_queue(data)
    for one in sorted(farm_queue.sessions(), key=lambda one: one.worker):
        host = str(one.info.get("host", ""))
        state = one.command or ("works" if one.held else "idle")
        if as_json:
            facts = {"worker": one.worker, "host": host, "state": state, "tasks": one.held}
            say_json({**facts, "problem": one.problem})
        else:
            held, problem = counted(one.held, "task"), f"  {one.problem}" if one.problem else ""
            checkpoints = ", ".join(one.checkpoints)
            say(one_line(f"{one.worker}  {host}  {state}  {held}  {checkpoints}{problem}"))
    for worker in placed_workers.read(farm_queue):
        if worker.missing:
            told = {"worker": worker.name, "state": worker.state, "why": worker.why}
            say_json(told) if as_json else say(one_line(str(worker)))


@workers.command("drain")
def drain(
    names: Annotated[list[str], typer.Argument(metavar="WORKER...", show_default=False)],
    seconds: Annotated[
        int, typer.Option(help="What is not done then goes back to the queue.", min=0)
    ] = 30,
    undo: Annotated[bool, typer.Option("--undo", help="Give them work again.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when they hold nothing.")
    ] = True,
    data: Data = None,
) -> None:
    """Give workers no more work, so that their machine can be taken away. What they have not begun
    goes back at once, the rest when it is done or the time is over; pictures that are finished are
    kept. The workers stay, idle, until --undo is given or they are restarted."""
    from farm.queue import Command

    farm_queue = connect_queue(data)
    chosen = _find(farm_queue.sessions(), names)
    for session in chosen:
        farm_queue.set_command(session.session, None if undo else Command("drain", seconds))
    if undo:
        say_error(one_line(f"{', '.join(names)}: work again"))
        return
    tokens = {session.session for session in chosen}
    deadline = time.monotonic() + seconds + PATIENCE_SECONDS
    while wait and (held := [one for one in farm_queue.sessions() if one.session in tokens]):
        if not any(one.held for one in held):
            break
        if time.monotonic() > deadline:
            busy = ", ".join(one.worker for one in held if one.held)
            raise Unavailable(f"still at work: {busy}", hint="do they reach queue and store?")
        time.sleep(LOOK_SECONDS)
    told = "hold nothing and get no more work" if wait else "get no more work"
    say_error(one_line(f"{', '.join(names)}: {told}"))


def _find(sessions: "Sequence[Session]", names: Sequence[str]) -> "list[Session]":
    known = ", ".join(sorted({session.worker for session in sessions}))
    for name in names:
        if name not in {session.worker for session in sessions}:
            raise NotFound(
                f"unknown worker {name!r}",
                hint=f"there are: {known}" if known else "no worker is connected",
            )
    return [session for session in sessions if session.worker in names]
