"""Renders on their way to the farm: in one call, or piece by piece."""

import asyncio
import contextlib
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from farm.errors import AllRejected, Conflict, FarmError, InvalidInput, RejectedRender, TooLarge
from farm.job import MAX_PIECE_LINES, JobState
from farm_client.connection import Connection, path_of
from farm_client.models import Estimate, LaneEstimate
from farm_client.ndjson import (
    Line,
    completed,
    never_waits,
    pieces,
    read_lines,
    refused,
    together,
    with_data,
)
from farm_client.parameters import OnError, check_on_error, check_options, split_options
from farm_client.sweep import Sweep
from farm_client.uploads import Uploads

NDJSON = "application/x-ndjson"
# Lines of a call: one piece, and for renders so large or so different that each makes its own task.
SMALLER = (MAX_PIECE_LINES, 200)
MAX_SAME = 100  # submissions of the same content, of which the last can be gone on with
MAX_KEPT = 10_000  # refused lines; of more, only their number is known


Resume = Callable[[str, bool, str], None]  # the job, whether it was there, its idempotency key


class Taken:
    """What a submission made of its renders."""

    def __init__(self) -> None:
        self.id = ""
        self.created: bool | None = None
        self.accepted = 0
        self.rejected: list[RejectedRender] = []
        self.rejected_count = 0

    def add(self, told: dict[str, Any], lines: Sequence[Line], first: int) -> None:
        self.accepted += told["accepted"]
        self.rejected_count += told["rejected"]
        if len(self.rejected) < MAX_KEPT:
            rejected = map(RejectedRender.from_dict, told["errors"])
            self.rejected += at_their_lines(rejected, lines, first)

    def facts(self) -> dict[str, Any]:
        return {
            "rejected": tuple(self.rejected),
            "rejected_count": self.rejected_count,
            "accepted": self.accepted,
            "created": self.created,
        }


class Submitter:
    """Every submission carries an idempotency key, so that a repeated call makes no second job.

    Pieces of a source that never waits for its next line go together; of a pipe or a generator each
    goes as soon as it is there.
    """

    def __init__(self, connection: Connection, uploads: Uploads) -> None:
        self._connection = connection
        self._uploads = uploads

    async def submit(self, prompt: str | Sequence[str] | None, given: dict[str, Any]) -> Taken:
        options, parameters = split_options(given)
        parameters = {name: value for name, value in parameters.items() if value is not None}
        parameters = await self._uploads.replace_files(parameters, None)
        check_values(parameters)
        prompts = _prompts(prompt)
        renders: list[dict[str, Any]] = [
            parameters if text is None else {"prompt": text, **parameters} for text in prompts
        ]
        if len(renders) > 1:
            return await self.submit_many(renders, options)
        taken = Taken()
        key = options.pop("idempotency_key", None) or make_key()
        told = await self._connection.call(
            "POST",
            "/v1/jobs",
            json_body={"renders": renders, **options},
            headers={"Idempotency-Key": key},
        )
        taken.id, taken.created, taken.accepted = told["id"], told["created"], told["accepted"]
        return taken

    async def submit_many(self, requests: Iterable[Any], given: dict[str, Any]) -> Taken:
        on_error = check_on_error(given.pop("on_error", None))
        resume = given.pop("resume", None)
        steady = given.pop("steady", False) or never_waits(requests)
        groups, options = await self._groups(requests, given)
        first = next(groups, None)
        if first is None:
            raise InvalidInput("has no renders", field="requests")
        second = next(groups, None)
        key = options.pop("idempotency_key", None)
        taken = Taken()
        if second is None:
            key = key or make_key()
            await self._send_whole(taken, await self._ready(first), options, key, on_error)
        else:
            opened = await self._open(options, key, resume, first + second)
            rest = chain((first, second), groups)
            sent = self._send_pieces(taken, together(rest) if steady else rest, opened, on_error)
            if key is None and resume is None:
                sent = self._whole_or_none(sent, opened)
            await sent
        return taken

    async def estimate(self, requests: Iterable[Any], given: dict[str, Any]) -> Estimate:
        """What a submission would come to; what belongs to a submission alone is not looked at."""
        check_on_error(given.pop("on_error", None))
        for name in ("resume", "steady"):
            given.pop(name, None)
        groups, options = await self._groups(requests, given)
        query: dict[str, Any] = {
            k: v for k, v in options.items() if k in ("sink", "format", "shard_size")
        }
        taken, lanes, sent = Taken(), dict[str, LaneEstimate](), 0
        pictures = size = workers = 0
        for group in groups:
            lines = await self._ready(group)
            told = await self._connection.call(
                "POST",
                "/v1/estimate",
                query={**query, "first": sent},
                content=_ndjson(lines),
                content_type=NDJSON,
                seconds=300.0,
            )
            taken.add(told, lines, sent)
            sent += len(lines)
            pictures, size = pictures + told["pictures"], size + told["bytes"]
            workers = told["workers"]
            for name, facts in told["lanes"].items():
                lane = LaneEstimate.model_validate(facts)
                lanes[name] = lanes[name] + lane if name in lanes else lane
        return Estimate(
            taken.accepted, tuple(taken.rejected), taken.rejected_count, pictures, size, lanes,
            workers,
        )  # fmt: skip

    async def _groups(
        self, requests: Iterable[Any], given: dict[str, Any]
    ) -> tuple[Iterator[list[Line]], dict[str, Any]]:
        """The renders in pieces, and the job's options."""
        defaults = {k: v for k, v in (given.pop("defaults", None) or {}).items() if v is not None}
        seed = given.pop("seed", None)
        sweep = Sweep.parse(given.pop("matrix", None), given.pop("zip", None))
        options = check_options(given)
        if seed is not None:
            options |= check_options({"seed": seed})
        defaults = await self._uploads.replace_files(defaults, None)
        return pieces(completed(read_lines(requests), defaults, sweep)), options

    async def _send_whole(
        self,
        taken: Taken,
        lines: list[Line],
        options: dict[str, Any],
        key: str,
        on_error: OnError,
    ) -> None:
        try:
            told = await self._connection.call(
                "POST",
                "/v1/jobs",
                query={**options, "on_error": on_error},
                content=_ndjson(lines),
                content_type=NDJSON,
                headers={"Idempotency-Key": key},
                seconds=300.0,
            )
        except AllRejected as error:
            raise none_taken(at_their_lines(error.rejected, lines, 0), len(lines)) from None
        taken.id, taken.created = told["id"], told["created"]
        taken.add(told, lines, 0)

    async def _open(
        self, options: dict[str, Any], key: str | None, resume: Resume | None, start: list[Line]
    ) -> dict[str, Any]:
        """The job that pieces come into. To resume is to find the one that an earlier submission
        with the same start has left open; what such a submission has closed is not touched."""
        own = content_key(options, start) if resume else key or make_key()
        more = [*(f"{own}-{again}" for again in range(1, MAX_SAME)), make_key()] if resume else []
        for used in (own, *more):
            told: dict[str, Any] = await self._connection.call(
                "POST",
                "/v1/jobs",
                query={"open": ""},
                json_body=options,
                headers={"Idempotency-Key": used},
            )
            if not resume or told["created"] or told["state"] == JobState.OPEN:
                break
        if resume:
            resume(told["id"], not told["created"], used)
        return told

    async def _whole_or_none(self, sent: Awaitable[None], opened: dict[str, Any]) -> None:
        """What no later call can continue is cancelled, when the source breaks or the user stops
        it; a farm that is away would not hear of it."""
        try:
            await sent
        except FarmError:
            raise
        except (Exception, KeyboardInterrupt, asyncio.CancelledError):
            with contextlib.suppress(FarmError):
                await self._connection.call("POST", f"{path_of('v1', 'jobs', opened['id'])}/cancel")
            raise

    async def _send_pieces(
        self,
        taken: Taken,
        groups: Iterator[list[Line]],
        opened: dict[str, Any],
        on_error: OnError,
    ) -> None:
        taken.id, taken.created = opened["id"], opened["created"]
        job = path_of("v1", "jobs", taken.id)
        try:
            count = await self._feed(taken, groups, on_error)
        except InvalidInput:  # the source itself is broken, so the rest will never come
            if taken.created:
                await self._connection.call("POST", f"{job}/cancel")
            raise
        except Conflict as error:
            if not taken.created:
                error.hint = f"to begin with another job: farm cancel {taken.id}"
            raise
        if not taken.accepted:
            if taken.created:  # else an earlier call may have brought something in
                await self._connection.call("POST", f"{job}/cancel")
            raise none_taken(taken.rejected, taken.rejected_count)
        await self._connection.call("POST", f"{job}/close", query={"pieces": count})

    async def _feed(self, taken: Taken, groups: Iterator[list[Line]], on_error: OnError) -> int:
        """Send everything, and count the pieces."""
        number = sent = 0
        for group in groups:
            lines = await self._ready(group)
            number += await self._deliver(taken, number, sent, lines)
            sent += len(lines)
            if on_error == "stop" and taken.rejected:
                raise none_taken(taken.rejected, sent)
        return number

    async def _deliver(self, taken: Taken, number: int, sent: int, lines: list[Line]) -> int:
        """Send lines in one call, or in smaller ones if the farm asks for that, and count the
        pieces."""
        try:
            taken.add(await self._put(taken.id, number, sent, lines), lines, sent)
            return -(-len(lines) // MAX_PIECE_LINES)
        except TooLarge as error:
            step = next((size for size in SMALLER if size < len(lines)), 0)
            if error.field != "piece" or not step:
                raise
        count = 0
        for start in range(0, len(lines), step):
            part = lines[start : start + step]
            count += await self._deliver(taken, number + count, sent + start, part)
        return count

    async def _put(self, job: str, number: int, first: int, lines: Sequence[Line]) -> Any:
        return await self._connection.call(
            "PUT",
            path_of("v1", "jobs", job, "chunks", number),
            query={"first": first},
            content=_ndjson(lines),
            content_type=NDJSON,
            seconds=300.0,
        )

    async def _ready(self, lines: Sequence[Line]) -> list[Line]:
        """Lines with their files uploaded."""
        if all(line.data is None for line in lines):
            return list(lines)
        ready = []
        for line in lines:
            if line.data is not None:
                try:
                    data = await self._uploads.replace_files(dict(line.data), line.base)
                    line = with_data(line, data)
                except FarmError as error:
                    if error.retryable or error.exit_code != 2:
                        raise
                    line = refused(line, error, line.place(error.field))
            ready.append(line)
        return ready


def _prompts(prompt: str | Sequence[str] | None) -> list[str | None]:
    prompts: list[str | None]
    prompts = [prompt] if prompt is None or isinstance(prompt, str) else [*prompt]
    if isinstance(prompt, Mapping) or any(isinstance(one, Mapping) for one in prompts):
        raise InvalidInput(
            "is text, or a list of texts",
            field="prompt",
            hint="submit_many takes renders as dicts; submit has an argument for each parameter",
        )
    return prompts


def none_taken(rejected: Sequence[RejectedRender], count: int) -> AllRejected:
    """The error for a submission of which nothing was accepted.

    Args:
        rejected: what was refused; the first ones, if there are many.
        count: of all renders, including good ones that were not accepted because of the others.
    """
    return AllRejected(
        rejected,
        f"none of the {count:,} renders was accepted",
        field="renders",
        hint=f"the first: {rejected[0]}" if rejected else None,
    )


def at_their_lines(
    rejected: Iterable[RejectedRender], lines: Sequence[Line], first: int
) -> list[RejectedRender]:
    """What the farm refused, with its place in the input.

    Args:
        first: index in the job of the first of ``lines``.
    """
    found = []
    for one in rejected:
        line = lines[one.render - first]
        error = line.error or one.error
        if line.error is not None:
            column = line.error.column or 1
        elif line.columns is None and (one.error.column or 1) > max(line.defaults, 1):
            column = (one.error.column or 1) - max(line.defaults - 1, 0)
        else:
            column = line.place(error.field)
        found.append(RejectedRender(one.render, error.at(line.number, column), line.file))
    return found


def check_values(parameters: Mapping[str, Any]) -> None:
    """Name what JSON cannot express; the farm would only see a broken body."""
    for field, value in parameters.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{value!r}"[:60] + f" cannot be sent: {error}", field=field
            ) from None


def content_key(options: Mapping[str, Any], start: Iterable[Line]) -> str:
    """Of a submission with these options that begins with these lines."""
    content = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    for line in start:
        data = json.dumps(line.data, sort_keys=True, default=str)
        content.update(f"{line.text}\n{data}\n".encode())
    return f"content-{content.hexdigest()}"


def make_key() -> str:
    return f"auto-{secrets.token_hex(16)}"


def _ndjson(lines: Sequence[Line]) -> bytes:
    return "\n".join(line.text for line in lines).encode() + b"\n"
