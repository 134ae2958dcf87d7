"""``farm adapter``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.checkpoints.references import built_in_adapters
from farm.cli.arguments import AsJson
from farm.cli.output import one_line, say, say_error, say_json
from farm.errors import InvalidInput, NotFound
from farm_client import Farm, NamedAdapter
from farm_client.inputs import read_input

PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"

adapter = typer.Typer(
    help="Add, list and remove LoRA adapters.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=False,
)


@adapter.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    file: Annotated[Path, typer.Argument(metavar="FILE|FOLDER|BUILT-IN", show_default=False)],
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="A", help="It was trained with, if the file does not say.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name an adapter, so that renders can say --adapter NAME: a file that diffusers' aMUSEd
    training example wrote, a folder that PEFT wrote, or one that came with the farm (pattern)."""
    told = Farm().add_adapter(name, read_adapter(file), alpha=alpha)
    if as_json:
        say_json(told.model_dump(mode="json"))
        return
    say(told.sha256)
    alphas = "several alphas" if told.alpha is None else f"alpha {told.alpha:g}"
    say_error(f"{told.name}: rank {told.rank}, {alphas}, {', '.join(told.targets)}")


@adapter.command("ls")
def ls(as_json: AsJson = False) -> None:
    """List your adapters by name."""
    for one in Farm().adapters():
        if as_json:
            say_json(one.model_dump(mode="json"))
        else:
            say(_line(one))


@adapter.command("rm")
def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Forget an adapter's name; jobs that were accepted keep the adapter."""
    farm = Farm()
    if not farm.remove_adapter(name):
        known = ", ".join(one.name for one in farm.adapters()[:8])
        hint = f"there are: {known}" if known else None
        raise NotFound(f"you have no adapter {name[:80]!r}", field="name", hint=hint)
    if as_json:
        say_json({"name": name, "removed": True})


def read_adapter(path: Path) -> bytes:
    """A file of diffusers as it is; of PEFT's folder the file with what its config says in it;
    or one that came with the package, by its name."""
    if not path.exists() and (built_in := built_in_adapters().get(str(path))):
        path = built_in
    if not path.is_dir():
        return read_input(path, "file")
    if (path / DIFFUSERS_FILE).is_file():
        return read_input(path / DIFFUSERS_FILE, "file")
    weights, config = (path / name for name in PEFT_FILES)
    if not weights.is_file() or not config.is_file():
        raise InvalidInput(
            f"{path} has no {DIFFUSERS_FILE}, and not both of {' and '.join(PEFT_FILES)}",
            field="file",
        )
    try:
        from farm.formats.adapter_file import embed_alpha
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to read PEFT's folders",
            field="file",
            hint='pip install "amused-farm[gateway]"',
        ) from None
    return embed_alpha(read_input(weights, "file"), config=_config(config))


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_input(path, "file"))
    except ValueError:
        raise InvalidInput(f"{path} is not JSON", field="file") from None
    if not isinstance(config, dict):
        raise InvalidInput(f"{path} is not a JSON object", field="file")
    return config


def _line(one: NamedAdapter) -> str:
    alpha = "" if one.alpha is None else f"{one.alpha:g}"
    targets = ",".join(one.targets)
    return one_line(f"{one.name:<24} rank {one.rank:<4} alpha {alpha:<6} {targets} {one.sha256}")
