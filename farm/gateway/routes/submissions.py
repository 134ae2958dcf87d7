"""Submissions over HTTP: a job whole, or opened, filled by pieces and closed."""

import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response

from farm import tracing
from farm.errors import InvalidInput, TooLarge
from farm.gateway import answers
from farm.gateway.bodies import (
    JSON_TYPES,
    NDJSON_TYPES,
    WrongType,
    content_type,
    one_piece,
    pieces,
    read_json,
)
from farm.gateway.dependencies import Dependencies, Deps, Writer, in_store
from farm.gateway.inline_pictures import keep_pictures
from farm.gateway.openapi import NDJSON_RENDERS, SUBMISSION
from farm.gateway.serializers import rejected_view
from farm.ingest.ingest import Feed, Submission
from farm.ingest.ndjson import Entries, Entry
from farm.job import MAX_CALL_PIECES, MAX_PIECE_LINES, OPTIONS, JobOptions, JobState, check_job_id
from farm.queue import JobStatus
from farm.spec import Form

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_WHOLE = re.compile(r"-?[0-9]{1,19}")
_FLAGS = {"open", "on_error"}  # query parameters of POST /v1/jobs that are not options of the job


@router.post(
    "",
    status_code=201,
    responses={
        200: {
            "model": answers.Submitted | answers.Opened,
            "description": "The idempotency key has made this job before",
        }
    },
    openapi_extra=SUBMISSION,
)
async def submit(
    request: Request, response: Response, deps: Deps, tenant: Writer
) -> answers.Submitted | answers.Opened:
    """Submit a job: JSON ``{"renders": [...], ...options}``, or one render a line as NDJSON with
    the options in the query. With ``?on_error=stop``, one refused render refuses all. With
    ``?open`` and no renders, the job is sent in pieces."""
    kind = content_type(request)
    answer: answers.Submitted | answers.Opened
    if _in_pieces(request):
        answer = await _open(request, deps, tenant, kind)
    elif kind in NDJSON_TYPES:
        answer = await _submit_lines(request, deps, tenant)
    else:
        answer = await _submit_json(request, deps, tenant, kind)
    if not answer.created:
        response.status_code = 200
    return answer


async def _submit_json(
    request: Request, deps: Dependencies, tenant: str, kind: str
) -> answers.Submitted:
    if kind not in JSON_TYPES:
        raise WrongType(
            f"the body is {kind[:80]!r}" if kind else "the body's type is missing",
            field="Content-Type",
            hint="send application/json or application/x-ndjson",
        )
    body = await read_json(request, deps.settings.max_json_bytes)
    renders = body.pop("renders", None)
    if renders is None and "prompt" in body:
        raise InvalidInput(
            "is missing", field="renders", hint='put the render in a list: {"renders": [{...}]}'
        )
    if not isinstance(renders, list):
        raise InvalidInput("must be a list of renders", field="renders")
    if not renders:
        raise InvalidInput("is empty; give at least one render", field="renders")
    if len(renders) > MAX_PIECE_LINES:
        raise TooLarge(
            f"has {len(renders):,} renders; one JSON body may have {MAX_PIECE_LINES:,}",
            field="renders",
            hint="send them as NDJSON, a render a line",
        )
    options = JobOptions.parse(body | _query_options(request))
    entries = await keep_pictures(deps.assets, tenant, Entries.of(map(Entry, renders)))
    await run_sync(deps.quotas.take_submission, tenant, options.idempotency_key, entries)
    stop = _all_or_none(request)
    submission = await in_store(deps, deps.ingest.submit, tenant, options, entries, stop)
    return await _submitted(deps, tenant, submission)


async def _submit_lines(request: Request, deps: Dependencies, tenant: str) -> answers.Submitted:
    options = JobOptions.parse(_query_options(request))
    stop = _all_or_none(request)
    groups = _kept(pieces(request), deps, tenant, options.idempotency_key)
    first = await anext(groups, None)
    if first is None:
        raise InvalidInput("the body has no renders", field="renders")
    second = await anext(groups, None)
    if second is None:
        submission = await in_store(deps, deps.ingest.submit, tenant, options, first, stop)
        return await _submitted(deps, tenant, submission)
    record, created = await in_store(deps, deps.ingest.open, tenant, options)
    state = (await run_sync(deps.queue.status, record.job, tenant)).state
    feed = Feed(deps.ingest, record, stop, again=state is not JobState.OPEN)
    try:
        await in_store(deps, feed.add, first)
        await in_store(deps, feed.add, second)
        async for group in groups:
            await in_store(deps, feed.add, group)
        await in_store(deps, feed.close)
    except BaseException:
        if created:
            await in_store(deps, deps.ingest.abandon, record)
        raise
    submission = Submission(record.job, created, feed.renders, feed.pictures, tuple(feed.rejected))
    return await _submitted(deps, tenant, submission)


async def _kept(
    groups: AsyncIterator[Entries], deps: Dependencies, tenant: str, key: str | None
) -> AsyncIterator[Entries]:
    async for group in groups:
        await run_sync(deps.quotas.take_submission, tenant, key, group)
        yield await keep_pictures(deps.assets, tenant, group)


async def _open(request: Request, deps: Dependencies, tenant: str, kind: str) -> answers.Opened:
    options: dict[str, Any] = {}
    if kind in JSON_TYPES:
        options = await read_json(request, deps.settings.max_json_bytes)
    elif kind:
        raise WrongType("options come as application/json", field="Content-Type")
    if "on_error" in request.query_params:
        raise InvalidInput(
            "is for a job that comes in one call", field="on_error", hint="leave it out with open"
        )
    checked = JobOptions.parse(options | _query_options(request))
    record, created = await in_store(deps, deps.ingest.open, tenant, checked)
    if created:
        deps.metrics.jobs.labels("open").inc()
        tracing.submitted("open", record.job)
    state = (await run_sync(deps.queue.status, record.job, tenant)).state
    return answers.Opened(id=record.job, state=state, created=created, seed=record.seed)


async def _submitted(deps: Dependencies, tenant: str, submission: Submission) -> answers.Submitted:
    status = await run_sync(deps.queue.status, submission.job, tenant)
    if submission.created:
        deps.metrics.jobs.labels("whole").inc()
        deps.metrics.pictures.inc(submission.pictures)
        deps.metrics.rejected.inc(status.rejected)
        tracing.submitted("submit", submission.job, pictures=submission.pictures)
    return answers.Submitted(
        **dict(status),
        created=submission.created,
        accepted=submission.renders,
        errors=rejected_view(submission.rejected),
    )


@router.put("/{job}/chunks/{piece}", openapi_extra=NDJSON_RENDERS)
async def put_piece(
    job: str,
    piece: int,
    request: Request,
    deps: Deps,
    tenant: Writer,
    first: Annotated[int, Query(ge=0, lt=10**9)],
) -> answers.PieceTaken:
    """One piece of an open job, as NDJSON; sending it again changes nothing. ``first`` is
    the index of its first render in the job. Several pieces of 2,000 lines may come in one call,
    the last of them shorter; they have consecutive numbers, and ``piece`` is that of the first."""
    if not 0 <= piece < 50_000:
        raise InvalidInput("must be from 0 to 49,999", field="piece")
    if content_type(request) not in NDJSON_TYPES:
        raise WrongType("pieces come as application/x-ndjson", field="Content-Type")
    started = time.monotonic()
    record = await in_store(deps, deps.ingest.record, check_job_id(job), tenant)
    lines = await one_piece(request, pieces=MAX_CALL_PIECES)
    parts = lines.pieces()
    await run_sync(deps.quotas.take_pieces, tenant, job, piece, parts)
    kept = [await keep_pictures(deps.assets, tenant, part) for part in parts]
    taken = await in_store(deps, deps.ingest.append, record, piece, first, kept)
    pictures = sum(one.pictures for one in taken)
    rejected = [one for part in taken for one in part.rejected]
    tracing.happened("piece", job, time.monotonic() - started, pictures=pictures)
    fresh = [one for one in taken if not one.again]
    deps.metrics.pictures.inc(sum(one.pictures for one in fresh))
    deps.metrics.rejected.inc(sum(len(one.rejected) for one in fresh))
    return answers.PieceTaken(
        piece=piece,
        pieces=len(taken),
        accepted=sum(one.renders for one in taken),
        pictures=pictures,
        rejected=len(rejected),
        errors=[answers.Rejected(**one.to_dict()) for one in rejected],
    )


@router.post("/{job}/close")
async def close(
    job: str, deps: Deps, tenant: Writer, pieces: Annotated[int, Query(ge=0)]
) -> JobStatus:
    """Say that all pieces have been sent; ``pieces`` is their number."""
    record = await in_store(deps, deps.ingest.record, check_job_id(job), tenant)
    await in_store(deps, deps.ingest.close, record, pieces)
    return await run_sync(deps.queue.status, job, tenant)


def _in_pieces(request: Request) -> bool:
    asked = request.query_params.get("open", "false")
    if asked not in ("", "1", "true", "0", "false"):
        raise InvalidInput(f"must be true or false; got {asked[:40]!r}", field="open")
    return asked in ("", "1", "true")


def _all_or_none(request: Request) -> bool:
    asked = request.query_params.get("on_error", "skip")
    if asked not in ("skip", "stop"):
        raise InvalidInput(f"must be skip or stop; got {asked[:40]!r}", field="on_error")
    return asked == "stop"


def _query_options(request: Request) -> dict[str, Any]:
    """The query's values as the options' own types; unknown ones are refused later, with the
    options."""
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _FLAGS:
            continue
        if name in found:
            raise InvalidInput("is given twice in the query", field=name)
        counted = name in OPTIONS and OPTIONS[name].form is Form.INTEGER
        found[name] = int(value) if counted and _WHOLE.fullmatch(value) else value
    header = request.headers.get("idempotency-key")
    if header is not None:
        found["idempotency_key"] = header
    return found
