"""What is refused before anything else is looked at."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import farm
from farm.errors import FarmError, TooLarge
from farm.gateway.auth import Authenticator
from farm.gateway.body_memory import BodyMemory
from farm.gateway.exception_handlers import answer

MAX_HEADERS = 100


class TooManyHeaders(TooLarge):
    """More header fields than any client of the farm sends."""

    status = 431


class RequestGuard:
    """Checks host and origin, counts headers, and names the server's version in every answer."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, body_memory: BodyMemory) -> None:
        self._app = app
        self._authenticator = authenticator
        self._body_memory = body_memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"farm-version", farm.__version__.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            if len(scope["headers"]) > MAX_HEADERS:
                raise TooManyHeaders(
                    f"{len(scope['headers'])} header fields; at most {MAX_HEADERS} are read",
                    field="headers",
                )
            headers = Headers(scope=scope)
            client = scope.get("client")
            self._authenticator.check_page(
                headers.get("host"), headers.get("origin"), client[0] if client else None
            )
        except FarmError as error:
            await answer(error)(scope, receive, stamped)
            return
        try:
            await self._app(scope, receive, stamped)
        finally:
            self._body_memory.give(scope)
