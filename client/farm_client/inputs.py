"""Input pictures and tensor files, in any form in which callers have them."""

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from farm.errors import InvalidInput, TooLarge
from farm.job import MAX_ASSET_BYTES
from farm.spec import FILE_FIELDS
from farm.spec.adapter import FILE_ENDING
from farm_client.arrays import file_of, is_array

ADAPTERS = "adapters"  # the parameter whose objects may name files
_MAY_BE_FILES = (*FILE_FIELDS, ADAPTERS)
_ASSET = re.compile(r"(sha256:)?[0-9a-f]{64}")


@runtime_checkable
class PictureLike(Protocol):
    """A picture that can write itself, as Pillow's can."""

    def save(self, fp: Any, format: str) -> Any: ...  # noqa: A002  Pillow's word


@runtime_checkable
class ArrayLike(Protocol):
    """An array, as numpy's: see ``farm_client.arrays``."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


FileInput = str | os.PathLike[str] | bytes | IO[bytes] | PictureLike | ArrayLike


def asset_id(value: object) -> str | None:
    """The id, where the value is one already."""
    if isinstance(value, str) and _ASSET.fullmatch(value):
        return value.removeprefix("sha256:")
    return None


def is_adapter_file(value: object) -> bool:
    """Whether an adapter is a file and not named; a name has no slash and no such ending."""
    if not isinstance(value, str):
        return value is not None
    return "/" in value or os.sep in value or value.endswith(FILE_ENDING)


def is_url(value: object) -> bool:
    """Data URLs go as they are; what is to be said of others, the farm says."""
    return isinstance(value, str) and (value.startswith("data:") or "://" in value[:16])


def has_files(data: Mapping[str, Any]) -> bool:
    """Whether a render may name files that must be uploaded first."""
    return any(data.get(field) is not None for field in _MAY_BE_FILES)


def adapter_files(data: Mapping[str, Any]) -> dict[int, Any]:
    """The adapters of a render that are files, by their place; what else is wrong with them, the
    farm says."""
    given = data.get(ADAPTERS)
    if not isinstance(given, list | tuple):
        return {}
    return {
        place: one["adapter"]
        for place, one in enumerate(given)
        if isinstance(one, Mapping) and is_adapter_file(one.get("adapter"))
    }


def adapters_from(folder: Path, adapters: Any) -> Any:
    """A list of adapters whose relative paths are meant from this folder."""
    files = adapter_files({ADAPTERS: adapters})
    paths = {
        place: folder / Path(file).expanduser()
        for place, file in files.items()
        if isinstance(file, str | Path)
    }
    return with_adapters({ADAPTERS: adapters}, paths)[ADAPTERS]


def with_adapters(data: Mapping[str, Any], ids: Mapping[int, Any]) -> dict[str, Any]:
    """The render with these in the place of its files."""
    if not ids:
        return dict(data)
    given = [
        {**one, "adapter": ids[place]} if place in ids else one
        for place, one in enumerate(data[ADAPTERS])
    ]
    return {**data, ADAPTERS: given}


def read_input(value: object, field: str, base: Path | None = None) -> bytes:
    """The bytes of a path, a file object, a picture, an array or bytes."""
    if isinstance(value, str | os.PathLike):
        return _read_file(_path(value, base), field)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(value, PictureLike):
        data = _png(value, field)
    elif is_array(value):
        data = file_of(value, field)
    elif hasattr(value, "read"):
        data = _read_open(value, field)
    else:
        raise InvalidInput(
            f"{type(value).__name__} is not a picture; "
            "give a path, bytes, a file, a Pillow image or an array",
            field=field,
        )
    return _checked(data, field)


def file_stamp(value: object, base: Path | None = None) -> tuple[str, int, int] | None:
    """What tells one state of a file from another; None for what is not a path."""
    if not isinstance(value, str | os.PathLike):
        return None
    path = _path(value, base)
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path.resolve()), found.st_mtime_ns, found.st_size


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _path(value: str | os.PathLike[str], base: Path | None) -> Path:
    path = Path(value).expanduser()
    return path if base is None or path.is_absolute() else base / path


def _read_file(path: Path, field: str) -> bytes:
    try:
        if path.is_dir():
            raise InvalidInput(f"{path} is a directory, not a file", field=field)
        if path.stat().st_size > MAX_ASSET_BYTES:
            raise _too_large(field)
        return _checked(path.read_bytes(), field)
    except FileNotFoundError:
        raise InvalidInput(f"there is no file {path}", field=field) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{str(path)[:200]} cannot be read: {reason}", field=field) from None


def _read_open(file: Any, field: str) -> bytes:
    """From where it stands, and there it stands again: several renders may name it."""
    try:
        data = file.read(MAX_ASSET_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the file cannot be read: {error}", field=field) from None
    if not isinstance(data, bytes):
        raise InvalidInput("the file was opened as text", field=field, hint='open it with "rb"')
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a pipe cannot go back
        file.seek(-len(data), os.SEEK_CUR)
    return data


def _png(picture: PictureLike, field: str) -> bytes:
    """Pillow reads a file only now, and finds then that it is cut short or closed."""
    out = io.BytesIO()
    try:
        picture.save(out, format="PNG")
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidInput(
            f"the picture cannot be made a PNG file: {error}",
            field=field,
            hint='of another mode it can: picture.convert("RGB")',
        ) from None
    return out.getvalue()


def _checked(data: bytes, field: str) -> bytes:
    if len(data) > MAX_ASSET_BYTES:
        raise _too_large(field)
    if not data:
        raise InvalidInput("the file is empty", field=field)
    return data


def _too_large(field: str) -> TooLarge:
    return TooLarge(f"the file is larger than {MAX_ASSET_BYTES >> 20} MiB", field=field)
