"""What the queue says of its workers, as lines of JSON on standard output, whenever it changes,
until the end of standard input."""

import json
import os
import select
import sys
import time

from farm.errors import FarmError
from farm.queue import Queue, connect, placed_workers
from farm.queue.placed_workers import WorkerState

LOOK_SECONDS = 0.1


def look(queue: Queue) -> dict[str, object]:
    """Sessions with the tasks that they hold, and how many workers the scheduler sees running."""
    before: object = None
    lives: list[tuple[str, str, list[str]]] = []
    while before != (sessions := sorted((one.session, one.worker) for one in queue.sessions())):
        before = sessions  # one may end before it is asked what it holds
        lives = [
            (session, worker, sorted(lease.key for lease in queue.held(session)))
            for session, worker in sessions
        ]
    placed = [worker.state for worker in placed_workers.read(queue)]
    return {"lives": lives, "running": placed.count(WorkerState.RUNNING)}


def main() -> None:
    queue = Queue(connect(os.environ["REDIS_URL"]))
    before: object = ()
    while True:
        told: dict[str, object] | None
        try:
            told = look(queue)
        except FarmError:
            told = None
        if told != before:
            print(json.dumps({"at": time.monotonic(), "told": told}), flush=True)
            before = told
        if select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
            return


if __name__ == "__main__":
    main()
