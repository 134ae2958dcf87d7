"""How many bytes of request bodies are held in memory, in all and by each tenant."""

from collections import Counter
from typing import cast

from starlette.requests import Request
from starlette.types import Scope

from farm.errors import OverQuota, Unavailable

_HELD, _TENANT = "body_bytes", "tenant"  # in the state of a request


class BodyMemory:
    """One tenant may hold half of it, so that none can shut the others out.

    Only the event loop's thread calls it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()

    @staticmethod
    def of(request: Request) -> "BodyMemory":
        return cast(BodyMemory, request.app.state.body_memory)

    def take(self, request: Request, size: int) -> None:
        """Before more of the request's body is kept."""
        tenant = request.scope["state"].get(_TENANT, "")
        if self._held[tenant] + size > self._limit // 2:
            raise OverQuota(
                f"{self._held[tenant]:,} bytes of your requests are being read, and more than "
                f"{self._limit // 2:,} are not held at a time",
                hint="send fewer at once",
            )
        if self._held.total() + size > self._limit:
            raise Unavailable("too many large requests are being read", hint="try again")
        self._held[tenant] += size
        request.scope["state"][_HELD] = request.scope["state"].get(_HELD, 0) + size

    def give(self, scope: Scope) -> None:
        """What the request holds, when it has ended or its bytes were used."""
        state = scope.get("state", {})
        tenant = state.get(_TENANT, "")
        self._held[tenant] -= state.pop(_HELD, 0)
        if not self._held[tenant]:
            del self._held[tenant]
