"""Pictures on their way, for those who ask: the engine loop makes them, a thread sends them."""

import io
import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Set
from typing import NamedTuple

from PIL import Image

from farm.errors import FarmError
from farm.formats.origin import XMP
from farm.queue import Queue, previews
from farm.queue.previews import Preview
from farm.sinks.protocol import RowId
from farm_workers.render_engine import RenderEngine, RowPreview
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.task_rows import TaskRows

log = logging.getLogger(__name__)

SHARE = 10  # previews take at most one part in so many of the engine loop's time
EVERY_SECONDS = 0.1  # at least, between two previews
MAX_SHOWN = 8  # pictures of a job on one worker
MAX_SIDE = 256  # pixels
JPEG_QUALITY = 80
ASK_SECONDS = 1.0  # between two looks at who asks, while no one does
SEND_SECONDS = 0.4  # between two sends, while someone does


class _Made(NamedTuple):
    job: str
    picture: RowId
    preview: RowPreview


class PreviewMaker:
    """Makes one preview after another, in turn of the running rows of the jobs in ``wanted``.

    ``make`` is for the engine loop; ``wanted`` is set and ``made`` read by the thread that sends.
    """

    def __init__(self) -> None:
        self.wanted: Set[str] = frozenset()  # jobs
        self.made: Mapping[tuple[str, RowId], _Made] = {}  # by task and row; replaced as a whole
        self._next = 0.0
        self._turn: dict[tuple[str, RowId], float] = {}  # when a row was looked at last

    def make(self, tasks: Iterable[TaskRows], engines: Mapping[str, RenderEngine]) -> None:
        """One preview, if one is due. Rows that run alone, as suspects of a crash, have none."""
        if not self.wanted:
            self.made = {}
            return
        if time.monotonic() < self._next:
            return
        running = {
            (rows.task.key, picture): rows
            for rows in tasks
            if rows.task.lease.job in self.wanted and not rows.task.lease.alone
            for picture in sorted(rows.running)[:MAX_SHOWN]
        }
        self._turn = {place: self._turn.get(place, 0.0) for place in running}
        kept = {place: made for place, made in self.made.items() if place in running}
        if running:
            place = min(running, key=lambda one: self._turn[one])
            self._turn[place] = time.monotonic()
            made = self._look(*place, running[place], engines)
            if made is not None:
                kept[place] = made
        self.made = kept

    def _look(
        self, task: str, picture: RowId, rows: TaskRows, engines: Mapping[str, RenderEngine]
    ) -> _Made | None:
        started = time.monotonic()
        render, image = picture
        try:
            found = engines[rows.lane.checkpoint].preview((task, render), image)
        except Exception as error:  # such as too little memory for one more decoding
            log.warning("no more previews: %s", error)
            self._next = math.inf  # no task is to suffer for them
            return None
        if found is None:
            return None
        spent = time.monotonic() - started
        self._next = time.monotonic() + max((SHARE - 1) * spent, EVERY_SECONDS)
        return _Made(rows.task.lease.job, picture, found)


class PreviewSender:
    """``run`` is the loop of a thread of the worker; what goes wrong in it harms no task."""

    def __init__(
        self,
        queue: Queue,
        leases: LeaseTable,
        maker: PreviewMaker,
        worker: str,
        stopped: threading.Event,
    ) -> None:
        self._queue = queue
        self._leases = leases
        self._maker = maker
        self._worker = worker
        self._stopped = stopped

    def run(self) -> None:
        while not self._stopped.wait(SEND_SECONDS if self._maker.wanted else ASK_SECONDS):
            try:
                self.send()
            except FarmError as error:
                log.debug("previews: %s", error)
            except Exception:
                log.warning("no more previews", exc_info=True)
                self._maker.wanted = frozenset()
                return

    def send(self) -> None:
        """Learn who asks, and show them what was made since."""
        jobs = {task.lease.job for task in self._leases.tasks.values()}
        self._maker.wanted = previews.asked(self._queue, jobs)
        shown: dict[str, list[Preview]] = {job: [] for job in self._maker.wanted}
        for made in self._maker.made.values():
            if made.job in shown and len(shown[made.job]) < MAX_SHOWN:
                shown[made.job].append(_small(made))
        for job, pictures in shown.items():
            previews.show(self._queue, self._worker, job, pictures)


def _small(made: _Made) -> Preview:
    picture = Image.fromarray(made.preview.pixels)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY, xmp=XMP)
    found = made.preview
    return Preview(
        *made.picture, found.step, found.steps, round(found.confidence, 4), out.getvalue()
    )
