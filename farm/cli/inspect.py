"""``farm inspect``."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli.arguments import AsJson
from farm.cli.output import one_line, say, say_error, say_json
from farm.errors import InvalidInput

MAX_FILE_BYTES = 256 * 2**20


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", show_default=False)],
    trust: Annotated[
        Path | None,
        typer.Option(
            "--trust",
            metavar="PEM",
            help="Certificates of the authorities whose signatures you trust; the exit code is 1 "
            "if a file has no such signature.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Show how a picture was made: its parameters, seed, numerics class and tokens. They are read
    from the file; no farm is needed."""
    try:
        from farm.formats.credentials import TRUSTED, read_roots, told_credentials
        from farm.formats.origin import digital_source_type
        from farm.formats.picture_file import read_facts, token_bytes
    except ImportError as error:
        raise InvalidInput(
            f"{error.name} is needed to read pictures",
            field="file",
            hint='pip install "amused-farm[gateway]"',
        ) from None
    roots = None if trust is None else read_roots(trust)
    trusted = True
    for name in files:
        data = _read(Path(name))
        try:
            facts = read_facts(data)
        except InvalidInput as error:
            raise InvalidInput(f"{name} {error.message}", field="file") from None
        credentials = told_credentials(data, roots)
        if trust is not None and not (credentials or "").startswith(TRUSTED):
            trusted = False
            say_error(one_line(f"{name} has no signature that is trusted"))
        told: dict[str, Any] = {
            "file": name,
            "image": facts.image,
            "seed": facts.seed,
            "numerics": facts.numerics,
            "tokens": list(facts.tokens.shape),
            "tokens_sha256": hashlib.sha256(token_bytes(facts.tokens)).hexdigest(),
            "confidence": facts.confidence,
            "digital_source_type": digital_source_type(data),
            "content_credentials": credentials,
            "spec": facts.spec.model_dump(mode="json"),
        }
        if as_json:
            say_json(told)
            continue
        spec = told.pop("spec")
        for field, value in {**told, **spec}.items():
            if value is not None:
                say(one_line(f"{field:>36}  {_text(value)}"))
    return 0 if trusted else 1


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
