"""What one process of a host does while the others wait: fetching a checkpoint."""

import contextlib
import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from farm.errors import InvalidCheckpoint

log = logging.getLogger(__name__)

LINE_SECONDS = 5.0  # between two lines about a fetch
SPARE_BYTES = 256 * 2**20  # that stay free on the disk


@contextlib.contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a file's lock, which ends with the process that holds it, however that ends.

    Args:
        lock: the file; it stays.
        what: is fetched, for the log.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process of this host fetches it", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_room(folder: Path, needed: int, what: str, variable: str) -> None:
    """Raises ``InvalidCheckpoint`` if so many bytes do not fit on the disk of a folder, which
    ``variable`` moves elsewhere."""
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise InvalidCheckpoint(
            f"{what} needs {_size(needed)} more in {folder}, where {_size(free)} are free",
            hint=f"free some, or name a folder on another disk with {variable}",
        )


@contextlib.contextmanager
def told(what: str, needed: int, held: Callable[[], int]) -> Iterator[None]:
    """Log how far a fetch of so many bytes is; ``held`` gives those that are on the disk."""
    before, began, ended = held(), time.monotonic(), threading.Event()

    def tell() -> None:
        while not ended.wait(LINE_SECONDS):
            done = held() - before
            rate = done / (time.monotonic() - began)
            log.info("%s: %s of %s, %s/s", what, _size(done), _size(needed), _size(rate))

    log.info("%s: fetching %s", what, _size(needed))
    teller = threading.Thread(target=tell, name="fetch", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
    log.info("%s: fetched in %.0f s", what, time.monotonic() - began)


def bytes_in(folder: Path) -> int:
    """Of all files; one that goes meanwhile does not count."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
