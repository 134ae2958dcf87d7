"""Adapters by name: added, listed, removed."""

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from farm.errors import InvalidInput
from farm.gateway.bodies import content_type, read_body
from farm.gateway.dependencies import Deps, Reader, Writer
from farm.gateway.inline_pictures import UPLOADS

router = APIRouter(prefix="/v1", tags=["adapters"])

_BODY = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.put("/adapters/{name}", status_code=201, openapi_extra=_BODY)
async def add(
    name: str,
    request: Request,
    deps: Deps,
    tenant: Writer,
    alpha: Annotated[float | None, Query(gt=0, le=1e6, allow_inf_nan=False)] = None,
) -> Response:
    """Name a LoRA adapter, a safetensors file sent as the raw body. ``alpha`` is for a file that
    does not say its own; without either it counts as the rank."""
    if content_type(request).startswith("multipart/"):
        raise InvalidInput(
            "the body is a form", field="Content-Type", hint="send the file's bytes as the body"
        )
    body = await read_body(request, deps.settings.max_asset_bytes)

    def keep() -> dict[str, Any]:
        return deps.ingest.adapters.add(tenant, name, body, alpha=alpha).model_dump(mode="json")

    return JSONResponse(await run_sync(keep, limiter=UPLOADS), 201)


@router.get("/adapters")
def names(deps: Deps, tenant: Reader) -> dict[str, Any]:
    """The caller's adapters, by name."""
    return {"adapters": [one.model_dump(mode="json") for one in deps.ingest.adapters.all(tenant)]}


@router.delete("/adapters/{name}")
def remove(name: str, deps: Deps, tenant: Writer) -> dict[str, Any]:
    """Forget a name, if there is such an adapter. Jobs that were accepted keep it."""
    return {"name": name, "removed": deps.ingest.adapters.remove(tenant, name)}
