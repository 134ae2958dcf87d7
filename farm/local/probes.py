"""Whether the parts of a farm answer."""

import contextlib
import http.client
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.addresses import check_redis_url, reachable


def serves(redis_url: str) -> bool:
    """Whether a Redis server answers; asked once."""
    check_redis_url(redis_url)
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis.from_url(redis_url, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        return bool(client.ping())
    return False


def replies(redis_url: str) -> bool:
    """Whether something at the address speaks Redis, if only to say that it is busy."""
    check_redis_url(redis_url)
    with contextlib.suppress(redis.RedisError):
        client = redis.Redis.from_url(redis_url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
        try:
            return bool(client.ping())
        except (redis.ResponseError, redis.BusyLoadingError, redis.AuthenticationError):
            return True
    return False


def silent_parts(health: Mapping[str, str]) -> list[str]:
    """Those of Ray's parts that do not answer at their addresses for health checks."""
    return [name for name, url in health.items() if not answers(url)]


def fresh(file: Path, seconds: float = 10.0) -> bool:
    """Whether a file was touched within so many seconds."""
    return file.exists() and time.time() - file.stat().st_mtime < seconds


def listens(port: int) -> bool:
    return reachable(f"127.0.0.1:{port}")


# Loopback is never behind a proxy, whatever http_proxy says.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a GET gives 200."""
    try:
        with _DIRECT.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):  # the latter of what does not speak HTTP
        return False
