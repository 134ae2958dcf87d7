"""Request bodies, with a limit on everything that a client could make large."""

from collections.abc import AsyncIterator
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request

from farm import strict_json
from farm.errors import InvalidInput, TooLarge
from farm.gateway.body_memory import BodyMemory
from farm.ingest.ndjson import Entry, long_line, parse_line
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


async def lines(request: Request) -> AsyncIterator[Entry]:
    """The lines of an NDJSON body with their numbers; blank ones are skipped.

    Only one line is held at a time; of one that is too long, only its size.
    """
    number, held, skipped = 0, bytearray(), 0
    async for part in request.stream():
        start = 0
        while (end := part.find(b"\n", start)) >= 0:
            number += 1
            held += part[start:end]
            start = end + 1
            if skipped or len(held) > MAX_LINE_BYTES:
                yield long_line(number, skipped + len(held))
            elif entry := _entry(held, number):
                yield entry
            held, skipped = bytearray(), 0
        held += part[start:]
        if len(held) > MAX_LINE_BYTES:
            skipped += len(held)
            held = bytearray()
    number += 1
    if skipped or len(held) > MAX_LINE_BYTES:
        yield long_line(number, skipped + len(held))
    elif entry := _entry(held, number):
        yield entry


def _entry(line: bytearray, number: int) -> Entry | None:
    if number == 1 and line.startswith(b"\xef\xbb\xbf"):
        del line[:3]
    return parse_line(bytes(line), number) if line.strip() else None


async def pieces(request: Request) -> AsyncIterator[list[Entry]]:
    """The entries of an NDJSON body in groups that are cut at the same places every time."""
    memory = BodyMemory.of(request)
    group: list[Entry] = []
    size = 0
    async for entry in lines(request):
        memory.take(request, len(entry.text))
        group.append(entry)
        size += len(entry.text)
        if len(group) == MAX_PIECE_LINES or size >= PIECE_BYTES:
            yield group
            memory.give(request.scope)
            group, size = [], 0
    if group:
        yield group


async def one_piece(request: Request) -> list[Entry]:
    """The entries of a body that may hold one piece and no more."""
    memory = BodyMemory.of(request)
    group: list[Entry] = []
    size = 0
    async for entry in lines(request):
        memory.take(request, len(entry.text))
        group.append(entry)
        size += len(entry.text)
        if len(group) > MAX_PIECE_LINES or size > 2 * PIECE_BYTES:
            raise TooLarge(
                f"a piece has at most {MAX_PIECE_LINES:,} lines and {2 * PIECE_BYTES:,} bytes",
                field="piece",
                hint="send the rest as the next piece",
            )
    return group


def _too_large(limit: int) -> TooLarge:
    shown = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit:,} bytes"
    return TooLarge(f"the body is larger than {shown}", field="body")
