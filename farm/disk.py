"""Files that are whole or not there, and what the operating system says when it takes none."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from farm.errors import InvalidInput

HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or use another folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or use another folder",
    errno.EROFS: "the disk is mounted read-only: use another folder",
    errno.EACCES: "this user may not use the folder: correct its permissions, or use another one",
}


def hint_of(error: OSError) -> str | None:
    return HINTS.get(error.errno or 0)


def refused(
    folder: str | os.PathLike[str], error: OSError, field: str, what: str = "written to"
) -> InvalidInput:
    """The error as the user's."""
    told = f"{os.fspath(folder)} cannot be {what}: {error.strerror or error}"
    return InvalidInput(told, field=field, hint=hint_of(error))


@contextlib.contextmanager
def writing_to(folder: str | os.PathLike[str], field: str) -> Iterator[None]:
    """While files are written there.

    Raises:
        InvalidInput: the disk takes none, for a reason that has a hint.
    """
    try:
        yield
    except OSError as error:
        if hint_of(error) is None or not _concerns(folder, error):
            raise
        raise refused(folder, error, field) from None


def _concerns(folder: str | os.PathLike[str], error: OSError) -> bool:
    """The folder, what lies in it or around it; a file that is read elsewhere is another matter."""
    if not isinstance(error.filename, str):
        return True
    here, there = Path(folder).absolute(), Path(error.filename).absolute()
    return there.is_relative_to(here) or here.is_relative_to(there)


def draft_of(path: Path) -> Path:
    """Where a file is made before it takes its place: the same in every call, so that one which
    goes on leaves none of another's behind."""
    return path.with_name(f".{path.name}.part")


def put_whole(path: Path, data: bytes) -> None:
    """The file is there complete or as it was before; its folder has to be there."""
    draft = draft_of(path)
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except OSError:  # on a full disk a half file would take what is freed
        draft.unlink(missing_ok=True)
        raise
