"""Checkpoints of the Hugging Face hub, in the cache that all programs of a host share.

The hub's client fetches and goes on after a kill; it compares sizes. Here each host's first process
also compares hashes, and looks for room first.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from farm.checkpoints import host
from farm.checkpoints.layout import WEIGHTS
from farm.errors import InvalidCheckpoint

ATTEMPTS = 2  # to fetch a file that comes damaged
ANSWER_SECONDS = 4.0  # for the hub's first answer
HINT = "check the id and the network, or give a local directory"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


def fetch(name: str, commit: str) -> Path:
    """The folder of a checkpoint at a commit; fetched once per host.

    Raises:
        InvalidCheckpoint: it cannot be fetched, does not fit on the disk, or comes damaged.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise InvalidCheckpoint(
            "fetching a checkpoint by its hub id needs huggingface-hub",
            hint='install "amused-farm[worker]", or give a directory',
        ) from None
    patterns = ["*.json", "*.txt", *(f"*/{stem}*.safetensors" for stem in WEIGHTS.values())]
    asked = {
        "repo_id": name,
        "revision": commit,
        "allow_patterns": patterns,
        "ignore_patterns": ["*.fp16.*"],
    }
    try:
        return _fetch(huggingface_hub, asked)
    except InvalidCheckpoint:
        raise
    except Exception as error:  # the hub client raises a dozen unrelated classes
        raise InvalidCheckpoint(
            f"{name}@{commit[:12]} cannot be fetched: {_first_line(error)}", hint=HINT
        ) from None


def _fetch(hub: ModuleType, asked: dict[str, Any]) -> Path:
    name, commit = asked["repo_id"], asked["revision"]
    cache = Path(hub.constants.HF_HUB_CACHE)
    if cache.is_dir() and not os.access(cache, os.W_OK):  # it came with the machine's image
        return Path(hub.snapshot_download(**asked, local_files_only=True))
    repository = cache / f"models--{name.replace('/', '--')}"
    locks = cache / ".locks" / repository.name
    verified = locks / f"farm-{commit}.verified"
    what = f"{name}@{commit[:12]}"
    with host.alone(locks / f"farm-{commit}.lock", what):
        if verified.exists():
            with contextlib.suppress(hub.errors.LocalEntryNotFoundError):  # it was deleted
                return Path(hub.snapshot_download(**asked, local_files_only=True))
        for _ in range(ATTEMPTS):
            folder = _download(hub, asked, repository, what)
            damaged = [file for file in folder.rglob("*") if file.is_file() and not _whole(file)]
            if not damaged:
                verified.touch()
                return folder
            for file in damaged:
                file.resolve().unlink()
                file.unlink()
    raise InvalidCheckpoint(
        f"{what}: {damaged[0].relative_to(folder)} comes damaged: its hash is not the hub's",
        hint="try again, or download it another way and give a local directory",
    )


def _download(hub: ModuleType, asked: dict[str, Any], repository: Path, what: str) -> Path:
    if silence := _silence(hub):
        try:  # what is there may be enough
            return Path(hub.snapshot_download(**asked, local_files_only=True))
        except hub.errors.LocalEntryNotFoundError:
            raise InvalidCheckpoint(f"{what} cannot be fetched: {silence}", hint=HINT) from None
    try:
        files = hub.snapshot_download(**asked, dry_run=True)
    except hub.errors.DryRunError:  # it does not answer this: what is there may be enough
        files = []
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    if not needed:
        return Path(hub.snapshot_download(**asked))
    host.check_room(repository.parent, needed, what, "HF_HUB_CACHE")
    with host.told(what, needed, lambda: host.bytes_in(repository / "blobs")):
        return Path(hub.snapshot_download(**asked))


def _silence(hub: ModuleType) -> str | None:
    """Why the hub does not answer; its client would ask six times, for 25 s."""
    try:
        hub.get_session().head(hub.constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _whole(file: Path) -> bool:
    """The cache names a file by its hash: large ones by their sha256, small ones as git does."""
    blob = file.resolve()
    if _SHA256.fullmatch(blob.name):
        with blob.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == blob.name
    if _GIT.fullmatch(blob.name):
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == blob.name
    return True
