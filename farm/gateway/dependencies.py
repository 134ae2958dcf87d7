"""What the routes share, made once when the application starts."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request

from farm.checkpoints.registry import CheckpointRegistry
from farm.gateway.auth import Authenticator, Caller, Scope, scope_missing
from farm.gateway.events import EventHub
from farm.gateway.metrics import Metrics
from farm.gateway.openapi import BEARER
from farm.gateway.page.history import History
from farm.gateway.quotas import Quotas
from farm.gateway.readiness import Readiness
from farm.gateway.signed_urls import Links, Signer
from farm.gateway.worker_sessions import WorkerSessions
from farm.ingest.assets import Assets
from farm.ingest.ingest import Ingest
from farm.ingest.removal import Remover
from farm.ingest.scores import ScoreRoom
from farm.queue import Queue
from farm.settings import GatewaySettings
from farm.sinks.registry import Sinks
from farm.store import Store

# Calls at a time that may wait for the store. Where it is silent each waits for minutes, and those
# that need no store must find one of the forty threads that answer everyone.
STORE_CALLS = 20

Result = TypeVar("Result")


class Dependencies(NamedTuple):
    settings: GatewaySettings
    queue: Queue
    sessions: WorkerSessions
    store: Store
    sinks: Sinks
    assets: Assets
    registry: CheckpointRegistry
    ingest: Ingest
    remover: Remover
    score_room: ScoreRoom
    authenticator: Authenticator
    signer: Signer
    links: Links
    events: EventHub
    metrics: Metrics
    history: History
    readiness: Readiness
    quotas: Quotas
    store_calls: CapacityLimiter


def dependencies_of(request: Request) -> Dependencies:
    return cast(Dependencies, request.app.state.deps)


async def _dependencies(request: Request) -> Dependencies:
    """In the event loop; FastAPI gives what is not asynchronous to a thread in every request."""
    return dependencies_of(request)


Described = Annotated[object, Depends(BEARER)]


async def reader(request: Request, _: Described = None) -> str:
    return _tenant(request, "read")


async def writer(request: Request, _: Described = None) -> str:
    return _tenant(request, "write")


async def admin(request: Request, _: Described = None) -> str:
    return _tenant(request, "admin")


def caller_of(request: Request, scope: Scope) -> Caller:
    """Raises ``NotAllowed`` where the key is not, or no longer, good for it."""
    caller = dependencies_of(request).authenticator.caller(request.headers.get("authorization"))
    if scope not in caller.scopes:
        raise scope_missing(scope)
    return caller


def _tenant(request: Request, scope: Scope) -> str:
    caller = caller_of(request, scope)
    dependencies_of(request).quotas.take_request(caller.tenant)
    request.state.tenant, request.state.scopes = caller.tenant, caller.scopes
    return caller.tenant


Deps = Annotated[Dependencies, Depends(_dependencies)]


async def in_store(deps: Dependencies, call: Callable[..., Result], *arguments: Any) -> Result:
    """Make a call that may wait for the store, in a thread of those that such calls may have."""
    return await run_sync(call, *arguments, limiter=deps.store_calls)


async def _reading(deps: Deps) -> AsyncIterator[None]:
    async with deps.store_calls:
        yield


# Of a route that reads the store.
READS_STORE = [Depends(_reading, scope="function")]
Reader = Annotated[str, Depends(reader)]  # the tenant of a caller that may read
Writer = Annotated[str, Depends(writer)]
Admin = Annotated[str, Depends(admin)]
