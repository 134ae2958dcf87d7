"""A line on stderr that tells how far a job has got."""

import sys
from collections.abc import Callable

from farm_client.models import JobStatus


def progress_line() -> Callable[[JobStatus], None]:
    """What prints it: in a terminal one line that changes, elsewhere a new one for each percent."""
    last: object = None

    def show(status: JobStatus) -> None:
        nonlocal last
        images = status.images
        line = f"{status.id} {status.state} {images.finished}/{images.total}"
        if images.failed:
            line += f" ({images.failed} failed)"
        if sys.stderr.isatty():
            end = "\n" if status.ended else ""
            print(f"\r\x1b[K{line}", end=end, file=sys.stderr, flush=True)
            return
        reached = status.state, 100 * images.finished // max(images.total, 1)
        if reached != last:
            print(line, file=sys.stderr, flush=True)
        last = reached

    return show
