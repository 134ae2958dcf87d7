"""What a tenant's jobs and uploads take up in the store."""

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from farm.gateway.dependencies import Deps, Reader
from farm.gateway.json_lines import json_lines
from farm.gateway.openapi import ndjson
from farm.ingest.usage import job_usage, report, usage_of
from farm.job import check_job_id

_LINES = ndjson("usage", "total")

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.get("/usage", response_class=StreamingResponse, responses=_LINES)
def usage(deps: Deps, tenant: Reader, everything: bool = False) -> Response:
    """Objects and bytes of each of the caller's jobs, newest first, and of its uploads: NDJSON, a
    ``usage`` line for each, then one ``total`` line; ``counting`` lines in between say that it goes
    on. ``everything`` adds jobs that the queue has forgotten; every job in the store is looked up
    for that."""
    found = usage_of(deps.queue, deps.store, tenant, everything=everything)
    return json_lines(report(found))


@router.get("/jobs/{job}/usage", response_class=StreamingResponse, responses=_LINES)
def usage_of_job(job: str, deps: Deps, tenant: Reader) -> Response:
    """The same of one job."""
    found = job_usage(deps.queue, deps.store, tenant, check_job_id(job))
    return json_lines(report(found))
