"""Why workers do not run, as a scheduler last said it: for ``farm why``, ``doctor`` and /readyz."""

from farm.queue.connection import explained
from farm.queue.queue import Queue

NOTICE_SECONDS = 60  # then it is over, or has been said again
MAX_NOTICE = 500  # characters


@explained
def post(queue: Queue, text: str) -> None:
    queue.client.set(_key(queue), text[:MAX_NOTICE], ex=NOTICE_SECONDS)


@explained
def read(queue: Queue) -> str | None:
    found = queue.client.get(_key(queue))
    return str(found) if found else None


def _key(queue: Queue) -> str:
    return f"{{{queue.farm}}}:notice"
