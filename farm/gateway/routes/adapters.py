"""Adapters by name: added, listed, removed."""

from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request

from farm.gateway import answers
from farm.gateway.bodies import read_file
from farm.gateway.dependencies import READS_STORE, Deps, Reader, Writer
from farm.gateway.inline_pictures import UPLOADS
from farm.gateway.openapi import FILE
from farm.ingest.adapters import NamedAdapter

router = APIRouter(prefix="/v1", tags=["adapters"])


@router.put("/adapters/{name}", status_code=201, openapi_extra=FILE)
async def add_adapter(
    name: str,
    request: Request,
    deps: Deps,
    tenant: Writer,
    alpha: Annotated[float | None, Query(gt=0, le=1e6, allow_inf_nan=False)] = None,
) -> NamedAdapter:
    """Name a LoRA adapter, a safetensors file sent as the raw body. ``alpha`` is for a file that
    does not say its own; without either it counts as the rank."""
    body = await read_file(request, deps.settings.max_asset_bytes)

    def keep() -> NamedAdapter:
        return deps.ingest.adapters.add(tenant, name, body, alpha=alpha)

    return await run_sync(keep, limiter=UPLOADS)


@router.get("/adapters", dependencies=READS_STORE)
def adapters(deps: Deps, tenant: Reader) -> answers.Adapters:
    """The caller's adapters, by name."""
    return answers.Adapters(adapters=deps.ingest.adapters.all(tenant))


@router.delete("/adapters/{name}", dependencies=READS_STORE)
def remove_adapter(name: str, deps: Deps, tenant: Writer) -> answers.AdapterRemoved:
    """Forget a name, if there is such an adapter. Jobs that were accepted keep it."""
    removed = deps.ingest.adapters.remove(tenant, name)
    return answers.AdapterRemoved(name=name, removed=removed)
