"""Answers that are read as they come: lines of JSON, and server-sent events."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from farm.errors import Unavailable, from_dict
from farm_client.connection import Connection
from farm_client.models import Usage

LINE_SECONDS = 120.0  # without a line


async def read_lines(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The objects on the lines; an ``error`` among them is raised."""
    held = b""
    async for part in parts:
        *lines, held = (held + part).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "error" in told:
                raise from_dict(told["error"])
            yield told


async def read_usage(
    connection: Connection, path: str, query: Mapping[str, Any] | None = None
) -> AsyncIterator[Usage]:
    async with connection.stream(path, query=query, seconds=LINE_SECONDS) as opened:
        async for told in read_lines(opened.parts):
            if "usage" in told:
                yield Usage.model_validate(told["usage"])
            if "total" in told:
                return
    raise Unavailable("the farm closed the stream", hint="ask again")


async def read_events(parts: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Server-sent events: name and data."""
    held = b""
    name, data = "message", b""
    async for part in parts:
        held += part
        *lines, held = held.split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if not line:
                if data:
                    yield name, data
                name, data = "message", b""
            elif line.startswith(b"event:"):
                name = line[6:].strip().decode()
            elif line.startswith(b"data:"):
                data += line[5:].strip()
