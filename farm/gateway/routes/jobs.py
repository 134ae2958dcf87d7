"""Jobs over HTTP."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from farm.errors import InvalidInput, TooLarge
from farm.formats.manifest import merge, read_part
from farm.gateway.bodies import (
    JSON_TYPES,
    NDJSON_TYPES,
    WrongType,
    content_type,
    one_piece,
    pieces,
    read_json,
)
from farm.gateway.dependencies import Dependencies, Deps, Reader, Writer
from farm.gateway.events import updates
from farm.gateway.inline_pictures import keep_pictures
from farm.gateway.serializers import image_view, lost_views, rejected_view, status_view, why_view
from farm.ingest.ingest import Feed, Submission
from farm.ingest.ndjson import Entry
from farm.job import MAX_PIECE_LINES, TERMINAL_JOBS, Chunk, JobOptions, check_job_id
from farm.queue import MAX_REASON, MAX_ROWS, JobStatus, notice
from farm.queue.why import WaitsFor
from farm.sinks.parts import pictures_to_make, task_rows
from farm.sinks.protocol import Sink
from farm.store import keys
from farm.verify.repair import Verifier, report

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_PAGE = 1000
FINISHED_PAGE = 16  # tasks asked for at a time
LOST_PAGE = 4
_FLAGS = {"open"}  # query parameters of POST /v1/jobs that are no options of the job
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"renders": [{"prompt": "a red bicycle", "seed": 7}], "name": "bikes"},
            },
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "example": '{"prompt": "a red bicycle"}\n{"prompt": "a blue boat"}\n',
            },
        },
    }
}
_LINES = {"requestBody": {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


@router.post("", status_code=201, openapi_extra=_BODY)
async def submit(request: Request, deps: Deps, tenant: Writer) -> Response:
    """Submit a job: JSON ``{"renders": [...], ...options}``, or one render a line as NDJSON with
    the options in the query. With ``?open`` and no renders, the job comes in by pieces."""
    kind = content_type(request)
    if "open" in request.query_params:
        return await _open(request, deps, tenant, kind)
    if kind in NDJSON_TYPES:
        return await _submit_lines(request, deps, tenant)
    if kind not in JSON_TYPES:
        raise WrongType(
            f"the body is {kind[:80]!r}" if kind else "the body's type is not said",
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
    entries = await keep_pictures(deps.assets, tenant, [Entry(data) for data in renders])
    await run_sync(deps.quotas.take_pictures, tenant, entries)
    submission = await run_sync(deps.ingest.submit, tenant, options, entries)
    return await _submitted(deps, tenant, submission, len(submission.rejected))


async def _submit_lines(request: Request, deps: Dependencies, tenant: str) -> Response:
    options = JobOptions.parse(_query_options(request))
    groups = _kept(pieces(request), deps, tenant)
    first = await anext(groups, None)
    if first is None:
        raise InvalidInput("there is no render in the body", field="renders")
    second = await anext(groups, None)
    if second is None:
        submission = await run_sync(deps.ingest.submit, tenant, options, first)
        return await _submitted(deps, tenant, submission, len(submission.rejected))
    record, created = await run_sync(deps.ingest.open, tenant, options)
    feed = Feed(deps.ingest, record)
    try:
        await run_sync(feed.add, first)
        await run_sync(feed.add, second)
        async for group in groups:
            await run_sync(feed.add, group)
        await run_sync(feed.close)
    except BaseException:
        if created:
            await run_sync(deps.ingest.abandon, record)
        raise
    submission = Submission(record.job, created, feed.renders, feed.pictures, tuple(feed.rejected))
    return await _submitted(deps, tenant, submission, feed.rejected_count)


async def _kept(
    groups: AsyncIterator[list[Entry]], deps: Dependencies, tenant: str
) -> AsyncIterator[list[Entry]]:
    async for group in groups:
        await run_sync(deps.quotas.take_pictures, tenant, group)
        yield await keep_pictures(deps.assets, tenant, group)


async def _open(request: Request, deps: Dependencies, tenant: str, kind: str) -> Response:
    options: dict[str, Any] = {}
    if kind in JSON_TYPES:
        options = await read_json(request, deps.settings.max_json_bytes)
    elif kind:
        raise WrongType("options come as application/json", field="Content-Type")
    checked = JobOptions.parse(options | _query_options(request))
    record, created = await run_sync(deps.ingest.open, tenant, checked)
    deps.metrics.jobs.labels("open").inc()
    state = (await run_sync(deps.queue.status, record.job, tenant)).state
    return JSONResponse(
        {"id": record.job, "state": str(state), "created": created, "seed": record.seed},
        201 if created else 200,
    )


async def _submitted(
    deps: Dependencies, tenant: str, submission: Submission, rejected: int
) -> Response:
    status = await run_sync(deps.queue.status, submission.job, tenant)
    if submission.created:
        deps.metrics.jobs.labels("whole").inc()
        deps.metrics.pictures.inc(submission.pictures)
        deps.metrics.rejected.inc(rejected)
    content = {
        **status_view(status),
        "created": submission.created,
        "accepted": submission.renders,
        "rejected": rejected,
        "errors": rejected_view(submission.rejected),
    }
    return JSONResponse(content, 201 if submission.created else 200)


@router.put("/{job}/chunks/{piece}", openapi_extra=_LINES)
async def put_piece(
    job: str,
    piece: int,
    request: Request,
    deps: Deps,
    tenant: Writer,
    first: Annotated[int, Query(ge=0, lt=10**9)],
) -> Response:
    """One piece of an open job, as NDJSON; the same piece again changes nothing. ``first`` is the
    index of its first render in the job."""
    if not 0 <= piece < 50_000:
        raise InvalidInput("must be from 0 to 49,999", field="piece")
    if content_type(request) not in NDJSON_TYPES:
        raise WrongType("pieces come as application/x-ndjson", field="Content-Type")
    record = await run_sync(deps.ingest.record, check_job_id(job), tenant)
    lines = await one_piece(request)
    await run_sync(deps.quotas.take_pictures, tenant, lines)
    entries = await keep_pictures(deps.assets, tenant, lines)
    taken = await run_sync(deps.ingest.append, record, piece, first, entries)
    deps.metrics.pictures.inc(taken.pictures)
    deps.metrics.rejected.inc(len(taken.rejected))
    return JSONResponse(
        {
            "piece": piece,
            "accepted": taken.renders,
            "pictures": taken.pictures,
            "rejected": len(taken.rejected),
            "errors": [one.to_dict() for one in taken.rejected],
        }
    )


@router.post("/{job}/close")
async def close(
    job: str, deps: Deps, tenant: Writer, pieces: Annotated[int, Query(ge=0)]
) -> dict[str, Any]:
    """No more pieces come; ``pieces`` says how many there are."""
    record = await run_sync(deps.ingest.record, check_job_id(job), tenant)
    await run_sync(deps.ingest.close, record, pieces)
    return status_view(await run_sync(deps.queue.status, job, tenant))


@router.get("")
def jobs(
    deps: Deps,
    tenant: Reader,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: str | None = None,
) -> dict[str, Any]:
    """The caller's jobs, newest first; ``next`` is the cursor for ``before``."""
    if before is not None:
        check_job_id(before)
    found: list[JobStatus] = []
    while len(found) < limit:
        wanted = min(limit - len(found), MAX_ROWS)  # what the queue gives at a time
        page = deps.queue.jobs(tenant, wanted, found[-1].id if found else before)
        found += page
        if len(page) < wanted:
            break
    return {
        "jobs": [status_view(status) for status in found],
        "next": found[-1].id if len(found) == limit else None,
    }


@router.get("/{job}")
def status(job: str, deps: Deps, tenant: Reader) -> dict[str, Any]:
    """The job's state and how many of its pictures are done."""
    return status_view(deps.queue.status(check_job_id(job), tenant))


@router.get("/{job}/events", response_class=StreamingResponse)
async def events(job: str, deps: Deps, tenant: Reader) -> Response:
    """Server-sent events: the status at once, then whenever it changes, then ``end``."""
    await run_sync(deps.queue.status, check_job_id(job), tenant)
    return StreamingResponse(
        updates(deps.events, deps.queue, job, tenant),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/{job}/images")
def images(
    job: str,
    deps: Deps,
    tenant: Reader,
    after: Annotated[str, Query(pattern=r"^\d{1,9}(\.\d{1,9})?$")] = "0",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> dict[str, Any]:
    """Finished pictures in the order they were finished, with addresses that work for a while.

    Of a picture that was made again after a retry, the newest good result is listed.
    ``next`` is the cursor for ``after``; whole tasks are listed, so that a page can be longer than
    ``limit``. All are listed when ``state`` is final and ``images`` is empty.
    """
    status = deps.queue.status(check_job_id(job), tenant)  # before, so that final means all
    sink = deps.sinks.get(status.sink)
    done, _, lost = after.partition(".")
    listed, done_now = _finished(deps, status, sink, int(done), limit)
    lost_now = int(lost or 0)
    for failure in deps.queue.failures(job, lost_now, LOST_PAGE) if len(listed) < limit else ():
        chunk = Chunk.model_validate_json(deps.store.get(keys.chunk(job, failure.number)))
        lost_pictures = pictures_to_make(deps.store, sink, chunk, failure.generation)
        listed += lost_views(chunk, failure, lost_pictures)
        lost_now = failure.position
    return {"images": listed, "next": f"{done_now}.{lost_now}", "state": str(status.state)}


def _finished(
    deps: Dependencies, status: JobStatus, sink: Sink, after: int, limit: int
) -> tuple[list[dict[str, Any]], int]:
    job = status.id
    listed: list[dict[str, Any]] = []
    while len(listed) < limit:
        # Small tasks come several to a page; a task's part may hold a thousand pictures.
        finished = deps.queue.finished(job, after, FINISHED_PAGE)
        for task in finished:
            after = task.position
            if task.receipt.part:
                rows = read_part(deps.store.get(task.receipt.part))
                later = range(task.generation + 1, status.generation + 1)
                counts = merge([*rows, *task_rows(deps.store, job, task.number, later)])
                listed += [
                    image_view(row, sink, deps.links) for row in rows if counts[row.picture] == row
                ]
            if len(listed) >= limit:
                break
        if len(finished) < FINISHED_PAGE:
            break
    return listed, after


@router.post("/{job}/cancel")
def cancel(job: str, deps: Deps, tenant: Writer) -> dict[str, Any]:
    """End a job; what is running stops at the next step. A job that has ended stays as it is."""
    deps.ingest.cancel(check_job_id(job), tenant)
    return status_view(deps.queue.status(job, tenant))


@router.post("/{job}/pause")
def pause(job: str, deps: Deps, tenant: Writer) -> dict[str, Any]:
    """Start nothing more of a job until it is resumed; what runs goes on."""
    deps.queue.pause(check_job_id(job), tenant)
    return status_view(deps.queue.status(job, tenant))


@router.post("/{job}/resume")
def resume(job: str, deps: Deps, tenant: Writer) -> dict[str, Any]:
    """Go on with a paused job."""
    deps.queue.resume(check_job_id(job), tenant)
    return status_view(deps.queue.status(job, tenant))


@router.post("/{job}/retry")
def retry(
    job: str,
    deps: Deps,
    tenant: Writer,
    reason: Annotated[str | None, Query(min_length=1, max_length=MAX_REASON)] = None,
) -> dict[str, Any]:
    """Make the failed pictures of a job that has ended again, as a new generation; what is
    published stays as it is.

    With a reason, only of the tasks that failed for it: `row`, pictures failed of themselves;
    `crash`, they crashed their worker; `infra`, their worker was lost too often; or a part of the
    reason that the task's failure tells.
    """
    deps.queue.retry(check_job_id(job), tenant, reason)
    return status_view(deps.queue.status(job, tenant))


@router.get("/{job}/why")
def why(job: str, deps: Deps, tenant: Reader) -> dict[str, Any]:
    """What the job waits for, what goes before it in each of its lanes, and an estimate."""
    found = deps.queue.why(check_job_id(job), tenant)
    queue, store = deps.readiness.problems()
    if found.status.state in TERMINAL_JOBS:
        pass
    elif queue:
        found = found._replace(waits_for=WaitsFor.QUEUE, note=queue)
    elif store:
        found = found._replace(waits_for=WaitsFor.STORE, note=store)
    else:
        found = found._replace(note=notice.read(deps.queue))
    return why_view(found)


@router.get("/{job}/verify", response_class=StreamingResponse)
def verify(job: str, deps: Deps, tenant: Reader) -> Response:
    """Compare the manifest, the queue and the store of a job that has ended: NDJSON, a line
    ``difference`` for each, then one ``verified``."""
    return _verify(deps, check_job_id(job), tenant, repair=False)


@router.post("/{job}/verify", response_class=StreamingResponse)
def repair(job: str, deps: Deps, tenant: Writer) -> Response:
    """The same, and then repair what can be: orphans go, and what is lost is made again."""
    return _verify(deps, check_job_id(job), tenant, repair=True)


def _verify(deps: Dependencies, job: str, tenant: str, *, repair: bool) -> Response:
    verifier = Verifier(deps.queue, deps.store, deps.sinks, job, tenant)
    lines = report(verifier, repair=repair)
    return StreamingResponse(lines, media_type="application/x-ndjson")


def _query_options(request: Request) -> dict[str, Any]:
    """The query's values as the options' own types; unknown ones are left for the options to
    refuse."""
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in _FLAGS:
            continue
        if name in found:
            raise InvalidInput("stands twice in the query", field=name)
        whole = name in ("seed", "max_failed") and value.lstrip("-").isdigit() and len(value) < 20
        found[name] = int(value) if whole else value
    header = request.headers.get("idempotency-key")
    if header is not None:
        found["idempotency_key"] = header
    return found
