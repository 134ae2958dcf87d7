"""Puts the gateway together."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from anyio import CapacityLimiter
from pydantic import ValidationError
from starlette.middleware.gzip import GZipMiddleware

import farm
from farm.checkpoints.inspect import inspect_checkpoint
from farm.checkpoints.registry import CheckpointRegistry
from farm.formats.sandbox import Sandbox
from farm.gateway import exception_handlers
from farm.gateway.auth import Authenticator, KeyFile
from farm.gateway.body_memory import BodyMemory
from farm.gateway.dependencies import STORE_CALLS, Dependencies
from farm.gateway.events import EventHub
from farm.gateway.metrics import MeasureRequests, Metrics
from farm.gateway.middleware import RequestGuard
from farm.gateway.openapi import REFUSALS, Api, operation_id
from farm.gateway.page.history import History
from farm.gateway.quotas import QuotaLimits, Quotas
from farm.gateway.readiness import Readiness
from farm.gateway.routes import (
    adapters,
    assets,
    docs,
    estimate,
    health,
    jobs,
    page,
    scores,
    submissions,
    usage,
)
from farm.gateway.signed_urls import Links, Signer, linked_store, secret_of
from farm.gateway.worker_sessions import WorkerSessions
from farm.ingest.assets import Assets
from farm.ingest.ingest import Ingest
from farm.ingest.removal import Remover
from farm.ingest.scores import ScoreRoom
from farm.ingest.usage import asset_bytes
from farm.queue import Queue, connect
from farm.queue.messages import Session
from farm.settings import GatewaySettings
from farm.sinks.registry import Sinks
from farm.spec import CheckpointInfo
from farm.store import Store, open_store

COMPRESSED_BYTES = 16 * 1024  # at least; lists of pictures become a seventh
# Never compressed: what is so already, and streams, each line of which is to arrive at once.
AS_THEY_ARE = (
    "image/*", "text/event-stream", "application/x-ndjson", "application/octet-stream",
    "application/x-tar", "application/vnd.apache.parquet",
)  # fmt: skip
STORE_ATTEMPTS = 6  # a caller is waiting; the workers are more patient


def create_app(
    settings: GatewaySettings,
    *,
    queue: Queue | None = None,
    store: Store | None = None,
    infos: Sequence[CheckpointInfo] = (),
) -> Api:
    """The application; queue and store are opened from the settings unless they are given.

    ``infos`` are checkpoints besides those that the settings name.
    """
    queue = queue or Queue(connect(settings.redis_url), farm=settings.name)
    store = store or open_store(settings.store_url, attempts=STORE_ATTEMPTS)
    sandbox = Sandbox()
    deps = _dependencies(settings, queue, store, sandbox, infos)

    @asynccontextmanager
    async def lifespan(_: Api) -> AsyncIterator[None]:
        deps.events.start()
        deps.history.start()
        yield
        deps.history.stop()
        deps.events.stop()
        sandbox.close()

    app = Api(
        title="amused-farm",
        version=farm.__version__,
        description="A render farm for aMUSEd: text-to-image, image-to-image and inpainting.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
        generate_unique_id_function=operation_id,
        redirect_slashes=False,  # otherwise the host header would decide where a caller is sent
    )
    app.state.deps = deps
    for route in (submissions, estimate, jobs, scores, usage, assets, adapters, health, docs, page):
        app.include_router(route.router)
    exception_handlers.install(app)
    body_memory = app.state.body_memory = BodyMemory(settings.max_body_memory)
    app.add_middleware(
        GZipMiddleware,
        minimum_size=COMPRESSED_BYTES,
        compresslevel=4,
        exclude_content_types=AS_THEY_ARE,
    )
    app.add_middleware(RequestGuard, authenticator=deps.authenticator, body_memory=body_memory)
    app.add_middleware(MeasureRequests, metrics=deps.metrics)
    return app


def _dependencies(
    settings: GatewaySettings,
    queue: Queue,
    store: Store,
    sandbox: Sandbox,
    infos: Sequence[CheckpointInfo],
) -> Dependencies:
    named = [inspect_checkpoint(ref).info for ref in settings.checkpoints]
    sessions = WorkerSessions(queue)
    registry = CheckpointRegistry([*infos, *named], live=lambda: live_checkpoints(sessions()))
    quotas = Quotas(queue, QuotaLimits.of(settings), partial(asset_bytes, store))
    kept = Assets(store, sandbox.probe, quotas)
    signer = Signer(
        settings.secret.get_secret_value().encode() if settings.secret else secret_of(settings.data)
    )
    keys = KeyFile(settings.keys) if settings.keys else None
    ingest = Ingest(
        queue,
        store,
        registry,
        kept,
        lambda: paces(sessions()),
        retention_days=settings.retention_days,
    )
    return Dependencies(
        settings=settings,
        queue=queue,
        sessions=sessions,
        store=store,
        sinks=Sinks(store, settings.data / "scratch" / "gateway"),
        assets=kept,
        registry=registry,
        ingest=ingest,
        remover=Remover(queue, store),
        score_room=ScoreRoom(store),
        authenticator=Authenticator(
            keys, without_keys=settings.open, now=lambda: datetime.now(UTC)
        ),
        signer=signer,
        links=Links(
            linked_store(settings, store), signer, settings.url_seconds, settings.public_url
        ),
        events=EventHub(queue, ingest.note_cancelled),
        metrics=Metrics(queue, sessions),
        history=History(queue, sessions),
        readiness=Readiness(queue, store),
        quotas=quotas,
        store_calls=CapacityLimiter(STORE_CALLS),
    )


def live_checkpoints(sessions: Iterable[Session]) -> list[CheckpointInfo]:
    """What the workers said of their checkpoints when they came."""
    found = []
    for session in sessions:
        for facts in session.info.get("checkpoints", ()):
            try:
                found.append(CheckpointInfo.model_validate(facts))
            except ValidationError:
                continue  # a worker of another version
    return found


def paces(sessions: Iterable[Session]) -> Mapping[str, float]:
    """Row-steps per second and worker, by lane, as the workers measured them."""
    found: dict[str, float] = {}
    for session in sessions:
        for lane, pace in session.paces.items():
            found[lane] = max(pace, found.get(lane, 0.0))
    return found
