"""``farm render``: the farm's engine and file formats in one process, without queue or cluster."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from farm.errors import FarmError
from farm.formats.encoding import encode
from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk, Format
from farm.renders import NumberedSpec
from farm.sinks.parts import rows_of
from farm.sinks.protocol import RowId, Sink, TaskPlace
from farm.spec import CheckpointInfo, Row
from farm_workers.render_engine import CONFIDENCE_DIGITS, RenderEngine
from farm_workers.worker.inputs import Awaited, InputReader, Inputs

PREFETCH = 16  # renders whose inputs are read ahead
WRITERS = 2  # threads that encode and write


class _Ready(NamedTuple):
    numbered: NumberedSpec
    inputs: Awaited


class _OpenTask:
    """A chunk until all of its pictures are stored."""

    def __init__(self, chunk: Chunk) -> None:
        self.place = TaskPlace.local(chunk)
        self.pictures = chunk.pictures
        self.rows: list[ManifestRow] = []
        self.found: set[RowId] = set()  # of pictures that lie in the sink already


class LocalRenderer:
    """Renders chunks into a sink.

    Args:
        engines: by checkpoint name, as in the specs.
        infos: of the same checkpoints.
        read_asset: gives an asset's bytes by its id.
        sink: where the pictures go.
        resume: pictures that lie there already are not made again.
    """

    def __init__(
        self,
        engines: Mapping[str, RenderEngine],
        infos: Mapping[str, CheckpointInfo],
        read_asset: Callable[[str], bytes],
        sink: Sink,
        resume: bool = False,
    ) -> None:
        self._engines = engines
        self._infos = infos
        self._sink = sink
        self._resume = resume
        self._loaders = ThreadPoolExecutor(2, thread_name_prefix="load")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._inputs = InputReader(lambda _, asset: read_asset(asset), infos, engines)
        self._notes: dict[int, tuple[str, ...]] = {}  # of renders that have rows left
        self._left: collections.Counter[int] = collections.Counter()
        self._tasks: dict[int, _OpenTask] = {}  # by render
        self._written: collections.deque[Future[ManifestRow]] = collections.deque()

    def render(self, chunks: Iterable[Chunk]) -> Iterator[ManifestRow]:
        """One row per picture, in the order in which they are stored; memory stays flat."""
        try:
            source = self._renders(chunks)
            ahead: collections.deque[_Ready] = collections.deque()
            rows: collections.deque[tuple[NumberedSpec, Row, Inputs]] = collections.deque()
            more = True
            while more or ahead or rows or not self._idle:
                while more and len(ahead) < PREFETCH:
                    numbered = next(source, None)
                    more = numbered is not None
                    if numbered is not None:
                        ahead.append(
                            _Ready(numbered, self._inputs.prepare("", numbered.spec, self._loaders))
                        )
                while ahead and len(rows) < PREFETCH:
                    if not ahead[0].inputs.done() and (rows or not self._idle):
                        break  # there is other work meanwhile
                    self._open(ahead.popleft(), rows)
                self._admit(rows)
                self._step()
                yield from self._finished(wait=len(self._written) > 4 * PREFETCH)
            while self._written:
                yield from self._finished(wait=True)
        finally:
            self._loaders.shutdown(cancel_futures=True)
            self._writers.shutdown(cancel_futures=True)

    def _renders(self, chunks: Iterable[Chunk]) -> Iterator[NumberedSpec]:
        for chunk in chunks:
            task = _OpenTask(chunk)
            for numbered in chunk.renders:
                self._tasks[numbered.render] = task
            if self._resume:
                self._take_over(task, chunk)
            # All at once: the task may be over before the next one is asked for.
            yield from [numbered for numbered in chunk.renders if self._rows_left(numbered)]

    def _take_over(self, task: _OpenTask, chunk: Chunk) -> None:
        rows = self._sink.stored_pictures(task.place, chunk, set(rows_of(chunk)))
        if self._sink.sharded and len(rows) < task.pictures:
            return  # nothing is added to a shard; it is made again as a whole
        task.found = {row.picture for row in rows}
        for row in rows:
            self._written.append(_done(row))

    @property
    def _idle(self) -> bool:
        return all(engine.idle for engine in self._engines.values())

    def _open(
        self, ready: _Ready, rows: "collections.deque[tuple[NumberedSpec, Row, Inputs]]"
    ) -> None:
        numbered = ready.numbered
        try:
            inputs = ready.inputs.result()
        except FarmError as error:
            for row in self._rows_left(numbered):
                self._fail(numbered, row.index, error)
            return
        left = self._rows_left(numbered)
        notes = self._infos[numbered.spec.checkpoint].notes(numbered.spec)
        self._notes[numbered.render] = (*inputs.notes, *notes)
        self._left[numbered.render] = len(left)
        rows.extend((numbered, row, inputs) for row in left)

    def _rows_left(self, numbered: NumberedSpec) -> list[Row]:
        found = self._tasks[numbered.render].found
        return [row for row in numbered.spec.rows() if (numbered.render, row.index) not in found]

    def _admit(self, rows: "collections.deque[tuple[NumberedSpec, Row, Inputs]]") -> None:
        while rows and self._engines[rows[0][1].spec.checkpoint].room(rows[0][1].spec.lane) > 0:
            numbered, row, inputs = rows.popleft()
            try:
                pixels = self._tasks[numbered.render].place.format is not Format.TOKENS
                engine = self._engines[row.spec.checkpoint]
                engine.add(numbered, row, pixels=pixels, **inputs.given)
            except FarmError as error:
                self._row_over(numbered)
                self._fail(numbered, row.index, error)

    def _step(self) -> None:
        for engine in self._engines.values():
            if engine.idle:
                continue
            for result in engine.step():
                numbered = result.key
                notes = self._row_over(numbered)
                if result.error is not None:
                    self._fail(numbered, result.index, result.error)
                    continue
                if result.truncated:
                    notes = (*notes, "prompt_truncated")
                assert result.tokens is not None
                confidence = round(result.confidence, CONFIDENCE_DIGITS)
                record = self._record(numbered, result.index, result.numerics, notes, confidence)
                self._written.append(
                    self._writers.submit(self._write, record, result.pixels, result.tokens)
                )

    def _row_over(self, numbered: NumberedSpec) -> tuple[str, ...]:
        """What was noted of a render's inputs; forgotten with its last row."""
        self._left[numbered.render] -= 1
        if self._left[numbered.render]:
            return self._notes[numbered.render]
        del self._left[numbered.render]
        return self._notes.pop(numbered.render)

    def _write(
        self,
        record: PictureRecord,
        pixels: NDArray[np.uint8] | None,
        tokens: NDArray[np.integer],
    ) -> ManifestRow:
        if self._sink.tokens_alone:
            return record.tokens_row(tokens)
        data = encode(pixels, record.facts(tokens), record.format)
        return self._sink.store_picture(self._tasks[record.render].place, record, data)

    def _fail(self, numbered: NumberedSpec, image: int, error: FarmError) -> None:
        numerics = self._engines[numbered.spec.checkpoint].numerics
        self._written.append(_done(self._record(numbered, image, numerics).failed_row(error)))

    def _record(
        self,
        numbered: NumberedSpec,
        image: int,
        numerics: str,
        notes: tuple[str, ...] = (),
        confidence: float | None = None,
    ) -> PictureRecord:
        place = self._tasks[numbered.render].place
        return PictureRecord(
            job=place.job,
            generation=place.generation,
            render=numbered.render,
            image=image,
            spec=numbered.spec,
            numerics=numerics,
            format=place.format,
            notes=notes,
            metadata=numbered.metadata,
            confidence=confidence,
        )

    def _finished(self, *, wait: bool) -> Iterator[ManifestRow]:
        while self._written and (wait or self._written[0].done()):
            yield from self._stored(self._written.popleft().result())
            wait = False

    def _stored(self, row: ManifestRow) -> Iterator[ManifestRow]:
        """The rows that are final now; those of a shard are with its last picture."""
        task = self._tasks[row.render]
        task.rows.append(row)
        whole = len(task.rows) == task.pictures
        if whole:
            known = len(task.found) == task.pictures
            stored = task.rows if known else self._sink.store_task(task.place, task.rows)
            self._sink.forget(task.place)
            for render in {one.render for one in task.rows}:
                del self._tasks[render]
        if not self._sink.sharded:
            yield row
        elif whole:
            yield from stored


def _done(row: ManifestRow) -> "Future[ManifestRow]":
    future: Future[ManifestRow] = Future()
    future.set_result(row)
    return future
