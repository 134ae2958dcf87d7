"""``farm watch`` and ``farm wait``."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from farm.cli.arguments import AsJson, JobId, JobIds
from farm.cli.output import fail, one_line, pictures, say_error, say_json
from farm.errors import FarmError, TimedOut
from farm_client import Farm, Job, JobStatus
from farm_client.job import check_ended

PLAIN_SECONDS = 5.0  # between two lines if the output is not a terminal
RATE_SECONDS = 30.0  # the rate is that of so many last seconds

Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="S", help="Give up after this many seconds (exit code 4)."),
]


def watch(job: JobId, timeout: Timeout = None, as_json: AsJson = False) -> int:
    """Follow a job until it ends; the exit code says how it ended."""
    watched = Farm().job(job)
    return watch_job(watched, timeout=timeout, as_json=as_json)


def wait(jobs: JobIds, timeout: Timeout = None, as_json: AsJson = False) -> int:
    """Wait until jobs have ended. The exit code is the first one that is not 0."""
    farm = Farm()
    end = None if timeout is None else time.monotonic() + timeout
    code = 0
    for handle in [farm.job(job) for job in jobs]:
        left = None if end is None else max(end - time.monotonic(), 0.0)
        try:
            status = handle.wait(left, check=False)
        except TimedOut as error:
            return fail(error)
        if as_json:
            say_json(status.model_dump(mode="json"))
        code = code or tell_end(status)
    return code


def watch_job(job: Job, *, timeout: float | None = None, as_json: bool = False) -> int:
    with _display(as_json) as show:
        if timeout is not None:
            try:
                status = job.wait(timeout, progress=show, check=False)
            except TimedOut as error:
                return fail(error)
        else:
            for status in job.events():
                show(status)
    return tell_end(status, quiet=as_json)


def tell_end(status: JobStatus, *, quiet: bool = False) -> int:
    """Says how a job ended, and gives the exit code for it."""
    try:
        check_ended(status)
    except FarmError as error:
        return fail(error)
    if not quiet:
        say_error(f"{status.id} {status.state}: {pictures(status.images.done)}")
    return 0


@contextmanager
def _display(as_json: bool) -> Iterator[Callable[[JobStatus], None]]:
    if as_json:
        yield lambda status: say_json(status.model_dump(mode="json"))
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield _Plain().show


class _Plain:
    """A line now and then."""

    def __init__(self) -> None:
        self._told = float("-inf")
        self._last: tuple[str, int] | None = None
        self._rate = Rate()

    def show(self, status: JobStatus) -> None:
        images = status.images
        self._rate.add(images.finished)
        now = time.monotonic()
        state = (str(status.state), images.finished)
        changed = self._last is None or self._last[0] != state[0]
        if state == self._last or not (changed or now - self._told >= PLAIN_SECONDS):
            return
        self._told, self._last = now, state
        say_error(f"{status.id} {status.state} {images.finished}/{images.total}{_tail(self._rate)}")


class Rate:
    """Pictures per second over the last while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._points: list[tuple[float, int]] = []

    def add(self, count: int) -> None:
        now = self._clock()
        self._points.append((now, count))
        while len(self._points) > 2 and now - self._points[1][0] > RATE_SECONDS:
            self._points.pop(0)

    @property
    def value(self) -> float | None:
        if len(self._points) < 2:
            return None
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start and last > first else None


def _tail(rate: Rate) -> str:
    return f" {rate.value:.1f}/s" if rate.value else ""


@contextmanager
def _bar() -> Iterator[Callable[[JobStatus], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    rate = Rate()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=None, rate="")

        def show(status: JobStatus) -> None:
            images = status.images
            rate.add(images.finished)
            text = str(status.state)
            if images.failed:
                text += f", {images.failed} failed"
            label = f"{status.name[:30]} " if status.name else ""
            progress.update(
                bar,
                description=one_line(f"{label}{text}"),
                completed=images.finished,
                total=images.total,
                rate=_rate_text(rate.value, images.total - images.finished),
            )

        yield show


def _rate_text(rate: float | None, left: int) -> str:
    if not rate:
        return ""
    seconds = int(left / rate)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    eta = f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
    return f"{rate:.1f}/s, {eta} left"
