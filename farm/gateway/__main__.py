"""``python -m farm.gateway``: serves until it is told to stop."""

import logging
import sys

import uvicorn

from farm.errors import FarmError
from farm.gateway.app import create_app
from farm.queue import check_server, connect
from farm.settings import GatewaySettings, load
from farm.store import open_store
from farm.store.probing import check_store

log = logging.getLogger(__name__)

GRACE_SECONDS = 5  # event streams are cut after it; their clients come again
HEADER_BYTES = 32 * 1024


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = load(GatewaySettings)
        app = create_app(settings)
        check_store(open_store(settings.store_url), single_writer=settings.single_writer)
        client = connect(settings.redis_url)
        for note in check_server(client, allow_volatile=settings.allow_volatile).notes:
            log.warning("the queue's server: %s", note)
    except FarmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_SECONDS,
        access_log=False,
        server_header=False,
        log_config=None,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
