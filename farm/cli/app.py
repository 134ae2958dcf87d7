"""The commands by name; each is imported only when it is called."""

import difflib
import importlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

import farm
from farm.cli.help import Command
from farm.cli.output import (
    fail,
    go_on_with,
    leave_stdout,
    on_interrupt,
    say,
    say_error,
    take_any_text,
)
from farm.disk import hint_of
from farm.errors import FarmError, InvalidInput

INTERRUPTED = 130
DEBUG = "FARM_DEBUG=1 shows where"
COMPLETE = "_FARM_COMPLETE"  # set by the script that ``farm completion`` prints


class Place(NamedTuple):
    module: str  # has a function, or a Typer application, of the command's name
    help: str


SECTIONS = {
    "Jobs": {
        "submit": Place("farm.cli.submit", "Submit prompts or a file of renders."),
        "ls": Place("farm.cli.status", "List your jobs, newest first."),
        "status": Place("farm.cli.status", "Show the state of jobs."),
        "watch": Place("farm.cli.watch", "Follow a job with a progress bar."),
        "wait": Place("farm.cli.watch", "Wait until jobs have ended."),
        "why": Place("farm.cli.why", "Show what a job is waiting for, and estimate its end."),
        "cancel": Place("farm.cli.cancel", "Cancel jobs."),
        "pause": Place("farm.cli.pause", "Start no more work of jobs until they are resumed."),
        "resume": Place("farm.cli.pause", "Resume paused jobs."),
        "retry": Place("farm.cli.retry", "Render the failed pictures of ended jobs again."),
        "rm": Place("farm.cli.remove", "Delete ended jobs with all their pictures."),
        "du": Place("farm.cli.remove", "Show what jobs and uploads take up in the store."),
    },
    "Pictures and files": {
        "fetch": Place("farm.cli.fetch", "Fetch a job's pictures and its manifest."),
        "export": Place("farm.cli.export", "Write a job's pictures as a data set."),
        "score": Place("farm.cli.score", "Add columns to a job's pictures, for export."),
        "stats": Place("farm.cli.stats", "Count a job's or a data set's pictures, by kind."),
        "verify": Place("farm.cli.verify", "Compare a job's manifest, queue and store."),
        "push": Place("farm.cli.push", "Upload an exported data set to the Hugging Face hub."),
        "decode": Place("farm.cli.decode", "Make pictures of files of tokens, without a farm."),
        "rerender": Place("farm.cli.rerender", "Render a job's picture again, and compare."),
        "inspect": Place("farm.cli.inspect", "Show the render recorded in a picture file."),
        "render": Place("farm.cli.render", "Render a file of requests here, without a farm."),
        "adapter": Place("farm.cli.adapter", "Add, list and remove LoRA adapters."),
        "checkpoint": Place("farm.cli.checkpoint", "Check a checkpoint, or make a tiny one."),
    },
    "The farm": {
        "up": Place("farm.cli.up", "Start a farm on this machine."),
        "down": Place("farm.cli.up", "Stop the farm that up started."),
        "demo": Place("farm.cli.demo", "Start a farm, render a few pictures, stop it."),
        "doctor": Place("farm.cli.doctor", "Check Redis, the store, Ray and the checkpoints."),
        "top": Place("farm.cli.top", "Watch the farm's lanes, tenants and workers."),
        "dashboard": Place("farm.cli.dashboard", "Open Ray's dashboard of the farm here."),
        "queue": Place("farm.cli.queue", "Check the queue, list all jobs, or set shares."),
        "workers": Place("farm.cli.workers", "List workers, or drain one."),
        "scheduler": Place("farm.cli.scheduler", "Run a scheduler in this process."),
        "worker": Place("farm.cli.worker", "Run one worker in this process, without Ray."),
    },
    "For developers": {
        "simulate": Place("farm.cli.simulate", "Simulate a large farm on a virtual clock."),
        "completion": Place("farm.cli.completion", "Print what completes commands in a shell."),
        "bench": Place("farm.cli.bench", "Measure how fast pictures are rendered here."),
    },
}
COMMANDS = {name: place for commands in SECTIONS.values() for name, place in commands.items()}


class Commands(TyperGroup):
    """Knows the commands without importing them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # its reader has gone; typer would end with the status of a failure
            leave_stdout()
            return 0

    def list_commands(self, _: Any) -> list[str]:
        return [name for name, place in COMMANDS.items() if _exists(place.module)]

    def get_command(self, _: Any, cmd_name: str) -> Any:
        place = COMMANDS.get(cmd_name)
        if place is None or not _exists(place.module):
            return None
        made = getattr(importlib.import_module(place.module), cmd_name)
        if not isinstance(made, typer.Typer):
            application = typer.Typer(add_completion=False, rich_markup_mode=None)
            application.command(cmd_name, help=made.__doc__)(made)
            made = application
        for one in made.registered_commands:
            one.cls = Command
        command = typer.main.get_command(made)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        known = self.list_commands(ctx)
        for section, commands in SECTIONS.items():
            rows = [(name, place.help) for name, place in commands.items() if name in known]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=12)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"did you mean {close[0]!r}?" if close else "farm --help lists them"
            raise InvalidInput(f"unknown command {name[:60]!r}", field="farm", hint=hint)
        return super().resolve_command(ctx, args)


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(given: bool) -> None:
    if given:
        say(farm.__version__)
        raise typer.Exit


def _farm(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """A render farm for aMUSEd. FARM_URL and FARM_API_KEY name the farm to use."""


def group() -> TyperGroup:
    application = typer.Typer(
        name="farm",
        cls=Commands,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    application.callback()(_farm)
    made = typer.main.get_command(application)
    assert isinstance(made, TyperGroup)
    return made


def run(arguments: Sequence[str]) -> int:
    """One call of the command line; its exit code. An error is one line on stderr."""
    go_on_with(["farm", *arguments])
    take_any_text()
    try:
        if not arguments:
            arguments = ["--help"]
        if COMPLETE in os.environ:
            from typer.completion import completion_init  # type: ignore[attr-defined]  # re-exported

            completion_init()
        code = group().main(list(arguments), prog_name="farm", standalone_mode=False)
    except FarmError as error:
        return fail(error)
    except typer.Abort:
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own complaint about the arguments
            return _usage(error)
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("farm"):
            return fail(_not_installed(error))
        if os.environ.get("FARM_DEBUG"):
            raise
        say_error(f"error{_unforeseen(error)}")
        return 1
    if code == INTERRUPTED:
        say_error(on_interrupt())
    return code if isinstance(code, int) else 0


def _not_installed(error: ModuleNotFoundError) -> FarmError:
    """The package alone brings what reaches a farm, and nothing of what runs one or draws."""
    return InvalidInput(
        f"{error.name} is needed for this command and is not installed",
        hint='pip install "amused-farm[all]", or "amused-farm[gateway]" where nothing is drawn',
    )


def _unforeseen(error: Exception) -> str:
    """What the operating system refuses, such as a name that is too long, is told in its words."""
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        if hint := hint_of(error):
            return f"[farm]: {where}{error.strerror} ({hint})"
        if where:
            return f"[farm]: {where}{error.strerror} ({DEBUG})"
    told = f"[internal]: {type(error).__name__}: {error}".splitlines()[0]
    return f"{told} ({DEBUG})"


def _usage(error: Any) -> int:
    message = error.format_message().replace("\n", " ").rstrip(".")
    context = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    hint = f"{context.command_path} --help" if context is not None else "farm --help"
    if option and context is not None and isinstance(context.command, TyperCommand):
        known = [name for parameter in context.command.params for name in parameter.opts]
        close = difflib.get_close_matches(option, known, n=1)
        message = f"unknown option {option}"
        if close:
            hint = f"did you mean {close[0]}?"
    say_error(f"error[usage]: {message} ({hint})")
    return 2
