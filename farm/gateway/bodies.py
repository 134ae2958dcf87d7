"""Request bodies, with a limit on everything that a client could make large."""

from collections.abc import AsyncIterator
from itertools import accumulate
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request

from farm import strict_json
from farm.errors import InvalidInput, TooLarge
from farm.gateway.body_memory import BodyMemory
from farm.ingest.ndjson import Entries, parse_lines
from farm.job import MAX_LINE_BYTES, MAX_PIECE_LINES

JSON_TYPES = ("application/json",)
NDJSON_TYPES = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
)
PIECE_BYTES = 8 * 2**20  # of a stream that is cut into pieces here
MAX_CONTAINERS = 200_000  # objects and lists of a JSON body; in memory each has 80 bytes and more


class WrongType(InvalidInput):
    """This address does not take a body of this type."""

    status = 415


def content_type(request: Request) -> str:
    """The body's type, in lower case and without parameters; encoded bodies are refused."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise WrongType(
            f"the body is encoded as {encoding[:40]!r}",
            field="Content-Encoding",
            hint="send it without Content-Encoding",
        )
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, refused as soon as it is known to be longer than the limit."""
    claimed = request.headers.get("content-length", "")
    if claimed.isdigit() and int(claimed) > limit:
        raise _too_large(limit)
    memory = BodyMemory.of(request)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        memory.take(request, len(part))
        parts.append(part)
    return b"".join(parts)


async def read_file(request: Request, limit: int) -> bytes:
    """A file that is sent as the body."""
    if content_type(request).startswith("multipart/"):
        raise InvalidInput(
            "the body is a form", field="Content-Type", hint="send the file's bytes as the body"
        )
    return await read_body(request, limit)


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The object that is the body. It is parsed in a thread: others are answered meanwhile."""
    body = await read_body(request, limit)
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the body is not UTF-8 (byte {error.start})", field="json") from None
    if not text.strip():
        raise InvalidInput("the body is empty", field="json", hint='send {"renders": [...]}')
    if text.count("{") + text.count("[") > MAX_CONTAINERS:
        raise TooLarge(f"has more than {MAX_CONTAINERS:,} objects and lists", field="json")
    data = await run_sync(strict_json.loads, text)
    if not isinstance(data, dict):
        raise InvalidInput(
            f"the body is a {type(data).__name__}, not an object",
            field="json",
            hint='send {"renders": [...]}',
        )
    return data


async def lines(request: Request) -> AsyncIterator[Entries]:
    """The lines of an NDJSON body with their numbers, some at a time; blank ones are skipped.

    The start of one line is held, and of one that is too long only its size.
    """
    first, held, dropped = 1, bytearray(), 0
    async for part in request.stream():
        end = part.rfind(b"\n")
        if end >= 0:
            held += part[:end]
            yield parse_lines(bytes(held), first, before=dropped)
            first += held.count(b"\n") + 1
            held, dropped, part = bytearray(), 0, part[end + 1 :]
        held += part
        if len(held) > MAX_LINE_BYTES:
            dropped += len(held)
            held = bytearray()
    if held or dropped:
        yield parse_lines(bytes(held), first, before=dropped)


async def pieces(request: Request) -> AsyncIterator[Entries]:
    """The entries of an NDJSON body in groups that are cut at the same places every time."""
    memory = BodyMemory.of(request)
    held = Entries.of(())
    async for found in lines(request):
        memory.take(request, found.size)
        held = Entries.joined([held, found])
        while end := _piece(held):
            yield held[:end]
            held = held[end:]
            memory.give(request.scope)
            memory.take(request, held.size)
    if held:
        yield held


def _piece(entries: Entries) -> int:
    """How many of them make a whole piece; 0 if they do not."""
    if len(entries) < MAX_PIECE_LINES and entries.size < PIECE_BYTES:
        return 0
    sizes = enumerate(accumulate(map(len, entries.texts)), 1)
    return next(end for end, size in sizes if end == MAX_PIECE_LINES or size >= PIECE_BYTES)


async def one_piece(request: Request, *, pieces: int = 1) -> Entries:
    """The entries of a body that may hold one piece, or so many, and no more."""
    memory = BodyMemory.of(request)
    parts: list[Entries] = []
    count, size, most = 0, 0, pieces * MAX_PIECE_LINES
    async for found in lines(request):
        memory.take(request, found.size)
        parts.append(found)
        count, size = count + len(found), size + found.size
        if count > most or size > 2 * PIECE_BYTES:
            raise TooLarge(
                f"one call takes at most {most:,} lines and {2 * PIECE_BYTES:,} bytes",
                field="piece",
                hint="send the rest in the next call",
            )
    return Entries.joined(parts)


def _too_large(limit: int) -> TooLarge:
    shown = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit:,} bytes"
    return TooLarge(f"the body is larger than {shown}", field="body")
