"""``farm checkpoint``."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.arguments import AsJson
from farm.cli.output import fetches_told, one_line, say, say_error, say_json
from farm.disk import refused
from farm.errors import InvalidInput

if TYPE_CHECKING:
    from farm.checkpoints.inspect import Checkpoint

checkpoint = typer.Typer(
    help="Check a checkpoint, put it into the store, or make a tiny one.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
)


@checkpoint.command("inspect")
def inspect(
    reference: Annotated[str, typer.Argument(metavar="DIR|ID@REVISION", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Check that a checkpoint is complete and can be loaded, and describe it."""
    from farm.checkpoints.inspect import inspect_checkpoint

    with fetches_told():
        found = inspect_checkpoint(reference)
    _check_loads(found)
    facts = {"path": str(found.path), **found.info.model_dump(mode="json")}
    if as_json:
        say_json(facts)
        return
    for field, value in facts.items():
        if not isinstance(value, dict):  # the sizes of its models are for programs
            say(one_line(f"{field:>16}  {value}"))


def _check_loads(found: "Checkpoint") -> None:
    """Where this machine has the workers' libraries, build the models without weights."""
    try:
        from farm_workers.worker.load_engine import check_loads

        check_loads(found)
    except ImportError as error:
        say_error(f"note: {error.name} is not installed here, so only the files were checked")


@checkpoint.command("push")
def push(
    reference: Annotated[str, typer.Argument(metavar="DIR|ID@REVISION", show_default=False)],
    store: Annotated[
        str,
        typer.Option(metavar="URL", help="Such as s3://bucket/farm.", envvar="FARM_STORE"),
    ] = "",
) -> None:
    """Put a checkpoint into the farm's store, for the workers of all hosts; each host fetches it
    once. Prints what --checkpoint and FARM_CHECKPOINTS then call it."""
    from farm.checkpoints import stored
    from farm.checkpoints.inspect import inspect_checkpoint

    if not store:
        raise InvalidInput(
            "is not set", field="FARM_STORE", hint="name a store with --store, as s3://bucket/farm"
        )
    with fetches_told():
        found = inspect_checkpoint(reference)
    say(str(stored.push(store, found.path, found.info.id, found.info.revision)))


@checkpoint.command("make-tiny")
def make_tiny(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of its random weights.")] = 0,
    size: Annotated[int, typer.Option(min=16, max=512, help="Pixels per side.")] = 64,
    downsample: Annotated[
        bool,
        typer.Option("--downsample", help="As in amused-512: the inner grid is halved."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a complete checkpoint with random weights, small enough for any machine."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"{folder} exists and is not empty", field="folder")
    try:
        from farm_workers.testing.tiny import make_tiny as make
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to make a checkpoint",
            field="folder",
            hint='pip install "amused-farm[worker]"',
        ) from None
    try:
        make(folder, seed=seed, size=size, downsample=downsample)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # else the next call finds a half one there
        if isinstance(error, OSError):
            raise refused(folder, error, "folder") from None
        raise
    if as_json:
        inspect(str(folder), as_json=True)
    else:
        say_error(f"made {folder}")
