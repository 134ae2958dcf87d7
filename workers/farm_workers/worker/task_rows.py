"""The rows of a leased task that are still to be rendered, each with its inputs."""

import collections
import itertools
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
from farm.spec import CheckpointInfo, Lane, Row
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
        self._renders = {numbered.render: numbered for numbered in chunk.renders}
        notes = chunk.renders.of_each(info.notes_by_prompt)
        prompts = zip(chunk.renders.numbers, notes, chunk.renders.prompts, strict=True)
        self._notes = {render: of_prompt(prompt) for render, of_prompt, prompt in prompts}
        self._read: dict[int, tuple[str, ...]] = {}  # the notes of inputs that were read
        self._inputs = inputs
        self._executor = executor
        rows = rows_of(chunk)
        to_make = set(rows if wanted is None else wanted) - {row.picture for row in found}
        skipped = {rows[number] for number in task.lease.skip}
        # They crashed their worker, and are not tried again.
        self.left_out = [row for row in rows if row in skipped & to_make]
        self._to_make = to_make - skipped
        self._numbers = collections.deque(  # in the chunk, of the rows that were not taken yet
            number for number, row in enumerate(rows) if row in self._to_make
        )
        self._next_renders = self._renders_to_make()
        self._ahead: collections.deque[tuple[int, list[Row], Awaited]] = collections.deque()
        self._ready: collections.deque[ReadyRow] = collections.deque()  # of one render
        if not task.lease.alone:
            self._read_ahead(PREFETCH)

    @property
    def running_keys(self) -> set[tuple[str, int]]:
        """The engine's keys of the rows that run."""
        return {(self.task.key, render) for render, _ in self.running}

    @property
    def next_number(self) -> int | None:
        """Of the row that ``take`` gives next, in the order of the chunk; None after the last."""
        return self._numbers[0] if self._numbers else None

    def notes(self, render: int, *, truncated: bool = False) -> tuple[str, ...]:
        """What the user should know of a render's pictures, if its inputs were read."""
        read = self._read.get(render)
        if read is None:
            return ()
        notes = (*read, *self._notes[render]) if read else self._notes[render]
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
        return PictureRecord(
            job=self.place.job,
            generation=self.place.generation,
            render=render,
            image=image,
            spec=self._renders[render].spec,
            numerics=numerics,
            format=self.place.format,
            notes=notes,
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
        while not self._ready:
            if alone:
                self._read_ahead(1)
            if not self._ahead or not self._ahead[0][2].done():
                return None
            render, rows, future = self._ahead.popleft()
            if not alone:
                self._read_ahead(PREFETCH)
            inputs = self._result(render, rows, future)
            self._read[render] = inputs.notes
            self._ready.extend([ReadyRow(render, row, inputs) for row in rows])
        self._numbers.popleft()
        return self._ready.popleft()

    def _result(self, render: int, rows: Sequence[Row], future: Awaited) -> Inputs:
        try:
            return future.result()
        except FarmError as error:
            raise self._failed(render, rows, error) from None
        except Exception as error:  # of a library that met a file it cannot take
            failure = RenderError(f"its inputs cannot be read: {error!r}")
            raise self._failed(render, rows, failure) from error

    def _failed(self, render: int, rows: Sequence[Row], error: FarmError) -> InputFailed:
        for _ in rows:
            self._numbers.popleft()
        return InputFailed(render, rows, error)

    def _renders_to_make(self) -> Iterator[tuple[NumberedSpec, list[Row]]]:
        """Those with rows to make, and these."""
        for numbered in self._renders.values():
            rows = [
                Row(numbered.spec, index)
                for index in range(numbered.spec.num_images)
                if (numbered.render, index) in self._to_make
            ]
            if rows:
                yield numbered, rows

    def _read_ahead(self, renders: int) -> None:
        missing = renders - len(self._ahead)
        for numbered, rows in itertools.islice(self._next_renders, missing):
            future = self._inputs.prepare(self.tenant, numbered.spec, self._executor)
            self._ahead.append((numbered.render, rows, future))
