"""Scores of a job's pictures, made by whoever looks at them, kept beside the job."""

import json
from collections.abc import Iterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response, StreamingResponse

from farm.errors import FarmError, InvalidInput, NotFound
from farm.formats.scores import MAX_SCORES, PictureScores
from farm.gateway import answers
from farm.gateway.bodies import read_json
from farm.gateway.dependencies import Deps, Reader, Writer
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
    return StreamingResponse(_lines(deps.store, job), media_type="application/x-ndjson")


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


def _lines(store: Store, job: str) -> Iterator[str]:
    count = 0
    try:
        for scorer, rows in stored_scores(store, job):
            told = {"scorer": scorer, "rows": [row.model_dump(mode="json") for row in rows]}
            count += len(rows)
            yield json.dumps({"scores": told}) + "\n"
        yield json.dumps({"end": {"rows": count}}) + "\n"
    except FarmError as error:  # the status line has gone out long ago
        yield json.dumps({"error": error.to_dict()}) + "\n"
