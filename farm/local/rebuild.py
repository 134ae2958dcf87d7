"""``farm doctor --rebuild``: a new queue from the store, in the place of one that was lost."""

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from farm.errors import Conflict
from farm.ingest.rebuild import rebuild
from farm.local.valkey import ServerProcess
from farm.paths import short_temp
from farm.queue import Queue, connect
from farm.queue.connection import explained
from farm.store import Store

UNFINISHED = "{%s}:rebuilding"


def rebuild_embedded(data: Path, store: Store, farm: str) -> tuple[Counter[str], Path | None]:
    """Replace ``data/valkey`` by a new one; no server may run there.

    The new files replace the old ones in one step when they are whole, so an interrupted call
    has changed nothing.

    Returns:
        What came back, and where the old files lie now; None if there were none.
    """
    place, made = data / "valkey", data / "valkey.new"
    with ServerProcess(place).unused():
        shutil.rmtree(made, ignore_errors=True)
        # Through a link: the folder's own path may be too long for a socket's.
        with tempfile.TemporaryDirectory(prefix="farm-", dir=short_temp()) as folder:
            link = Path(folder) / "data"
            link.symlink_to(data.absolute(), target_is_directory=True)
            with ServerProcess(link / made.name).serving() as server:
                counts = rebuild(Queue(connect(server.url), farm=farm), store)
        kept = data / f"valkey.old-{time.strftime('%Y%m%d-%H%M%S')}" if place.exists() else None
        if kept is not None:
            place.rename(kept)
        made.rename(place)
    return counts, kept


@explained
def rebuild_at(redis_url: str, store: Store, farm: str) -> Counter[str]:
    """Fill the queue of a server that runs elsewhere.

    Raises:
        Conflict: it has jobs or workers of this farm.
        Unavailable: it does not answer.
    """
    client = connect(redis_url)
    queue, mark = Queue(client, farm=farm), UNFINISHED % farm
    known = next(client.scan_iter(f"{{{farm}}}:job:*", count=1000), None)
    if queue.sessions() or (known is not None and not client.exists(mark)):
        raise Conflict(
            "the queue is not empty",
            hint="end its workers and gateways, and let REDIS_URL name an empty server",
        )
    client.set(mark, "1")
    counts = rebuild(queue, store)
    client.delete(mark)
    return counts


def told(counts: Counter[str]) -> str:
    """One line for people."""
    states = ("open", "queued", "running", "done", "failed", "cancelled")
    jobs = sum(counts[state] for state in states)
    each = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    line = f"{jobs:,} jobs came back" + (f" ({each})" if each else "")
    line += f": {counts['tasks']:,} tasks, {counts['pictures']:,} pictures done"
    if counts["unreadable"]:
        line += f"; the records of {counts['unreadable']} jobs are damaged and were left out"
    return line
