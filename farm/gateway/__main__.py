"""``python -m farm.gateway``: serves until it is told to stop."""

import logging
import sys

import uvicorn

from farm import garbage, logs, tracing
from farm.errors import FarmError
from farm.gateway.app import create_app
from farm.gateway.server import server_config
from farm.queue import Queue, check_server, connect
from farm.settings import GatewaySettings, load
from farm.store import open_store
from farm.store.probing import check_store

log = logging.getLogger(__name__)


def main() -> int:
    try:
        logs.configure("gateway")
        tracing.configure("gateway")
        settings = load(GatewaySettings)
        app = create_app(settings)
        check_store(open_store(settings.store_url), single_writer=settings.single_writer)
        client = connect(settings.redis_url)
        for note in check_server(client, allow_volatile=settings.allow_volatile).notes:
            log.warning("the queue's server: %s", note)
        kept = {"retention_days": settings.retention_days, "open_hours": settings.open_hours}
        Queue(client, farm=settings.name).keep(**kept)
    except FarmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    garbage.relax()
    uvicorn.Server(server_config(app, settings)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
