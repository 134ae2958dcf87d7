"""``farm completion``: what makes a shell complete commands and options."""

import enum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # re-exported

from farm.cli.app import COMPLETE
from farm.cli.output import say


class Shell(enum.StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="Yours.", show_default=False)],
) -> None:
    """Print the script that completes commands and options. In bash and zsh:
    eval "$(farm completion bash)"; in fish: farm completion fish | source"""
    say(get_completion_script(prog_name="farm", complete_var=COMPLETE, shell=shell))
