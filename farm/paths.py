"""Where a farm on this machine keeps its data, and where its clients find its address."""

import os
import tempfile
from pathlib import Path

from farm.errors import InvalidInput

DATA_HELP = (
    "The farm's folder: everything it writes is below it. Default: FARM_DATA, else "
    "~/.local/share/amused-farm."
)
_HINT = "name a folder that can be written to with FARM_DATA or --data"

SCHEDULER_ALIVE = "scheduler.alive"  # in the run folder; touched by it at every pass


def data_dir() -> Path:
    """``FARM_DATA``, else ``amused-farm`` in the user's data directory."""
    if given := os.environ.get("FARM_DATA"):
        return _expanded(given)
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return _expanded(base) / "amused-farm"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InvalidInput(
            "is not set, and this user has no home", field="HOME", hint=_HINT
        ) from None


def client_file(data: Path | None = None) -> Path:
    """Written by ``farm up``: the address of its gateway, a key where one is needed, and the
    checkpoints that it serves."""
    return (data or data_dir()) / "client.json"


PRIVATE = ("checkpoints", "logs", "run", "store", "valkey")  # folders of a farm's data


def make_private(data: Path) -> None:
    """Keep a farm's data from other users: what this process and its children make from now on,
    and what is there already, whatever the umask was then.

    A folder that was there before the farm may hold other things; its own mode stays.
    """
    os.umask(0o077)
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data, buffering=0) as file:
            file.write(bytes(4096))  # a full disk takes the file, but nothing in it
    except OSError as error:
        raise InvalidInput(
            f"{data} cannot be used: {error.strerror}", field="FARM_DATA", hint=_HINT
        ) from None
    for folder in (data / name for name in PRIVATE):
        if (
            folder.is_dir()
            and folder.stat().st_uid == os.getuid()
            and folder.stat().st_mode & 0o077
        ):
            folder.chmod(0o700)


def short_temp() -> str:
    """The folder for temporary files; the system's if ``TMPDIR`` is too long for sockets."""
    given = tempfile.gettempdir()
    return (
        given
        if len(os.fsencode(given)) <= len("/tmp") or not os.access("/tmp", os.W_OK)
        else "/tmp"
    )
