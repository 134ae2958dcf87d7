"""A line on stderr that tells how far a job has got."""

import sys

from farm_client.models import JobStatus


def print_progress(status: JobStatus) -> None:
    images = status.images
    line = f"{status.id} {status.state} {images.finished}/{images.total}"
    if images.failed:
        line += f" ({images.failed} failed)"
    end = "\n" if status.ended or not sys.stderr.isatty() else ""
    start = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{start}{line}", end=end, file=sys.stderr, flush=True)
