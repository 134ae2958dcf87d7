"""Lines and events out of the parts in which they arrive."""

from collections.abc import AsyncIterator


async def read_lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    held = b""
    async for part in parts:
        *lines, held = (held + part).split(b"\n")
        for line in lines:
            yield line


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
