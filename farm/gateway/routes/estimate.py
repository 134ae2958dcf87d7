"""What renders would come to, without a job."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request

from farm.gateway import answers
from farm.gateway.bodies import NDJSON_TYPES, WrongType, content_type, one_piece
from farm.gateway.dependencies import Deps, Writer, in_store
from farm.gateway.inline_pictures import keep_pictures
from farm.gateway.openapi import NDJSON_RENDERS
from farm.ingest.estimate import estimate
from farm.job import Format, JobOptions
from farm.queue.messages import summed_paces

router = APIRouter(prefix="/v1", tags=["jobs"])


@router.post("/estimate", openapi_extra=NDJSON_RENDERS)
async def estimate_job(
    request: Request,
    deps: Deps,
    tenant: Writer,
    first: Annotated[int, Query(ge=0, lt=10**9)] = 0,
    sink: str = "images",
    format: Format | None = None,  # noqa: A002
    shard_size: int | None = None,
) -> answers.Estimate:
    """Check renders, one a line as NDJSON, and tell the pictures, tasks, bytes and row-steps that
    they would make; nothing is submitted. ``first`` is the index of the first in its job."""
    if content_type(request) not in NDJSON_TYPES:
        raise WrongType("renders come as application/x-ndjson", field="Content-Type")
    given = {"sink": sink, "format": format, "shard_size": shard_size}
    options = JobOptions.parse({name: one for name, one in given.items() if one is not None})
    entries = await keep_pictures(deps.assets, tenant, await one_piece(request))
    piece = await in_store(deps, deps.ingest.resolve, tenant, options, first, entries)
    sessions = await run_sync(deps.sessions)
    return answers.Estimate(**estimate(piece, summed_paces(sessions)), workers=len(sessions))
