"""The HTTP server that the gateway runs in."""

import asyncio
import functools
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from farm.gateway.connections import Connections, GuardedProtocol, Limits
from farm.settings import GatewaySettings

GRACE_SECONDS = 5  # event streams are cut after it; their clients reconnect
HEADER_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 30


def server_config(app: ASGIApp, settings: GatewaySettings) -> uvicorn.Config:
    """How uvicorn serves the application; TLS where the settings name a certificate."""
    protocol = functools.partial(GuardedProtocol, table=Connections(Limits.of(settings)))
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=cast(type[asyncio.Protocol], protocol),
        ws="none",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        proxy_headers=settings.behind_proxy,
        access_log=False,
        server_header=False,
        log_config=None,
    )
