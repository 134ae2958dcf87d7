"""``farm inspect``."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli.output import one_line, say, say_json
from farm.errors import InvalidInput

MAX_FILE_BYTES = 256 * 2**20


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how a picture was made: its parameters, seed, numerics class and tokens. They are read
    from the file; no farm is needed."""
    try:
        from farm.formats.credentials import told_credentials
        from farm.formats.origin import digital_source_type
        from farm.formats.picture_file import read_facts, token_bytes
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to read pictures",
            field="file",
            hint='pip install "amused-farm[gateway]"',
        ) from None
    for name in files:
        data = _read(Path(name))
        try:
            facts = read_facts(data)
        except InvalidInput as error:
            raise InvalidInput(f"{name} {error.message}", field="file") from None
        told: dict[str, Any] = {
            "file": name,
            "image": facts.image,
            "seed": facts.seed,
            "numerics": facts.numerics,
            "tokens": list(facts.tokens.shape),
            "tokens_sha256": hashlib.sha256(token_bytes(facts.tokens)).hexdigest(),
            "confidence": facts.confidence,
            "digital_source_type": digital_source_type(data),
            "content_credentials": told_credentials(data),
            "spec": facts.spec.model_dump(mode="json"),
        }
        if as_json:
            say_json(told)
            continue
        spec = told.pop("spec")
        for field, value in {**told, **spec}.items():
            if value is not None:
                say(one_line(f"{field:>36}  {_text(value)}"))


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a directory", field="file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInput(f"{path} is too large for a picture", field="file")
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}", field="file") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field="file") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
