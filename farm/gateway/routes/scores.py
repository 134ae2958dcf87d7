"""Scores of a job's pictures, made by whoever looks at them, kept beside the job."""

from collections.abc import Iterator
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response, StreamingResponse

from farm.errors import InvalidInput, NotFound
from farm.formats.scores import MAX_SCORES, PictureScores
from farm.gateway import answers
from farm.gateway.bodies import read_json
from farm.gateway.dependencies import Deps, Reader, Writer
from farm.gateway.json_lines import json_lines
from farm.gateway.openapi import SCORES, ndjson
from farm.ingest.scores import add_scores, forget_scores, is_removed, stored_scores
from farm.job import check_job_id
from farm.store import Store

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    # Here, too: pydantic would make an error for each of a million wrong rows.
    rows: Annotated[list[PictureScores], Field(max_length=MAX_SCORES)]


@router.get("/{job}/scores", response_class=StreamingResponse, responses=ndjson("scores", "end"))
def scores(job: str, deps: Deps, tenant: Reader) -> Response:
    """Every score of the job's pictures: NDJSON, a ``scores`` line for each part that was added,
    then one ``end`` line."""
    deps.queue.status(check_job_id(job), tenant)
    return json_lines(_told(deps.store, job))


@router.post("/{job}/scores/{scorer}", status_code=201, openapi_extra=SCORES)
async def put_scores(
    job: str, scorer: str, request: Request, deps: Deps, tenant: Writer
) -> answers.ScoresAdded:
    """Add what a scorer says of up to 1,000 pictures, as JSON: ``{"rows": [{"render": 0,
    "image": 0, "sha256": "…", "values": {"sharpness": 0.7}}]}``. The same part again changes
    nothing."""
    status = await run_sync(deps.queue.status, check_job_id(job), tenant)
    body = await read_json(request, deps.settings.max_json_bytes)
    try:
        rows = _Part.model_validate(body).rows
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        raise InvalidInput(f"{found['msg']}", field=where) from None
    await run_sync(add_scores, deps.score_room, job, scorer, rows, status.images.total)
    try:
        await run_sync(deps.queue.status, job, tenant)
    except NotFound:  # it was removed meanwhile, and nothing else would delete the part
        if await run_sync(is_removed, deps.store, job):  # and not only forgotten by the queue
            await run_sync(forget_scores, deps.store, job)
        raise
    return answers.ScoresAdded(scorer=scorer, rows=len(rows))


def _told(store: Store, job: str) -> Iterator[dict[str, Any]]:
    count = 0
    for scorer, rows in stored_scores(store, job):
        count += len(rows)
        told = [row.model_dump(mode="json") for row in rows]
        yield {"scores": {"scorer": scorer, "rows": told}}
    yield {"end": {"rows": count}}
