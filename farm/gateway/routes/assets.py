"""Uploads, and the objects that signed addresses lead to."""

import time
from typing import Annotated
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from farm.errors import NotFound
from farm.gateway.bodies import read_file
from farm.gateway.byte_range import byte_range, read_pieces
from farm.gateway.dependencies import READS_STORE, Deps, Reader, Writer
from farm.gateway.inline_pictures import UPLOADS
from farm.gateway.openapi import FILE, OBJECT, RANGE
from farm.gateway.signed_urls import media_type
from farm.ingest.assets import Asset
from farm.spec import AssetId, AssetKind
from farm.store.protocol import STREAM_BYTES

router = APIRouter(prefix="/v1", tags=["assets"])


@router.put("/assets", status_code=201, openapi_extra=FILE)
@router.post("/assets", status_code=201, openapi_extra=FILE, operation_id="post_asset")
async def put_asset(
    request: Request,
    deps: Deps,
    tenant: Writer,
    kind: AssetKind | None = None,
) -> Asset:
    """Keep an input picture, mask or tensor file, sent as the raw body; its content
    decides what it is. Its id is the sha256 of its bytes."""
    body = await read_file(request, deps.settings.max_asset_bytes)  # waits without a slot
    asset = await run_sync(deps.assets.add, tenant, body, kind, limiter=UPLOADS)
    deps.metrics.uploads.inc(asset.size)
    return asset


@router.get("/assets/{asset}", dependencies=READS_STORE)
def asset_facts(asset: AssetId, deps: Deps, tenant: Reader) -> Asset:
    """What is known of a file that the caller uploaded."""
    return deps.assets.facts(tenant, asset)


@router.head(
    "/objects/{key:path}",
    response_class=Response,
    operation_id="head_object",
    dependencies=READS_STORE,
)
@router.get(
    "/objects/{key:path}",
    response_class=StreamingResponse,
    responses=OBJECT,
    openapi_extra=RANGE,
    dependencies=READS_STORE,
)
def download(
    key: str,
    request: Request,
    deps: Deps,
    expires: Annotated[int, Query(ge=0, lt=2**53)],
    signature: str,
    filename: str = "",
    part: Annotated[str, Query(pattern=r"^(\d{1,15}\+\d{1,15})?$")] = "",
) -> Response:
    """A stored object, a part of it that is a file of its own, or a range of either, for
    anyone who has its signed address."""
    deps.signer.check(key, expires, filename, signature, part)
    kind = media_type(filename or key)
    stored = deps.store.size(key)
    if stored is None:
        raise NotFound("the object no longer exists")
    offset, size = map(int, part.split("+")) if part else (0, stored)
    left = max(expires - int(time.time()), 0)  # seconds
    headers = {
        "Cache-Control": f"private, max-age={left}, immutable",
        "Accept-Ranges": "bytes",
    }
    if filename:
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(filename)}"
    if request.method == "HEAD":
        return Response(None, 200, {**headers, "Content-Length": str(size)}, kind)
    wanted = byte_range(request.headers.get("range"), size)
    status, (first, after) = (200, (0, size)) if wanted is None else (206, wanted)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{after - 1}/{size}"
    if after - first <= STREAM_BYTES:  # a stream would cost half as much again
        data = b"".join(read_pieces(deps.store, key, offset + first, after - first))
        return Response(data, status, headers, kind)
    headers["Content-Length"] = str(after - first)
    whole = wanted is None and not part
    pieces = read_pieces(deps.store, key, offset + first, after - first)
    return StreamingResponse(deps.store.stream(key) if whole else pieces, status, headers, kind)
