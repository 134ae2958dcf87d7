"""A Redis client with time limits; its errors become errors of the farm."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import redis
from redis import exceptions as refused
from redis.backoff import FullJitterBackoff
from redis.retry import Retry

from farm.addresses import check_redis_url
from farm.errors import (
    Conflict,
    FarmError,
    InvalidInput,
    JobCancelled,
    LeaseLost,
    NotFound,
    OverQuota,
    QueueFull,
    Unavailable,
)
from farm.queue.identity import OtherData

SOCKET_SECONDS = 5.0  # without a reply; blocking calls must stay well below it
MAX_BLOCK_SECONDS = 2.0
CONNECT_SECONDS = 2.0
RETRIES = 6
PATIENCE_SECONDS = 8.0  # after that a call is not sent again, even with retries left
FIRST_PAUSE = 0.05  # seconds; doubles up to the longest, full jitter
LONGEST_PAUSE = 1.0
HEALTH_CHECK_SECONDS = 15

_P = ParamSpec("_P")
_R = TypeVar("_R")

_inside = threading.local()  # whether this thread is in a retried call
_FINAL = (  # connection errors for redis-py, but a retry cannot help
    refused.AuthenticationError,
    refused.AuthorizationError,
    refused.ExternalAuthProviderError,
)


class Patience(Retry):
    """Retries within a number of seconds, and not within each other.

    redis-py retries a command, in it the connecting, and in that the handshake: with the same
    numbers for each, a server that accepts connections and says nothing held a call for minutes.
    """

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Any:
        outer = not getattr(_inside, "retried", False)
        end = time.monotonic() + PATIENCE_SECONDS
        failures = 0
        while True:
            try:
                _inside.retried = True
                return do()
            except self._supported_errors as error:
                failures += 1
                fail(error, failures) if with_failure_count else fail(error)
                pause = self._backoff.compute(failures)
                if (
                    not outer
                    or failures > RETRIES
                    or time.monotonic() + pause > end
                    or isinstance(error, _FINAL)
                    or (is_retryable is not None and not is_retryable(error))
                ):
                    raise
            finally:
                _inside.retried = not outer
            time.sleep(pause)


def connect(url: str) -> "redis.Redis":
    """A client that retries what a lost connection interrupted; every script is safe to repeat.

    A call fails after two or three seconds if connections are refused, and after about fifteen if
    they are accepted and no reply comes. A loop that must not end calls again.
    """
    return redis.Redis.from_url(
        check_redis_url(url),
        decode_responses=True,
        socket_timeout=SOCKET_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        health_check_interval=HEALTH_CHECK_SECONDS,
        retry=Patience(FullJitterBackoff(cap=LONGEST_PAUSE, base=FIRST_PAUSE), RETRIES),
        retry_on_error=[
            refused.BusyLoadingError,
            refused.ConnectionError,
            refused.TimeoutError,
        ],
    )


class RewriteNeeded(Unavailable):
    """The server was restarted; its append-only file must be rewritten before new work is taken."""


class NewerData(Unavailable):
    """A newer farm has written to this queue: this one would misread it."""

    retryable = False


# What the scripts refuse, by the first word of their reply.
_REFUSALS: dict[str, type[FarmError]] = {
    "CONFLICT": Conflict,
    "NOTFOUND": NotFound,
    "LEASELOST": LeaseLost,
    "CANCELLED": JobCancelled,
    "INVALID": InvalidInput,
    "REWRITE": RewriteNeeded,
    "OVERQUOTA": OverQuota,
    "NEWER": NewerData,
}


class ServerError(NamedTuple):
    """The farm's message for an error of Redis itself."""

    kind: type[FarmError]
    message: str
    hint: str


_SERVER_ERRORS = {
    "OOM": ServerError(
        QueueFull,
        "Redis has no memory left for new work",
        "try again when some of the queued work is done, or raise maxmemory",
    ),
    "LOADING": ServerError(
        Unavailable,
        "Redis is loading its data",
        "it will answer when it has read its append-only file",
    ),
    "READONLY": ServerError(
        Unavailable, "Redis answers as a read-only replica", "let REDIS_URL name the primary"
    ),
    "UNBLOCKED": ServerError(
        Unavailable, "Redis has become a read-only replica", "let REDIS_URL name the primary"
    ),
    "BUSY": ServerError(Unavailable, "Redis is busy with a script", "try again in a moment"),
    "MISCONF": ServerError(
        Unavailable,
        "Redis takes no writes because it cannot save its data",
        "look at its disk space and its log",
    ),
    "NOSCRIPT": ServerError(
        Unavailable,
        "Redis forgets the farm's scripts as fast as they are loaded",
        "is something calling SCRIPT FLUSH?",
    ),
    "MAXCLIENTS": ServerError(
        Unavailable, "Redis takes no more connections", "raise maxclients, or run fewer processes"
    ),
    "NOAUTH": ServerError(
        Unavailable, "Redis wants a password", "put it into REDIS_URL: redis://:password@host"
    ),
    "WRONGPASS": ServerError(Unavailable, "Redis refuses the password", "look at REDIS_URL"),
    "NOPERM": ServerError(
        Unavailable, "the Redis user may not do this", "it needs scripts and all keys of the farm"
    ),
    "MASTERDOWN": ServerError(
        Unavailable, "Redis has lost its primary", "let REDIS_URL name the primary"
    ),
}


_ENDED = (ConnectionRefusedError, ConnectionResetError, BrokenPipeError, FileNotFoundError)


def cut_off(error: FarmError) -> bool:
    """Whether a call failed by silence: the server may serve others who reach it. One that refuses
    connections, closes them or answers with an error serves nobody meanwhile."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _ENDED):
            return False
        if isinstance(cause, refused.TimeoutError | OSError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def explain(error: refused.RedisError) -> FarmError:
    """The farm's error for one of the client's."""
    message = str(error)
    if isinstance(error, OtherData):
        return Unavailable(
            "the queue's server is not the one it was: another one answers at its address, or it "
            "has lost its data; nothing is accepted",
            hint="give REDIS_URL's server its data back; if the change is meant, start gateways, "
            "schedulers and workers again, and fill the queue with farm doctor --rebuild",
        )
    word, _, rest = message.partition(" ")
    if word in _REFUSALS:
        text, _, hint = rest.partition(" | ")
        return _REFUSALS[word](text, hint=hint or None)
    # redis-py removes the word if it has a class for the reply.
    by_class = {
        refused.NoScriptError: "NOSCRIPT",
        refused.OutOfMemoryError: "OOM",
        refused.BusyLoadingError: "LOADING",
        refused.ReadOnlyError: "READONLY",
        refused.MasterDownError: "MASTERDOWN",
        refused.NoPermissionError: "NOPERM",
        refused.AuthenticationError: "NOAUTH",
    }
    for kind, name in by_class.items():
        if isinstance(error, kind):
            word = name
            break
    # redis-py has no class for these two.
    if word == "NOAUTH" and "invalid" in message:
        word = "WRONGPASS"
    elif "max number of clients" in message:
        word = "MAXCLIENTS"
    if word in _SERVER_ERRORS:
        known = _SERVER_ERRORS[word]
        return known.kind(known.message, hint=known.hint)
    if isinstance(error, refused.TimeoutError | refused.ConnectionError):
        return Unavailable(
            f"Redis does not answer: {message}", hint="is it running, and is REDIS_URL right?"
        )
    return Unavailable(f"Redis refused: {message}")


def explained(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same call, but what the client raises is raised as the farm's error."""

    @functools.wraps(call)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return call(*args, **kwargs)
        except refused.RedisError as error:
            raise explain(error) from error

    return told
