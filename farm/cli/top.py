"""``farm top``: for operators; it reads the queue, so it works when the gateway does not."""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from farm.cli.arguments import FarmData
from farm.cli.output import counted, duration, one_line, say_json
from farm.cli.queue import connect_queue
from farm.errors import FarmError
from farm.measures import ENGINE_SECONDS, PICTURES, ROW_STEPS, Measure, read

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

    from farm.queue import LaneBacklog, Queue, Session, Tallies

ROWS = 12  # of each table; the busiest
LEFT = {"lane", "tenant", "worker", "host", "doing"}  # columns of text
FOLDED = 12  # characters that a long text has at least
GAP = 2  # between two columns
PIPED = 10_000  # characters of a line, where no terminal limits it


def top(
    every: Annotated[
        float, typer.Option(metavar="S", help="Seconds between two looks.", min=0.2, max=60)
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one view, and end.")] = False,
    data: FarmData = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line per look.")] = False,
) -> None:
    """Watch the farm: lanes, tenants, workers, rates, ages and failures. Ctrl-C ends it. Like farm
    queue it needs the queue's address (REDIS_URL), or a farm on this machine."""
    queue = connect_queue(data)
    before = look(queue)
    if once or as_json:
        while True:
            time.sleep(every)
            now = look(queue)
            view, before = View.between(before, now), now
            if as_json:
                say_json(view.as_json())
            else:
                _print(view)
            if once:
                return
    _live(queue, before, every)


def _print(view: "View") -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else PIPED).print(drawn(view))


def _live(queue: "Queue", before: "Look", every: float) -> None:
    from rich.live import Live

    view: RenderableType = "looking at the queue"
    with Live(view, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                now = look(queue)
                view, before = drawn(View.between(before, now)), now
            except FarmError as error:
                view = one_line(f"{error}; trying again")
            live.update(view, refresh=True)


class Look(NamedTuple):
    """What the queue said at a time."""

    at: float  # of ``time.monotonic``
    backlog: "tuple[LaneBacklog, ...]"
    tallies: "Tallies"
    sessions: "tuple[Session, ...]"


def look(queue: "Queue", clock: Callable[[], float] = time.monotonic) -> Look:
    backlog = tuple(queue.backlog())
    return Look(clock(), backlog, queue.tallies(), tuple(queue.sessions()))


class LaneRow(NamedTuple):
    lane: str
    queued: int  # pictures
    pictures: float  # a second
    row_steps: float  # a second of engine time


class TenantRow(NamedTuple):
    tenant: str
    pictures: float  # a second
    row_steps: float  # a second
    all_pictures: int


class WorkerRow(NamedTuple):
    worker: str
    host: str
    busy: float  # the share of the time that its engine worked
    pictures: float  # a second
    tasks: int
    room: int
    silent: float  # seconds
    doing: str


class View(NamedTuple):
    """What happened between two looks."""

    seconds: float
    lanes: tuple[LaneRow, ...]
    tenants: tuple[TenantRow, ...]
    workers: tuple[WorkerRow, ...]
    oldest: Mapping[str, float]  # by class, seconds
    failed: Mapping[str, int]  # pictures, since the queue began
    failing: float  # a second
    lost: int  # leases, since the queue began

    @classmethod
    def between(cls, before: Look, now: Look) -> "View":
        seconds = max(now.at - before.at, 1e-3)
        failed = sum(now.tallies.failed.values()) - sum(before.tallies.failed.values())
        return cls(
            seconds,
            _lanes(before, now, seconds),
            _tenants(before, now, seconds),
            _workers(before, now, seconds),
            {str(priority): age for priority, age in now.tallies.oldest_seconds.items()},
            dict(now.tallies.failed),
            max(failed, 0) / seconds,
            now.tallies.leases_lost,
        )

    def as_json(self) -> dict[str, Any]:
        rows = {name: [row._asdict() for row in getattr(self, name)] for name in _TABLES}
        return {**self._asdict(), **rows}


_TABLES = ("lanes", "tenants", "workers")


def _lanes(before: Look, now: Look, seconds: float) -> tuple[LaneRow, ...]:
    queued: Counter[str] = Counter()
    for work in now.backlog:
        queued[str(work.lane)] += work.pictures
    pictures = _grown(before, now, PICTURES, "lane")
    row_steps = _grown(before, now, ROW_STEPS, "lane")
    busy = _grown(before, now, ENGINE_SECONDS, "lane")
    rows = [
        LaneRow(
            lane,
            queued[lane],
            pictures[lane] / seconds,
            row_steps[lane] / busy[lane] if busy[lane] else 0.0,
        )
        for lane in queued.keys() | {lane for lane in busy if busy[lane]}
    ]
    return tuple(sorted(rows, key=lambda row: (-row.queued, -row.pictures, row.lane)))


def _tenants(before: Look, now: Look, seconds: float) -> tuple[TenantRow, ...]:
    rows = []
    for name, tenant in now.tallies.tenants.items():
        old = before.tallies.tenants.get(name)
        pictures = tenant.pictures - (old.pictures if old else 0)
        row_steps = tenant.row_steps - (old.row_steps if old else 0)
        rows.append(TenantRow(name, pictures / seconds, row_steps / seconds, tenant.pictures))
    return tuple(sorted(rows, key=lambda row: (-row.row_steps, -row.all_pictures, row.tenant)))


def _workers(before: Look, now: Look, seconds: float) -> tuple[WorkerRow, ...]:
    busy = _grown(before, now, ENGINE_SECONDS, "worker")
    pictures = _grown(before, now, PICTURES, "worker")
    return tuple(
        WorkerRow(
            one.worker,
            str(one.info.get("host", "")),
            min(busy[one.worker] / seconds, 1.0),
            pictures[one.worker] / seconds,
            one.held,
            one.room,
            one.seen_ms / 1000,
            one.command or ", ".join(one.stats.get("lanes", ())),
        )
        for one in sorted(now.sessions, key=lambda one: one.worker)
    )


def _grown(before: Look, now: Look, measure: Measure, label: str) -> dict[str, float]:
    """By how much a counter of the workers has grown, by a label or by worker.

    A session that was not there before counts from zero.
    """
    grown: dict[str, float] = defaultdict(float)
    living = {one.session for one in now.sessions}
    for sign, sessions in ((-1, before.sessions), (1, now.sessions)):
        for one in sessions:
            if one.session in living:
                for _, labels, value in read(one.stats, measure):
                    place = one.worker if label == "worker" else labels[label]
                    grown[place] += sign * value
    return grown


def drawn(view: View) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    total = sum(row.pictures for row in view.workers)
    queued = sum(row.queued for row in view.lanes)
    workers = counted(len(view.workers), "worker")
    oldest = ", ".join(f"{name} {duration(age)}" for name, age in view.oldest.items()) or "none"
    failed = ", ".join(f"{count:,} {reason}" for reason, count in view.failed.items()) or "none"
    head = (
        f"{workers}, {total:.1f} pictures/s, {queued:,} pictures queued\n"
        f"oldest ready job: {oldest}\n"
        f"failed pictures: {failed} ({view.failing:.1f}/s); leases lost: {view.lost:,}\n"
    )
    return Group(
        Text(head),
        _Table(
            ("lane", "queued", "pictures/s", "row-steps per engine second"),
            [
                (row.lane, f"{row.queued:,}", f"{row.pictures:.1f}", f"{row.row_steps:.0f}")
                for row in view.lanes
            ],
        ),
        _Table(
            ("tenant", "pictures/s", "row-steps/s", "pictures"),
            [
                (row.tenant, f"{row.pictures:.1f}", f"{row.row_steps:.0f}", f"{row.all_pictures:,}")
                for row in view.tenants
            ],
        ),
        _Table(
            ("worker", "busy", "pictures/s", "tasks", "room", "heartbeat", "host", "doing"),
            [
                (
                    row.worker, f"{row.busy:.0%}", f"{row.pictures:.1f}", f"{row.tasks}",
                    f"{row.room:,}", duration(row.silent), row.host, row.doing or "nothing",
                )
                for row in view.workers
            ],
        ),
    )  # fmt: skip


class _Table:
    """Its columns on the right are left out where the terminal has no room for them; a long name
    and what a worker does take several lines."""

    def __init__(self, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        self._names = names
        self._rows = [tuple(map(one_line, row)) for row in rows[:ROWS]]
        self._more = len(rows) - ROWS

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> "Iterator[RenderableType]":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, expand=False)
        count = self._fitting(options.max_width)
        for place, name in enumerate(self._names[:count]):
            folds = self._folds(place)
            table.add_column(
                name,
                justify="left" if name in LEFT else "right",
                no_wrap=not folds,
                overflow="fold" if folds else "ellipsis",
            )
        for row in self._rows:
            table.add_row(*map(Text, row[:count]))
        if self._more > 0:
            table.add_row(f"and {self._more} more")
        yield table

    def _fitting(self, width: int) -> int:
        columns = zip(self._names, *self._rows, strict=True)
        widths = [max(map(len, column)) for column in columns]
        for place, one in enumerate(widths):
            if self._folds(place):
                widths[place] = min(one, FOLDED)
        count = len(widths)
        while count > 1 and sum(widths[:count]) + GAP * (count - 1) > width:
            count -= 1
        return count

    def _folds(self, place: int) -> bool:
        return place == 0 or self._names[place] == "doing"
