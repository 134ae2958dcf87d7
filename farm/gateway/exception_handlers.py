"""Every failure is answered in one JSON shape: ``{"error": {"code", "message", ...}}``."""

import logging
import secrets
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from farm.errors import AllRejected, FarmError, InvalidInput

log = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method", 413: "too_large", 415: "content_type"}
RETRY_SECONDS = {429: "5", 503: "2"}


def answer(error: FarmError) -> Response:
    content: dict[str, Any] = {"error": error.to_dict()}
    if isinstance(error, AllRejected):
        content["errors"] = [rejected.to_dict() for rejected in error.rejected]
    return _answer(error.status, content)


def _answer(status: int, content: dict[str, Any]) -> Response:
    headers = {}
    if status in RETRY_SECONDS:
        headers["Retry-After"] = RETRY_SECONDS[status]
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(content, status, headers)


def path_of(request: Request) -> str:
    """As it was asked for; ``request.url`` cannot be had where the host header is malformed."""
    return str(request.scope["path"])[:120]


async def _farm_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, FarmError)
    return answer(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {path_of(request)!r}; /docs lists the addresses"
    elif error.status_code == 405:
        message = f"{request.method[:20]!r} is not possible here"
    facts = {"code": _CODES.get(error.status_code, "http"), "message": message, "retryable": False}
    response = _answer(error.status_code, {"error": facts})
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _parameter_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    finding = error.errors()[0]
    field = str(finding["loc"][-1]) if finding["loc"] else None
    message = str(finding["msg"]).replace("Input should", "must")
    return answer(InvalidInput(message, field=field))


async def _client_left(_: Request, __: Exception) -> Response:
    return Response(status_code=400)


async def _unexpected(request: Request, error: Exception) -> Response:
    """The log has the trace, under a number that the caller is given."""
    number = secrets.token_hex(4)
    log.error("%r %r failed (%s)", request.method[:20], path_of(request), number, exc_info=error)
    facts = {
        "code": "internal",
        "message": f"the gateway failed; its log has the details under {number}",
        "retryable": True,
    }
    return _answer(500, {"error": facts})


def install(app: FastAPI) -> None:
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _unexpected)
