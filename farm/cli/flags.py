"""The flags of a render's parameters and of a job's options, from their tables."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel

from farm.cli.input_files import FORMAT_NAMES
from farm.job import JobOptions
from farm.spec import RenderRequest, parameters_of

Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[PARAMETER=]NAME",
        help="The column of a parameter, else of the prompts; may be repeated.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Remove other pictures of the farm from the folder.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep those pictures in the folder that are right.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Only the first N rows of the input.", show_default=False
    ),
]
Sample = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Only a sample of N rows.", show_default=False),
]
SampleSeed = Annotated[
    int | None, typer.Option(metavar="N", help="Of the sample. Default: 0.", show_default=False)
]
InputFormat = Annotated[
    str | None,
    typer.Option(metavar="KIND", help=f"{', '.join(FORMAT_NAMES)}.", show_default=False),
]
Command = TypeVar("Command", bound=Callable[..., Any])


def flags_of(
    model: type[BaseModel], kind: Any = str, *, without: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """A Typer annotation for each field of the model; every value is text, a list of texts where
    that is the kind, or not given."""
    found = {}
    for name, parameter in parameters_of(model).items():
        if name in without:
            continue
        flags = [f"--{one.replace('_', '-')}" for one in (name, *parameter.aliases)]
        if parameter.letter:
            flags.append(f"-{parameter.letter}")
        option = typer.Option(
            *flags,
            help=parameter.flag_help(model.model_fields[name]),
            metavar=parameter.metavar,
            show_default=False,
        )
        found[name] = Annotated[kind | None, option]
    return found


RENDER_FLAGS = flags_of(RenderRequest, list[str], without=frozenset({"prompt"}))
JOB_FLAGS = flags_of(JobOptions, without=frozenset({"seed"}))  # the render's flag stands for both


def with_flags(annotations: dict[str, Any]) -> Callable[[Command], Command]:
    """Put these flags in the place of a command's ``**given``; Typer reads the signature."""

    def replace(command: Command) -> Command:
        signature = inspect.signature(command)
        flags = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            for name, annotation in annotations.items()
        ]
        kept = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        kept.sort(key=lambda one: one.kind)
        named = next((i for i, one in enumerate(kept) if one.kind is one.KEYWORD_ONLY), len(kept))
        parameters = [*kept[:named], *flags, *kept[named:]]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return replace
