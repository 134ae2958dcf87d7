"""A client that notices when the data behind its address are not those it knew."""

import secrets
import threading
from typing import Any

import redis
from redis import exceptions as refused

from farm.queue.constants import SCHEMA


class OtherData(refused.RedisError):
    """The server that answers now has other data than the one before it."""


class Identity:
    """Checked for each new connection, so that calls cost nothing more.

    A server keeps its data, and so its identity, over its restarts. Where another identity
    answers, a different server has taken the address over, or the data were lost: a process that
    went on would acknowledge jobs that the others never see. It refuses every call until it is
    started again.
    """

    def __init__(self, key: str) -> None:
        self._key = key  # a hash; its field "identity" is set once, "schema" when it rises
        self._known: str | None = None
        self._lock = threading.Lock()

    def guard(self, client: "redis.Redis") -> None:
        """Check every connection that a client makes from now on."""
        client.connection_pool.connection_kwargs["redis_connect_func"] = self._connected
        client.connection_pool.disconnect()

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        with self._lock:
            found = self._ask(connection, "HGET", self._key, "identity")
            if found is None and self._known is None:
                self._ask(connection, "HSETNX", self._key, "identity", secrets.token_hex(16))
                found = self._ask(connection, "HGET", self._key, "identity")
            if self._known is None:
                self._known = found
            elif found != self._known:
                raise OtherData("another server, or one that has lost its data, answers")
            # Each script looks at it and refuses newer data, also through an old connection.
            if int(self._ask(connection, "HGET", self._key, "schema") or 0) < SCHEMA:
                self._ask(connection, "HSET", self._key, "schema", str(SCHEMA))

    @staticmethod
    def _ask(connection: Any, *words: str) -> str | None:
        connection.send_command(*words)
        answer = connection.read_response()
        return answer.decode() if isinstance(answer, bytes) else answer
