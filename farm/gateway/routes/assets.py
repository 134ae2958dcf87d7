"""Uploads, and the objects that signed addresses lead to."""

from typing import Annotated, Any
from urllib.parse import quote

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from farm.errors import InvalidInput, NotFound
from farm.gateway.bodies import content_type, read_body
from farm.gateway.dependencies import Deps, Reader, Writer
from farm.gateway.signed_urls import media_type
from farm.spec import AssetId, AssetKind

router = APIRouter(prefix="/v1", tags=["assets"])

_UPLOADS = anyio.CapacityLimiter(8)  # each may hold an asset's whole size in memory
_BODY = {"requestBody": {"content": {"application/octet-stream": {"schema": {"type": "string"}}}}}


@router.put("/assets", status_code=201, openapi_extra=_BODY)
@router.post("/assets", status_code=201, openapi_extra=_BODY)
async def upload(
    request: Request,
    deps: Deps,
    tenant: Writer,
    kind: AssetKind | None = None,
) -> Response:
    """Keep an input picture, mask or tensor file, sent as the raw body; what it is, is found by
    its content. Its id is the sha256 of its bytes."""
    if content_type(request).startswith("multipart/"):
        raise InvalidInput(
            "the body is a form", field="Content-Type", hint="send the file's bytes as the body"
        )
    async with _UPLOADS:
        body = await read_body(request, deps.settings.max_asset_bytes)
        asset = await run_sync(deps.assets.add, tenant, body, kind)
    deps.metrics.uploads.inc(asset.size)
    return JSONResponse(asset.model_dump(mode="json"), 201)


@router.get("/assets/{asset}")
def facts(asset: AssetId, deps: Deps, tenant: Reader) -> dict[str, Any]:
    """What is known of a file that the caller uploaded."""
    return deps.assets.facts(tenant, asset).model_dump(mode="json")


@router.get("/objects/{key:path}", response_class=StreamingResponse)
def download(
    key: str,
    deps: Deps,
    expires: Annotated[int, Query(ge=0, lt=2**53)],
    signature: str,
    filename: str = "",
    part: Annotated[str, Query(pattern=r"^(\d{1,15}\+\d{1,15})?$")] = "",
) -> Response:
    """A stored object or a range of it, for whoever has its signed address."""
    deps.signer.check(key, expires, filename, signature, part)
    headers = {"Cache-Control": "private, immutable"}
    if filename:
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(filename)}"
    kind = media_type(filename or key)
    if part:
        offset, size = map(int, part.split("+"))
        return Response(deps.store.read(key, offset, size), media_type=kind, headers=headers)
    found = deps.store.size(key)
    if found is None:
        raise NotFound("the object is gone")
    headers["Content-Length"] = str(found)
    return StreamingResponse(deps.store.stream(key), media_type=kind, headers=headers)
