"""What the routes share, made once when the application starts."""

from typing import Annotated, NamedTuple, cast

from fastapi import Depends, Request

from farm.assets import Assets
from farm.catalogue import Catalogue
from farm.gateway.auth import Caller, Door, scope_missing
from farm.gateway.events import EventHub
from farm.gateway.metrics import Metrics
from farm.gateway.objects import Links, Signer
from farm.ingest import Ingest
from farm.queue import Queue
from farm.settings import GatewaySettings
from farm.store import Store


class Parts(NamedTuple):
    settings: GatewaySettings
    queue: Queue
    store: Store
    assets: Assets
    catalogue: Catalogue
    ingest: Ingest
    door: Door
    signer: Signer
    links: Links
    events: EventHub
    metrics: Metrics


def parts_of(request: Request) -> Parts:
    return cast(Parts, request.app.state.parts)


async def reader(request: Request) -> str:
    return _tenant(request, "read")


async def writer(request: Request) -> str:
    return _tenant(request, "write")


def _tenant(request: Request, scope: str) -> str:
    caller: Caller = parts_of(request).door.caller(request.headers.get("authorization"))
    if scope not in caller.scopes:
        raise scope_missing(scope)
    return caller.tenant


WithParts = Annotated[Parts, Depends(parts_of)]
Reader = Annotated[str, Depends(reader)]  # the tenant of a caller that may read
Writer = Annotated[str, Depends(writer)]
