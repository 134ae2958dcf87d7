"""Jobs over HTTP: listed, followed, stopped, retried and verified."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from farm.formats.manifest import ManifestRow, merge, read_part
from farm.gateway import answers
from farm.gateway.dependencies import (
    READS_STORE,
    Dependencies,
    Deps,
    Reader,
    Writer,
    caller_of,
    reader,
    writer,
)
from farm.gateway.events import updates
from farm.gateway.json_lines import json_lines
from farm.gateway.openapi import SSE, ndjson
from farm.gateway.serializers import image_view, lost_views, preview_view, shard_views, why_view
from farm.ingest import removal
from farm.job import TERMINAL_JOBS, Chunk, JobState, check_job_id
from farm.queue import MAX_REASON, MAX_ROWS, JobStatus, notice, previews
from farm.queue.why import WaitsFor
from farm.sinks.early import early_parts, early_rows
from farm.sinks.parts import pictures_to_make, task_rows
from farm.sinks.protocol import Sink
from farm.store import keys
from farm.verify.repair import Verifier, report

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_VERIFIED = ndjson("difference", "verified")

MAX_PAGE = 1000
FINISHED_PAGE = 16  # tasks asked for at a time
LOST_PAGE = 4

# Of pictures: places among finished and among lost tasks, and the moment of the last early rows.
Cursor = Annotated[str, Query(pattern=r"^\d{1,9}(\.\d{1,9}(\.\d{1,15})?)?$")]


@router.get("")
def list_jobs(
    deps: Deps,
    tenant: Reader,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    before: str | None = None,
) -> answers.Jobs:
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
    return answers.Jobs(jobs=found, next=found[-1].id if len(found) == limit else None)


@router.get("/{job}")
def job_status(job: str, deps: Deps, tenant: Reader) -> JobStatus:
    """The job's state and how many of its pictures are done."""
    return deps.queue.status(check_job_id(job), tenant)


@router.get("/{job}/events", response_class=StreamingResponse, responses=SSE)
async def events(job: str, request: Request, deps: Deps, tenant: Reader) -> Response:
    """Server-sent events: the status at once, then whenever it changes, then ``end``."""
    await run_sync(deps.queue.status, check_job_id(job), tenant)
    return StreamingResponse(
        updates(deps.events, deps.queue, job, lambda: caller_of(request, "read").tenant),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get("/{job}/images", dependencies=READS_STORE)
def images(
    job: str,
    deps: Deps,
    tenant: Reader,
    after: Cursor = "0",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> answers.Images:
    """Finished pictures in the order they were finished, with addresses that expire.

    Of a picture that was made again after a retry, the newest good result is listed.
    ``next`` is the cursor for ``after``; whole tasks are listed, so a page can be longer than
    ``limit``. All are listed when ``state`` is final and ``images`` is empty. ``early`` has what
    tasks that still run have stored; it comes again in ``images`` when they end. ``shards`` has
    the objects around pictures that have a ``shard``, told by its name and their ``generation``: a
    range of such an object, from the ``offset`` of one picture on, holds those beside it, too. Its
    ``gateway_url`` is for callers who do not reach the store.
    """
    status = deps.queue.status(check_job_id(job), tenant)  # before, so that final means all
    sink = deps.sinks.get(status.sink)
    done, lost_now, seen = map(int, [*after.split("."), "0", "0"][:3])
    finished, done_now = _finished(deps, status, sink, done, limit)
    listed = [image_view(row, sink, deps.links) for row in finished]
    lost, lost_now = _lost(deps, status, sink, lost_now, limit - len(listed))
    listed += lost
    early, seen = _early(deps, status, sink, seen, limit)
    cursor = f"{done_now}.{lost_now}.{seen}"
    return answers.Images(
        images=listed,
        early=early,
        shards=shard_views(finished, sink, deps.links),
        next=cursor,
        state=status.state,
    )


def _lost(
    deps: Dependencies, status: JobStatus, sink: Sink, after: int, limit: int
) -> tuple[list[answers.Image], int]:
    """Pictures of tasks that ran out of attempts."""
    listed: list[answers.Image] = []
    while len(listed) < limit:
        failures = deps.queue.failures(status.id, after, LOST_PAGE)
        for failure in failures:
            after = failure.position
            chunk = Chunk.model_validate_json(deps.store.get(keys.chunk(status.id, failure.number)))
            lost = pictures_to_make(deps.store, sink, chunk, failure.generation)
            listed += lost_views(chunk, failure, lost)
            if len(listed) >= limit:
                break
        if len(failures) < LOST_PAGE:
            break
    return listed, after


def _early(
    deps: Dependencies, status: JobStatus, sink: Sink, seen: int, limit: int
) -> tuple[list[answers.Image], int]:
    """Pictures of tasks that are not whole, and the moment up to which they are listed."""
    listed: list[answers.Image] = []
    if status.state in (JobState.DONE, JobState.FAILED):
        return listed, seen
    for part in early_parts(deps.store, status.id, seen):
        if len(listed) >= limit and part.moment > seen:
            break
        seen = part.moment
        rows = early_rows(deps.store, part)
        listed += [image_view(row, sink, deps.links) for row in rows if row.error is None]
    return listed, seen


def _finished(
    deps: Dependencies, status: JobStatus, sink: Sink, after: int, limit: int
) -> tuple[list[ManifestRow], int]:
    job = status.id
    listed: list[ManifestRow] = []
    while len(listed) < limit:
        # Small tasks come several to a page; a task's part may hold a thousand pictures.
        finished = deps.queue.finished(job, after, FINISHED_PAGE)
        for task in finished:
            after = task.position
            if task.receipt.part:
                rows = read_part(deps.store.get(task.receipt.part))
                later = range(task.generation + 1, status.generation + 1)
                counts = merge([*rows, *task_rows(deps.store, job, task.number, later)])
                listed += [row for row in rows if counts[row.picture] == row]
            if len(listed) >= limit:
                break
        if len(finished) < FINISHED_PAGE:
            break
    return listed, after


@router.get("/{job}/previews")
def list_previews(job: str, deps: Deps, tenant: Reader) -> answers.Previews:
    """What pictures on their way look like so far, as small JPEG files in data URLs.

    Workers make them only while someone asks, and for a tenth of their time at most: ask again
    every half second; the first ones come after a second or two.
    """
    status = deps.queue.status(check_job_id(job), tenant)
    found = shown_previews(deps, status)
    return answers.Previews(previews=[preview_view(one) for one in found], state=status.state)


def shown_previews(deps: Dependencies, status: JobStatus) -> list[previews.Preview]:
    """Of a job that has not ended; asks its workers for more."""
    if status.state in TERMINAL_JOBS:
        return []
    previews.ask(deps.queue, status.id)
    return previews.read(deps.queue, status.id)


@router.post("/{job}/cancel")
def cancel(job: str, deps: Deps, tenant: Writer) -> JobStatus:
    """End a job; what is running stops at the next step. A job that has ended stays as it is."""
    deps.ingest.cancel(check_job_id(job), tenant)
    return deps.queue.status(job, tenant)


@router.post("/{job}/pause")
def pause(job: str, deps: Deps, tenant: Writer) -> JobStatus:
    """Start no more of a job until it is resumed; what is running continues."""
    deps.queue.pause(check_job_id(job), tenant)
    return deps.queue.status(job, tenant)


@router.post("/{job}/resume")
def resume(job: str, deps: Deps, tenant: Writer) -> JobStatus:
    """Resume a paused job."""
    deps.queue.resume(check_job_id(job), tenant)
    return deps.queue.status(job, tenant)


@router.post("/{job}/retry")
def retry(
    job: str,
    deps: Deps,
    tenant: Writer,
    reason: Annotated[str | None, Query(min_length=1, max_length=MAX_REASON)] = None,
) -> JobStatus:
    """Render the failed pictures of an ended job again, as a new generation; the pictures that
    were made stay as they are.

    With a reason, only those of tasks that failed for it: `row`, the pictures' own errors; `crash`,
    they crashed their worker; `infra`, their worker was lost too often; or a part of the text that
    the task failed with.
    """
    deps.queue.retry(check_job_id(job), tenant, reason)
    return deps.queue.status(job, tenant)


@router.delete("/{job}", response_class=StreamingResponse, responses=ndjson("removing", "removed"))
def remove_job(job: str, deps: Deps, tenant: Writer) -> Response:
    """Delete an ended job with everything that the farm has of it: NDJSON, a ``removing`` line now
    and then, and one ``removed`` line. A call that was interrupted goes on when it is repeated."""
    deleted = deps.remover.remove(check_job_id(job), tenant)
    return json_lines(removal.report(deleted))


@router.get("/{job}/why")
def why(job: str, deps: Deps, tenant: Reader) -> answers.Why:
    """What the job is waiting for, what goes first in each of its lanes, and an estimate."""
    found = deps.queue.why(check_job_id(job), tenant, deps.sessions())
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


def _verifying(caller: Callable[[Request], Awaitable[str]]) -> Any:
    """The caller's tenant, counted among those who verify until the answer is out."""

    async def counted(deps: Deps, tenant: Annotated[str, Depends(caller)]) -> AsyncIterator[str]:
        with deps.quotas.verification(tenant):
            yield tenant

    return Depends(counted)


@router.get("/{job}/verify", response_class=StreamingResponse, responses=_VERIFIED)
def verify(job: str, deps: Deps, tenant: Annotated[str, _verifying(reader)]) -> Response:
    """Compare the manifest, the queue and the store of a job that has ended: NDJSON, a
    ``difference`` line for each, then one ``verified`` line."""
    return _verify(deps, check_job_id(job), tenant, repair=False)


@router.post("/{job}/verify", response_class=StreamingResponse, responses=_VERIFIED)
def repair(job: str, deps: Deps, tenant: Annotated[str, _verifying(writer)]) -> Response:
    """The same, and repair what can be repaired: orphans are deleted, lost pictures made again."""
    return _verify(deps, check_job_id(job), tenant, repair=True)


def _verify(deps: Dependencies, job: str, tenant: str, *, repair: bool) -> Response:
    verifier = Verifier(deps.queue, deps.store, deps.sinks, job, tenant)
    folder = deps.settings.data / "scratch" / "verify"
    return json_lines(report(verifier, folder, repair=repair))
