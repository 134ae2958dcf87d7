"""Loopback ports for the parts of a farm."""

import contextlib
import fcntl
import json
import os
import random
import socket
from pathlib import Path
from typing import IO

from farm.errors import InvalidInput
from farm.local.probes import listens
from farm.paths import short_temp

PORTS = (20_000, 32_000)  # below those of outgoing connections on Linux and macOS
_reserved: list[IO[bytes]] = []  # locks on ports, kept until this process ends


def check_port(port: int) -> None:
    """Raises ``InvalidInput`` where something else listens on a port that a user asked for."""
    if listens(port):
        raise InvalidInput(
            f"something already listens on 127.0.0.1:{port}",
            field="--port",
            hint="give another --port, or end the other program (a farm: farm down)",
        )


def free_port(preferred: int = 0) -> int:
    """A loopback port that no program listens on, the preferred one if it is free.

    It may be seconds until it is listened on. Farms that start at the same time would find the same
    port free, so it is locked for this process among all farms of this user; and it is not of the
    range from which the system gives outgoing connections theirs.
    """
    while True:
        port = preferred or random.randrange(*PORTS)
        preferred = 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if _reserve(port):
                return port


def _reserve(port: int) -> bool:
    """Whether this process now holds the lock on a port, or no lock can be kept."""
    folder = Path(short_temp()) / f"farm-ports-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        file = (folder / str(port)).open("ab")
    except OSError:  # a full disk, or another user's folder; the port is free all the same
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _reserved.append(file)
    return True


def kept_port(file: Path, first: int) -> int:
    """A free port, the one that it was last time if possible, so that bookmarks stay good.

    Args:
        file: remembers it.
        first: the one to try where nothing is remembered.
    """
    known: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):  # there is none yet, or a full disk cut it off
        known = dict(json.loads(file.read_text()))
    port = free_port(known.get("dashboard", first))
    with contextlib.suppress(OSError):  # a full disk: then it is another one next time
        file.write_text(json.dumps({"dashboard": port}) + "\n")
    return port
