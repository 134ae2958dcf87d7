"""Why workers do not run, as a scheduler last said it: for ``farm why``, ``doctor`` and /readyz."""

from redis.exceptions import RedisError

from farm.queue.connection import explain
from farm.queue.queue import Queue

NOTICE_SECONDS = 60  # then it is over, or has been said again
MAX_NOTICE = 500  # characters


def post(queue: Queue, text: str) -> None:
    try:
        queue.client.set(_key(queue), text[:MAX_NOTICE], ex=NOTICE_SECONDS)
    except RedisError as error:
        raise explain(error) from error


def read(queue: Queue) -> str | None:
    try:
        found = queue.client.get(_key(queue))
    except RedisError as error:
        raise explain(error) from error
    return str(found) if found else None


def _key(queue: Queue) -> str:
    return f"{{{queue.farm}}}:notice"
