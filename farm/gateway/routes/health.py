"""Whether the farm works, and with which checkpoints."""

from typing import Any

from fastapi import APIRouter, Request, Response

import farm
from farm.errors import FarmError, NotAllowed
from farm.gateway import answers
from farm.gateway.dependencies import Dependencies, Deps, Reader
from farm.gateway.metrics import CONTENT_TYPE
from farm.gateway.openapi import TEXT
from farm.queue import notice, placed_workers

router = APIRouter(tags=["farm"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> answers.Health:
    """The process answers."""
    return answers.Health(status="ok", version=farm.__version__)


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": answers.Ready, "description": "Not ready"}})
def readyz(response: Response, deps: Deps, workers: int = 1) -> answers.Ready:
    """200 when a job would run: queue and store can be written to and there is a worker. With
    ``?workers=0``, for load balancers, 200 when jobs are accepted. ``missing`` has a line for each
    worker that a scheduler wants on its cluster and that does not run."""
    queue, store = deps.readiness.problems()
    found: dict[str, Any] = {"queue": queue or "ok", "store": store or "ok", "workers": 0}
    try:
        found["workers"] = len(deps.sessions())
        if not found["workers"] and (note := notice.read(deps.queue)):
            found["note"] = note
        if placed := placed_workers.read(deps.queue):
            found["placed"] = len(placed)
            found["missing"] = [str(worker) for worker in placed if worker.missing]
    except FarmError as error:
        found["queue"] = str(error)
    ready = found["queue"] == found["store"] == "ok" and found["workers"] >= workers
    if not ready:
        response.status_code = 503
    return answers.Ready(ready=ready, **found)


@router.get("/metrics", response_class=Response, responses=TEXT)
def metrics(request: Request, deps: Deps) -> Response:
    """For Prometheus. Tenants are named to a key with the scope ``admin``; to others they are one,
    ``others``."""
    text = deps.metrics.text(tenants=_is_admin(request, deps))
    return Response(text, media_type=CONTENT_TYPE)


def _is_admin(request: Request, deps: Dependencies) -> bool:
    try:
        caller = deps.authenticator.caller(request.headers.get("authorization"))
    except NotAllowed:
        return False
    return "admin" in caller.scopes


@router.get("/v1/checkpoints")
def checkpoints(deps: Deps, _: Reader) -> answers.Checkpoints:
    """The checkpoints that can be used; the first is the default."""
    listed = [
        answers.Checkpoint(**dict(info), default=not index)
        for index, info in enumerate(deps.registry.all())
    ]
    return answers.Checkpoints(checkpoints=listed)
