"""The rows of a leased task that are still to be rendered, each with its inputs."""

import collections
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Executor
from typing import NamedTuple

from farm.errors import FarmError, RenderError
from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk
from farm.renders import NumberedSpec
from farm.sinks.parts import rows_of
from farm.sinks.protocol import RowId, TaskPlace
from farm.spec import Lane, Row
from farm_workers.leased_task import LeasedTask
from farm_workers.worker.inputs import Awaited, InputReader, Inputs

PREFETCH = 16  # renders whose inputs are read ahead


class ReadyRow(NamedTuple):
    """A row that can start."""

    render: int  # index in the job
    row: Row
    inputs: Inputs


class InputFailed(Exception):
    """The inputs of one render cannot be read, so none of its rows can be made."""

    def __init__(self, render: int, rows: Sequence[Row], error: FarmError) -> None:
        super().__init__(str(error))
        self.render = render
        self.rows = rows
        self.error = error


class TaskRows:
    """Belongs to the engine loop alone.

    Rows come out of ``take`` in the chunk's order, each as soon as its render's inputs are read.
    """

    def __init__(
        self,
        task: LeasedTask,
        chunk: Chunk,
        inputs: InputReader,
        executor: Executor,
        *,
        wanted: Set[RowId] | None = None,
        found: Sequence[ManifestRow] = (),
    ) -> None:
        """
        Args:
            task, chunk: what is to be rendered.
            inputs, executor: read what its renders need.
            wanted: the rows that the lease is about; None for all of its chunk's.
            found: those of them whose pictures are stored already.
        """
        self.task = task
        self.place = TaskPlace.of(chunk, task.lease.generation)
        self.lane = Lane.parse(chunk.lane)
        self.running: dict[RowId, float] = {}  # rows in the engine: when they entered it, monotonic
        self.found = found
        self.tenant = chunk.tenant
        self._renders = {numbered.render: numbered for numbered in chunk.renders}
        self._notes: dict[int, tuple[str, ...]] = {}  # of renders whose inputs were read
        self._inputs = inputs
        self._executor = executor
        self._numbers = {row: number for number, row in enumerate(rows_of(chunk))}
        left = set(self._numbers if wanted is None else wanted) - {row.picture for row in found}
        self.left_out = [  # they crashed their worker, and are not tried again
            row
            for row, number in self._numbers.items()
            if number in task.lease.skip and row in left
        ]
        self._left = left - set(self.left_out)  # not taken yet
        self._next_renders = iter([numbered for numbered in chunk.renders if self._rows(numbered)])
        self._ahead: collections.deque[tuple[NumberedSpec, Awaited]] = collections.deque()
        self._current: Iterator[ReadyRow] | None = None  # of one render
        if not task.lease.alone:
            self._read_ahead(PREFETCH)

    @property
    def running_keys(self) -> set[tuple[str, int]]:
        """The engine's keys of the rows that run."""
        return {(self.task.key, render) for render, _ in self.running}

    @property
    def next_number(self) -> int | None:
        """Of the row that ``take`` gives next, in the order of the chunk; None after the last."""
        return min((self._numbers[row] for row in self._left), default=None)

    def record(
        self,
        render: int,
        image: int,
        numerics: str,
        *,
        truncated: bool = False,
        confidence: float | None = None,
    ) -> PictureRecord:
        """What is known of a picture besides its pixels and tokens."""
        notes = self._notes.get(render, ())
        return PictureRecord(
            job=self.place.job,
            generation=self.place.generation,
            render=render,
            image=image,
            spec=self._renders[render].spec,
            numerics=numerics,
            format=self.place.format,
            notes=(*notes, "prompt_truncated") if truncated else notes,
            metadata=self._renders[render].metadata,
            confidence=confidence,
        )

    def take(self) -> ReadyRow | None:
        """The next row that can start; None while inputs are read, and after the last one.

        Of a task that runs alone nothing is read ahead: a decoder can crash as well.

        Raises:
            InputFailed: the inputs of a whole render cannot be had.
        """
        alone = self.task.lease.alone
        while True:
            if self._current is not None:
                ready = next(self._current, None)
                if ready is not None:
                    self._left.discard((ready.render, ready.row.index))
                    return ready
                self._current = None
                if alone:
                    return None  # the next row is announced before its inputs are read
            if alone:
                self._read_ahead(1)
            if not self._ahead or not self._ahead[0][1].done():
                return None
            numbered, future = self._ahead.popleft()
            if not alone:
                self._read_ahead(PREFETCH)
            inputs = self._result(numbered, future)
            self._notes[numbered.render] = inputs.notes
            rows = self._rows(numbered)
            self._current = iter([ReadyRow(numbered.render, row, inputs) for row in rows])

    def _result(self, numbered: NumberedSpec, future: Awaited) -> Inputs:
        try:
            return future.result()
        except FarmError as error:
            raise self._failed(numbered, error) from None
        except Exception as error:  # of a library that met a file it cannot take
            failure = RenderError(f"its inputs cannot be read: {error!r}")
            raise self._failed(numbered, failure) from error

    def _failed(self, numbered: NumberedSpec, error: FarmError) -> InputFailed:
        rows = self._rows(numbered)
        self._left -= {(numbered.render, row.index) for row in rows}
        return InputFailed(numbered.render, rows, error)

    def _rows(self, numbered: NumberedSpec) -> list[Row]:
        """Those of a render that are still to be made."""
        return [row for row in numbered.spec.rows() if (numbered.render, row.index) in self._left]

    def _read_ahead(self, renders: int) -> None:
        while len(self._ahead) < renders:
            numbered = next(self._next_renders, None)
            if numbered is None:
                return
            future = self._inputs.prepare(self.tenant, numbered.spec, self._executor)
            self._ahead.append((numbered, future))
