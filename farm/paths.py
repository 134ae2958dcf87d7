"""Where a farm on this machine keeps its data, and where its clients find its address."""

import os
from pathlib import Path


def data_dir() -> Path:
    """``FARM_DATA``, else ``amused-farm`` in the user's data directory."""
    if given := os.environ.get("FARM_DATA"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "amused-farm"


def client_file(data: Path | None = None) -> Path:
    """Written by ``farm up``: the address of its gateway, and a key where one is needed."""
    return (data or data_dir()) / "client.json"


def write_pid(path: Path, pid: int) -> None:
    """Replace a pid file at once, so that a reader never finds half of one."""
    part = path.with_suffix(".part")
    part.write_text(f"{pid}\n")
    part.replace(path)
