"""A lease in a worker's hands: which of its rows wait, run and are stored."""

import collections
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Executor, Future

from farm.errors import FarmError, RenderError
from farm.formats.manifest import ManifestRow
from farm.job import Chunk, Lease, NumberedSpec, Priority
from farm.sinks.parts import rows_of
from farm.sinks.protocol import RowId, TaskPlace
from farm.spec import Lane, Row
from farm_workers.worker.inputs import InputReader, Inputs

PREFETCH = 16  # renders whose inputs are read ahead


class LeasedTask:
    """One lease with its chunk; belongs to the worker's main loop alone.

    Its rows come out of ``next_row`` in the chunk's order, each once its render's inputs are read.
    """

    def __init__(
        self,
        lease: Lease,
        chunk: Chunk,
        inputs: InputReader,
        executor: Executor,
        wanted: Set[RowId] | None = None,
        found: Sequence[ManifestRow] = (),
    ) -> None:
        """
        Args:
            lease, chunk: what the task is.
            inputs, executor: read what its renders need.
            wanted: the rows that the lease is about; None for all of its chunk's.
            found: those of them whose pictures are stored already.
        """
        self.lease = lease
        self.chunk = chunk
        self.place = TaskPlace.of(chunk, lease.generation)
        self.lane = Lane.parse(chunk.lane)
        self.urgent = lease.priority is Priority.URGENT
        self.specs = {numbered.render: numbered.spec for numbered in chunk.renders}
        self.notes: dict[int, tuple[str, ...]] = {}  # of renders whose inputs were read
        self.running: collections.Counter[int] = collections.Counter()  # rows in the engine
        self.stored = 0  # pictures in the store
        self.failed = 0  # pictures that ended with an error of their own
        self.handed_over = 0  # pictures given to the publisher, failed ones included
        self._inputs = inputs
        self._executor = executor
        self.places = {row: place for place, row in enumerate(rows_of(chunk))}
        wanted = self.places.keys() if wanted is None else wanted
        self.pictures = len(wanted)
        self.found = found
        there = {row.picture for row in found}
        self.left_out = [
            row
            for row, place in self.places.items()
            if place in lease.skip and row in wanted and row not in there
        ]
        self._todo = set(wanted) - there - set(self.left_out)  # not taken yet
        self.at_place: int | None = None  # of the row that is next, where rows run one by one
        self.told_place: int | None = None  # the last one that a beat has told of
        self._source = iter([numbered for numbered in chunk.renders if self.rows(numbered)])
        self._ahead: collections.deque[tuple[NumberedSpec, Future[Inputs]]] = collections.deque()
        self._rows: Iterator[Row] | None = None
        self._current: tuple[NumberedSpec, Inputs] | None = None
        if not lease.alone:
            self._read_ahead(PREFETCH)

    @property
    def key(self) -> str:
        return self.lease.key

    def rows(self, numbered: NumberedSpec) -> list[Row]:
        """Those of a render that are still to be made."""
        return [row for row in numbered.spec.rows() if (numbered.render, row.index) in self._todo]

    @property
    def row_keys(self) -> set[tuple[str, int]]:
        """The engine's keys of the rows that run."""
        return {(self.key, render) for render, rows in self.running.items() if rows}

    @property
    def complete(self) -> bool:
        """Every picture is with the publisher."""
        return self.handed_over == self.pictures

    @property
    def next_place(self) -> int | None:
        """Of the row that ``next_row`` will return; None after the last."""
        return min((self.places[row] for row in self._todo), default=None)

    def next_row(self) -> tuple[NumberedSpec, Row, Inputs] | None:
        """The next row that can start; ``None`` while inputs are read, and at the end.

        Of a task that runs alone nothing is read before it is called: a decoder can crash as well.

        Raises:
            InputFailed: the inputs of a whole render cannot be had.
        """
        while True:
            if self._rows is not None and self._current is not None:
                row = next(self._rows, None)
                if row is not None:
                    self._todo.discard((self._current[0].render, row.index))
                    return self._current[0], row, self._current[1]
                self._rows = self._current = None
                if self.lease.alone:
                    return None  # the next one is told of before it is read
            if self.lease.alone:
                self._read_ahead(1)
            if not self._ahead or not self._ahead[0][1].done():
                return None
            numbered, future = self._ahead.popleft()
            if not self.lease.alone:
                self._read_ahead(PREFETCH)
            try:
                inputs = future.result()
            except FarmError as error:
                raise self._failed(numbered, error) from None
            except Exception as error:  # of a library that met a file it cannot take
                wrong = RenderError(f"its inputs cannot be read: {error!r}")
                raise self._failed(numbered, wrong) from error
            self.notes[numbered.render] = inputs.notes
            self._current, self._rows = (numbered, inputs), iter(self.rows(numbered))

    def _failed(self, numbered: NumberedSpec, error: FarmError) -> "InputFailed":
        rows = self.rows(numbered)
        self._todo -= {(numbered.render, row.index) for row in rows}
        return InputFailed(numbered.render, rows, error)

    def _read_ahead(self, renders: int) -> None:
        while len(self._ahead) < renders:
            numbered = next(self._source, None)
            if numbered is None:
                return
            self._ahead.append(
                (numbered, self._inputs.prepare(self.chunk.tenant, numbered.spec, self._executor))
            )


class InputFailed(Exception):
    """The inputs of one render cannot be read, so none of its rows can be made."""

    def __init__(self, render: int, rows: Sequence[Row], error: FarmError) -> None:
        super().__init__(str(error))
        self.render = render
        self.rows = rows
        self.error = error
