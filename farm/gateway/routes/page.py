"""The page at ``/``: a shell without anyone's data, and the parts that it asks for."""

import math
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import HTMLResponse, Response

from farm.errors import FarmError, NotFound
from farm.gateway.dependencies import READS_STORE, Admin, Dependencies, Deps, Reader
from farm.gateway.page import views
from farm.gateway.page.rendering import STATIC, fragment, shell
from farm.gateway.routes.jobs import MAX_PAGE, Cursor, images, shown_previews
from farm.gateway.serializers import preview_view
from farm.job import MAX_TASK_PICTURES, TERMINAL_JOBS, Priority, check_job_id
from farm.queue import placed_workers
from farm.sinks.protocol import Source
from farm.spec import PARAMETERS
from farm.spec.parameters import RenderFields

router = APIRouter(include_in_schema=False)


@router.get("/")
@router.get("/pictures")
@router.get("/farm")
@router.get("/tenants")
@router.get("/new")
def page(request: Request, deps: Deps) -> HTMLResponse:
    """The jobs, the newest pictures, the farm itself, its tenants, or the form for a new job."""
    return shell(request, _picture_url(deps))


@router.get("/jobs/{job}")
def job_page(job: str, request: Request, deps: Deps) -> HTMLResponse:
    """One job; only the data, for those who may see it, say whether it exists."""
    check_job_id(job)
    return shell(request, _picture_url(deps))


@router.get("/static/{name}")
def static(name: str) -> Response:
    """A file of the page; its address has its hash, so browsers may keep it for ever."""
    if name not in STATIC:
        raise NotFound(f"the page has no file {name[:80]!r}")
    file = STATIC[name]
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(file.content, media_type=file.media_type, headers=headers)


@router.get("/page")
def jobs(request: Request, deps: Deps, tenant: Reader, before: str | None = None) -> HTMLResponse:
    """The caller's jobs, newest first."""
    if before is not None:
        check_job_id(before)
    found = deps.queue.jobs(tenant, views.JOBS_PAGE, before)
    return fragment(
        request,
        "jobs.html",
        jobs=found,
        before=before,
        following=found[-1].id if len(found) == views.JOBS_PAGE else None,
        problems=_problems(deps),
    )


@router.get("/page/jobs/{job}")
def job(job: str, request: Request, deps: Deps, tenant: Reader) -> HTMLResponse:
    """Everything about one job; its parts are fetched again while it runs."""
    check_job_id(job)
    return fragment(request, "job.html", **_progress(deps, job, tenant))


@router.get("/page/jobs/{job}/progress")
def progress(job: str, request: Request, deps: Deps, tenant: Reader) -> HTMLResponse:
    """How far it is, and what it waits for."""
    check_job_id(job)
    return fragment(request, "progress.html", **_progress(deps, job, tenant))


def _progress(deps: Dependencies, job: str, tenant: str) -> dict[str, Any]:
    why = deps.queue.why(job, tenant, deps.sessions())
    status = why.status
    over = views.is_over(status)
    return {
        "status": status,
        "over": over,
        "may_retry": views.may_retry(status),
        "waits_for": None if over else views.waits_for(why),
        "seconds": why.seconds,
        "problems": [] if over else _problems(deps),
    }


@router.get("/page/jobs/{job}/pictures", dependencies=READS_STORE)
def job_pictures(
    job: str,
    request: Request,
    deps: Deps,
    tenant: Reader,
    after: Cursor = "0",
    skip: Annotated[int, Query(ge=0, le=100 * MAX_TASK_PICTURES)] = 0,
) -> HTMLResponse:
    """A page of its pictures, in the order in which they were finished.

    The cursor ``after`` goes from task to task; ``skip`` is for the pictures within one.
    """
    told = images(job, deps, tenant, after, views.PICTURES_PAGE)
    listed = [*told.images, *told.early]
    end = skip + views.PICTURES_PAGE
    following = None
    if end < len(listed):
        following = f"after={after}&skip={end}"
    elif len(told.images) >= views.PICTURES_PAGE:
        following = f"after={told.next}"
    return fragment(
        request,
        "pictures.html",
        pictures=[views.shown(job, one) for one in listed[skip:end]],
        here=f"after={after}&skip={skip}",
        first=after == "0" and not skip,
        following=following,
        over=told.state in TERMINAL_JOBS,
        job=job,
    )


@router.get("/page/jobs/{job}/previews")
def job_previews(job: str, request: Request, deps: Deps, tenant: Reader) -> HTMLResponse:
    """Its pictures on their way; once it has ended the browser asks no more."""
    status = deps.queue.status(check_job_id(job), tenant)
    found = [preview_view(one) for one in shown_previews(deps, status)]
    answer = fragment(request, "previews.html", status=status, previews=found)
    if views.is_over(status):
        answer.headers["HX-Reswap"] = "delete"
    return answer


@router.get("/page/jobs/{job}/failures", dependencies=READS_STORE)
def failures(job: str, request: Request, deps: Deps, tenant: Reader) -> HTMLResponse:
    """Its failed pictures, by what went wrong."""
    status = deps.queue.status(check_job_id(job), tenant)
    failed: list[views.Shown] = []
    read, after = 0, "0"
    while status.images.failed and read < views.FAILURES_READ:
        told = images(job, deps, tenant, after, views.PICTURES_PAGE)
        if not told.images:
            break
        read += len(told.images)
        after = told.next
        failed += [views.shown(job, one) for one in told.images if one.error]
    return fragment(
        request,
        "failures.html",
        status=status,
        groups=views.failure_groups(failed),
        looked_at=read,
        may_retry=views.may_retry(status),
    )


@router.get("/page/pictures", dependencies=READS_STORE)
def newest(request: Request, deps: Deps, tenant: Reader) -> HTMLResponse:
    """The newest pictures of the caller's newest jobs."""
    pictures: list[views.Shown] = []
    for status in deps.queue.jobs(tenant, views.RECENT_JOBS):
        if len(pictures) >= views.PICTURES_PAGE or not status.images.done:
            continue
        each = max(status.images.done // max(status.tasks.done, 1), 1)  # pictures of a task
        start = str(max(status.tasks.done - math.ceil(views.PICTURES_PAGE / each), 0))
        try:
            told = images(status.id, deps, tenant, start, MAX_PAGE)
        except NotFound:  # it was removed meanwhile
            continue
        good = [one for one in told.images if one.url]
        pictures += [views.shown(status.id, one) for one in reversed(good)]
    return fragment(request, "newest.html", pictures=pictures[: views.PICTURES_PAGE])


@router.get("/page/farm")
def farm(request: Request, deps: Deps, _: Reader) -> HTMLResponse:
    """Workers, lanes, and the last ten minutes."""
    problems = _problems(deps)
    try:
        sessions, backlog = deps.sessions(), deps.queue.backlog()
        missing = [one for one in placed_workers.read(deps.queue) if one.missing]
    except FarmError:
        sessions, backlog, missing = [], [], []  # the problems say it
    return fragment(
        request,
        "farm.html",
        problems=problems,
        missing=missing[: views.MAX_MISSING],
        sessions=sorted(sessions, key=lambda session: session.worker)[: views.MAX_WORKERS],
        workers=len(sessions),
        lanes=views.lanes(backlog, sessions),
        samples=deps.history.samples(),
        checkpoints=deps.registry.all(),
        admin="admin" in request.state.scopes,
    )


@router.get("/page/tenants")
def tenants(request: Request, deps: Deps, _: Admin) -> HTMLResponse:
    """What each tenant uses, those with the most work first."""
    weights = deps.queue.tenants()
    shown = list(weights)[: views.MAX_TENANTS]
    kept = deps.quotas.bytes_kept(shown)
    found = [
        views.tenant_use(name, weights[name], deps.queue.jobs(name, views.TENANT_JOBS), kept)
        for name in shown
    ]
    found.sort(key=lambda one: (-one.left, -one.done, one.name))
    return fragment(
        request,
        "tenants.html",
        tenants=found,
        more=max(len(weights) - views.MAX_TENANTS, 0),
        newest=views.TENANT_JOBS,
    )


@router.get("/page/new", dependencies=READS_STORE)
def new(request: Request, deps: Deps, tenant: Reader) -> HTMLResponse:
    """The form for a new job."""
    return fragment(
        request,
        "new.html",
        checkpoints=deps.registry.all(),
        adapters=deps.ingest.adapters.all(tenant),
        parameters=PARAMETERS,
        defaults={name: field.default for name, field in RenderFields.model_fields.items()},
        priorities=list(Priority),
    )


def _problems(deps: Dependencies) -> list[str]:
    return views.problems(deps.queue, deps.sessions, deps.readiness.problems())


def _picture_url(deps: Dependencies) -> str:
    return deps.links.to(Source(key="probe", name="probe.png", size=0))
