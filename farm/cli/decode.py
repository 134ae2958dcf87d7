"""``farm decode``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.cli.arguments import Threads
from farm.cli.output import pictures, say, say_error
from farm.cli.token_decoder import TokenDecoder
from farm.disk import writing_to
from farm.errors import Conflict, InvalidInput
from farm.job import Format

if TYPE_CHECKING:
    from farm.formats.picture_file import Facts

KINDS = (".parquet", ".safetensors")


def decode(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE|FOLDER…", show_default=False, exists=True)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR")],
    format: Annotated[Format, typer.Option(help="Of the pictures.")] = Format.PNG,  # noqa: A002
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whose tokens they are, as for render; may be repeated."),
    ] = None,
    threads: Threads = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace other files of the same names.")
    ] = False,
) -> None:
    """Make pictures of tokens, without a farm: of shards of the sink tokens, and of single files
    of the format tokens. The bytes are those that a sink of pictures would have stored. Pictures
    that are there already stay."""
    from farm.export.targets import write_whole
    from farm.formats.encoding import encode

    if format is Format.TOKENS:
        raise InvalidInput("tokens are not a picture", field="--format")
    decoder = TokenDecoder(checkpoint or (), threads)
    count = 0
    for name, facts, pixels in decoder(_all(files, format)):
        path, data = output / name, encode(pixels, facts, format)
        if path.exists() and path.read_bytes() != data and not overwrite:
            raise Conflict(
                f"{path} is another picture",
                field="--output",
                hint="name another folder, or give --overwrite",
            )
        with writing_to(output, "--output"):
            write_whole(path, data)
        count += 1
    say(str(output))
    say_error(f"{pictures(count)} in {output}")


def _all(files: list[Path], kind: Format) -> "Iterator[tuple[str, Facts]]":
    """The name of each picture, and its tokens."""
    found = [path for file in files for path in _below(file)]
    if not found:
        raise InvalidInput(
            f"{files[0]} has no files of tokens",
            field="FILE",
            hint="they end in .parquet or .safetensors",
        )
    for path in found:
        yield from _in_file(path, kind)


def _below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    skipped = {"manifest.parquet"}
    return sorted(p for p in path.rglob("*") if p.suffix in KINDS and p.name not in skipped)


def _in_file(path: Path, kind: Format) -> "Iterator[tuple[str, Facts]]":
    from farm.formats.picture_file import EXTENSIONS, file_name, read_facts
    from farm.sinks.parquet import Tokens

    data = path.read_bytes()
    if path.suffix == ".safetensors":
        yield f"{path.stem}.{EXTENSIONS[kind]}", read_facts(data)
        return
    try:
        for one in Tokens().unpack(data):
            yield file_name(*one.picture, kind), one.facts
    except ValueError:
        raise InvalidInput(
            f"{path} is not a shard of tokens", field="FILE", hint="farm submit … --sink tokens"
        ) from None
