"""From a reference to a directory: a path, a built-in name, a hub id or a checkpoint in a store."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from farm.checkpoints import hub
from farm.errors import InvalidCheckpoint
from farm.paths import data_dir

# The authors' checkpoints on the Hugging Face hub, at a commit each.
PUBLISHED: Mapping[str, str] = {
    "amused-256": "amused/amused-256@1d11dd57b9d3bc9c5b91bb8be8d426f4db90f5c4",
    "amused-512": "amused/amused-512@1ade4d510b58b500dfe820141737322007d17cd8",
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def built_in() -> dict[str, Path]:
    """Checkpoints that came with the workers' package, by name; the smallest pictures first."""
    return {folder.name: folder for folder in _shipped("checkpoints/*/")}


def built_in_adapters() -> dict[str, Path]:
    """Adapters that came with the workers' package, for shapes-64 and shapes-128, by name."""
    return {file.stem: file for file in _shipped("adapters/*.safetensors")}


def _shipped(pattern: str) -> list[Path]:
    found = importlib.util.find_spec("farm_workers")
    places = found.submodule_search_locations or [] if found else []
    paths = [path for place in places for path in Path(place).glob(pattern)]
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def resolve(ref: str | Path, data: Path | None = None) -> tuple[Path, tuple[str, str] | None]:
    """The directory behind a reference and, for one of the hub or a store, its id and revision."""
    if "://" in str(ref):
        from farm.checkpoints import stored

        return stored.fetch(str(ref), data or data_dir())
    path = Path(ref)
    if path.is_dir():
        return path.resolve(), None
    if path.exists():
        raise InvalidCheckpoint(f"{path} is a file; a checkpoint is a directory")
    text = str(ref)
    if text in (shipped := built_in()):
        return shipped[text], None
    name, _, commit = PUBLISHED.get(text, text).partition("@")
    if not _HUB_ID.fullmatch(name):
        known = ", ".join(["a directory", *shipped, *PUBLISHED])
        raise InvalidCheckpoint(
            f"{text} is not a directory, a built-in checkpoint or a hub id",
            hint=f"give {known} or owner/name@<40-digit commit>",
        )
    if not _COMMIT.fullmatch(commit):
        raise InvalidCheckpoint(
            f"{text}: no directory of that name; a hub id needs its full commit",
            hint=f"{name}@<40-digit commit>, so that a job always gives the same pictures",
        )
    return hub.fetch(name, commit), (name, commit)
