"""What the farm requires of a Redis server, and what it does when one was restarted."""

import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import redis
from redis import exceptions as refused

from farm.errors import Unavailable
from farm.queue.connection import explained

LOWEST_VERSION = (7, 0)
REPLAYS_ALL = (9, 1, 2)  # Valkey; https://github.com/valkey-io/valkey/issues/3983
LEAST_MEMORY = 64 * 2**20  # bytes
REWRITE_SECONDS = 120.0
POLL_SECONDS = 0.02

_MAY_BE_LOST = {"everysec": "the last second", "no": "the last half minute"}


class ServerFacts(NamedTuple):
    version: str
    run_id: str
    notes: tuple[str, ...]  # worth knowing, but not refused


@explained
def check_server(client: "redis.Redis", *, allow_volatile: bool = False) -> ServerFacts:
    """Refuse a server that could lose accepted work.

    Args:
        client: a connection to it.
        allow_volatile: accept a server without an append-only file; for tests.

    Raises:
        Unavailable: what is wrong with the server, and which setting fixes it.
    """
    info: dict[str, Any] = client.info()
    settings: dict[str, Any] = _settings(client)
    _refuse_unsafe(info)
    return ServerFacts(
        str(info.get("valkey_version", info["redis_version"])),
        str(info["run_id"]),
        (*_notes(info, settings, allow_volatile), *_replay_notes(client, info)),
    )


def _numbers(version: object) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(version))[:3])


def _refuse_unsafe(info: Mapping[str, Any]) -> None:
    version = str(info["redis_version"])
    if _numbers(version)[:2] < LOWEST_VERSION:
        raise Unavailable(
            f"the Redis server has version {version}; the farm needs 7.0 or newer",
            hint="Valkey 8.1 or newer is best",
        )
    if info.get("role") == "slave":
        raise Unavailable("REDIS_URL names a replica", hint="let it name the primary")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise Unavailable(
            f"the Redis server may evict queued work: its maxmemory-policy is {policy}",
            hint="set maxmemory-policy noeviction",
        )
    limit = int(info.get("maxmemory", 0))
    if 0 < limit < LEAST_MEMORY:
        raise Unavailable(
            f"the Redis server may use only {limit:,} bytes", hint="set maxmemory 64mb or more"
        )


def _notes(
    info: Mapping[str, Any], settings: Mapping[str, Any], allow_volatile: bool
) -> Iterator[str]:
    if not info.get("aof_enabled"):
        if not allow_volatile:
            raise Unavailable(
                "the Redis server keeps its data in memory only: accepted work would not survive "
                "its end",
                hint="set appendonly yes and appendfsync always; to try things out, "
                "FARM_ALLOW_VOLATILE=1 accepts it",
            )
        yield "no append-only file: accepted work does not survive the server's end"
    elif (fsync := settings.get("appendfsync", "always")) != "always":
        yield (
            f"appendfsync is {fsync}: {_MAY_BE_LOST.get(fsync, 'some')} of accepted work may be "
            "lost with the server; set it to always"
        )
    if int(info.get("maxmemory", 0)) == 0:
        yield "no maxmemory: when the machine's memory is full the server may be killed"


def _replay_notes(client: "redis.Redis", info: Mapping[str, Any]) -> Iterator[str]:
    """A server reads its append-only file in the name of the user ``default``, and many versions
    then leave out, without a word, what a script wrote and that user may not write."""
    if not info.get("aof_enabled") or _numbers(info.get("valkey_version", "")) >= REPLAYS_ALL:
        return
    try:
        answer = client.acl_dryrun("default", "SET", "{farm}:", "")
    except refused.NoPermissionError:
        yield (
            "this user may not ask whether the server's user default keeps its rights, without "
            "which a restart loses work; let it, with +acl|dryrun"
        )
    except refused.ResponseError:  # a managed service, whose files are its own concern
        return
    else:
        if answer != "OK":
            raise Unavailable(
                "the server's user default has no rights, and this version loses what scripts "
                "wrote when it is restarted",
                hint="give it its rights, not a login: user default off ~* &* +@all; or take "
                "Valkey 9.1.2 or newer",
            )


def _settings(client: "redis.Redis") -> dict[str, Any]:
    try:
        return dict(client.config_get("appendfsync"))  # type: ignore[arg-type]
    except refused.ResponseError:
        return {}  # a managed service may refuse


@explained
def rewrite(client: "redis.Redis") -> str:
    """Rewrite the append-only file, wait for it, and return the server's run_id.

    Redis 7.0.15 and Valkey before 8.0.11 and 8.1.10 lose later writes at the second start after a
    crash cut the file off inside a script's transaction; a rewritten file is whole.

    Raises:
        Unavailable: it failed, or takes too long.
    """
    end = time.monotonic() + REWRITE_SECONDS
    while True:
        run_id = str(client.info("server")["run_id"])
        if not client.info("persistence")["aof_enabled"] or not _start_rewrite(client):
            return run_id
        while _rewriting(client):
            if time.monotonic() > end:
                raise Unavailable(
                    f"Redis has not rewritten its append-only file in {REWRITE_SECONDS:g} s",
                    hint="work continues; submissions are accepted when it is done",
                )
            time.sleep(POLL_SECONDS)
        if client.info("persistence")["aof_last_bgrewrite_status"] != "ok":
            raise _failed()
        # The server may have been replaced meanwhile.
        if client.info("server")["run_id"] == run_id:
            return run_id


def _start_rewrite(client: "redis.Redis") -> bool:
    """False if the service does not let its users do it; it then takes care of it itself."""
    try:
        client.bgrewriteaof()
    except refused.NoPermissionError:
        return False
    except refused.ResponseError as error:
        if "unknown command" in str(error):
            return False
        if "progress" not in str(error):
            raise _failed() from error
    return True


def _failed() -> Unavailable:
    return Unavailable(
        "Redis could not rewrite its append-only file", hint="look at its disk space and its log"
    )


def _rewriting(client: "redis.Redis") -> bool:
    facts: dict[str, Any] = client.info("persistence")
    return bool(facts["aof_rewrite_in_progress"] or facts["aof_rewrite_scheduled"])
