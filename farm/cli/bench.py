"""``farm bench``: how fast pictures are made on this machine."""

import typer

from farm.errors import InvalidInput

bench = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@bench.callback()
def _measurements() -> None:
    """Measure how fast pictures are made here."""


@bench.command(
    "engine",
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)
def engine(context: typer.Context) -> int:
    """Compare the engine with diffusers on the same work; --help lists the choices."""
    try:
        from farm_workers.bench.engine import main
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to compare the engine with diffusers",
            hint='pip install "amused-farm[worker,bench]"',
        ) from None
    return main(context.args)
