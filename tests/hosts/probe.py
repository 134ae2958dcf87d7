"""What the queue says of its workers, once and then at every line of standard input, as JSON."""

import json
import os
import sys

from farm.errors import FarmError
from farm.queue import Queue, connect


def main() -> None:
    queue = Queue(connect(os.environ["REDIS_URL"]))
    while True:
        try:
            told = [[one.session, one.worker, one.held] for one in queue.sessions()]
        except FarmError:
            told = None
        print(json.dumps(told), flush=True)
        if not sys.stdin.readline():
            return


if __name__ == "__main__":
    main()
