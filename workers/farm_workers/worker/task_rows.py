"""The rows of a leased task that are still to be rendered, each with its inputs."""

import collections
import itertools
import operator
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Executor
from typing import NamedTuple

from farm.errors import FarmError, RenderError
from farm.formats.manifest import ManifestRow
from farm.formats.picture_record import PictureRecord
from farm.job import Chunk
from farm.sinks.parts import rows_of
from farm.sinks.protocol import RowId, TaskPlace
from farm.spec import CheckpointInfo, Lane, Row, row_seed
from farm_workers.leased_task import LeasedTask
from farm_workers.worker.inputs import NOTHING, Awaited, InputReader, Inputs

PREFETCH = 16  # renders whose inputs are read ahead
TOGETHER = 64  # rows without inputs

NumberedRow = tuple[int, Row]  # with the index of its render in the job


class ReadyRows(NamedTuple):
    """Rows that can start, with the same inputs."""

    rows: Sequence[NumberedRow]
    inputs: Inputs


class InputFailed(Exception):
    """The inputs of one render cannot be read, so none of its rows can be made."""

    def __init__(self, rows: Sequence[NumberedRow], error: FarmError) -> None:
        super().__init__(str(error))
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
        info: CheckpointInfo,
        inputs: InputReader,
        executor: Executor,
        *,
        tokens_alone: bool,
        wanted: Set[RowId] | None = None,
        found: Sequence[ManifestRow] = (),
    ) -> None:
        """
        Args:
            task, chunk: what is to be rendered.
            info: of its checkpoint.
            inputs, executor: read what its renders need.
            tokens_alone: see ``Sink``.
            wanted: the rows that the lease is about; None for all of its chunk's.
            found: those of them whose pictures are stored already.
        """
        self.task = task
        self.chunk = chunk
        self.tokens_alone = tokens_alone
        self.place = TaskPlace.of(chunk, task.lease.generation)
        self.lane = Lane.parse(chunk.lane)
        self.running: dict[RowId, float] = {}  # rows in the engine: when they entered it, monotonic
        self.found = found
        self.tenant = chunk.tenant
        self._places = {render: place for place, render in enumerate(chunk.renders.numbers)}
        self._notes_by_prompt = [info.notes_by_prompt(spec) for spec in chunk.renders.specs]
        self._notes: dict[int, tuple[str, ...]] = {}  # of renders whose inputs were read
        self._inputs = inputs
        self._executor = executor
        rows = rows_of(chunk)
        to_make = set(rows if wanted is None else wanted) - {row.picture for row in found}
        skipped = {rows[number] for number in task.lease.skip}
        # They crashed their worker, and are not tried again.
        self.left_out = [row for row in rows if row in skipped & to_make]
        to_make -= skipped
        self._numbers = [number for number, row in enumerate(rows) if row in to_make]
        self._to_make = [rows[number] for number in self._numbers]
        self._taken = 0  # of these
        self._next_groups = self._groups()
        self._ahead: collections.deque[tuple[Sequence[NumberedRow], Awaited]] = collections.deque()
        self._ready = ReadyRows((), NOTHING)
        if not task.lease.alone:
            self._read_ahead(PREFETCH)

    @property
    def running_keys(self) -> set[tuple[str, int]]:
        """The engine's keys of the rows that run."""
        return {(self.task.key, render) for render, _ in self.running}

    @property
    def next_number(self) -> int | None:
        """Of the row that ``take`` gives next, in the order of the chunk; None after the last."""
        return self._numbers[self._taken] if self._taken < len(self._numbers) else None

    def notes(self, render: int, *, truncated: bool = False) -> tuple[str, ...]:
        """What the user should know of a render's pictures, if its inputs were read."""
        notes = self._notes.get(render, ())
        return (*notes, "prompt_truncated") if truncated else notes

    def record(
        self,
        render: int,
        image: int,
        numerics: str,
        notes: tuple[str, ...],
        confidence: float | None = None,
    ) -> PictureRecord:
        """What is known of a picture besides its pixels and tokens."""
        _, spec, metadata = self.chunk.renders[self._places[render]]
        return PictureRecord(
            job=self.place.job,
            generation=self.place.generation,
            render=render,
            image=image,
            spec=spec,
            numerics=numerics,
            format=self.place.format,
            notes=notes,
            metadata=metadata,
            confidence=confidence,
        )

    def take(self, most: int) -> ReadyRows:
        """The next rows that can start, so many at most; none while inputs are read, and after the
        last ones.

        Of a task that runs alone nothing is read ahead: a decoder can crash as well.

        Raises:
            InputFailed: the inputs of a whole render cannot be had.
        """
        alone = self.task.lease.alone
        while not self._ready.rows:
            if alone:
                self._read_ahead(1)
            if not self._ahead or not self._ahead[0][1].done():
                return self._ready
            rows, future = self._ahead.popleft()
            if not alone:
                self._read_ahead(PREFETCH)
            self._ready = ReadyRows(rows, self._result(rows, future))
            self._note(self._ready)
        rows, inputs = self._ready
        self._ready = ReadyRows(rows[most:], inputs)
        taken = ReadyRows(rows[:most], inputs)
        self._taken += len(taken.rows)
        return taken

    def _note(self, ready: ReadyRows) -> None:
        kinds, places, read = self.chunk.renders.kinds, self._places, ready.inputs.notes
        self._notes |= {
            render: read + self._notes_by_prompt[kinds[places[render]]](row.prompt)
            for render, row in ready.rows
        }

    def _result(self, rows: Sequence[NumberedRow], future: Awaited) -> Inputs:
        try:
            return future.result()
        except FarmError as error:
            raise self._failed(rows, error) from None
        except Exception as error:  # of a library that met a file it cannot take
            failure = RenderError(f"its inputs cannot be read: {error!r}")
            raise self._failed(rows, failure) from error

    def _failed(self, rows: Sequence[NumberedRow], error: FarmError) -> InputFailed:
        self._taken += len(rows)
        return InputFailed(rows, error)

    def _groups(self) -> Iterator[Sequence[RowId]]:
        """Rows that start together: those of a render, or many where no render has any inputs."""
        if any(spec.assets or spec.adapters for spec in self.chunk.renders.specs):
            for _, rows in itertools.groupby(self._to_make, key=operator.itemgetter(0)):
                yield list(rows)
        else:
            for start in range(0, len(self._to_make), TOGETHER):
                yield self._to_make[start : start + TOGETHER]

    def _read_ahead(self, groups: int) -> None:
        renders, places = self.chunk.renders, self._places
        specs, kinds = renders.specs, renders.kinds
        for pictures in itertools.islice(self._next_groups, groups - len(self._ahead)):
            rows = [
                (
                    render,
                    Row(
                        specs[kinds[place := places[render]]],
                        renders.prompts[place],
                        row_seed(renders.seeds[place], image),
                        image,
                    ),
                )
                for render, image in pictures
            ]
            future = self._inputs.prepare(self.tenant, rows[0][1].kind, self._executor)
            self._ahead.append((rows, future))
