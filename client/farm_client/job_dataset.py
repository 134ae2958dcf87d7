"""A job's pictures for training, as torch's ``IterableDataset``: as they come, and afterwards."""

import copy
import io
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from torch.utils.data import IterableDataset, get_worker_info

from farm.errors import InvalidInput
from farm.formats.picture_file import read_facts, token_grid
from farm.job import TERMINAL_JOBS, JobState
from farm_client.connection import Connection, path_of
from farm_client.listing import FIRST_POLL_SECONDS, MAX_POLL_SECONDS
from farm_client.models import Page, Picture
from farm_client.runs import Run, map_ahead, read_files, runs
from farm_client.sync import drive

FRESH_SECONDS = 30.0  # addresses expire, and what trains on the rows may be slow
START = f"0.0.{10**15 - 1}"  # a cursor before all tasks that are done, and behind those that run

Row = dict[str, Any]


class Reader(NamedTuple):
    """One of several that share the rows."""

    number: int
    of: int

    def gets(self, picture: Picture) -> bool:
        return (picture.render + picture.image) % self.of == self.number


class JobDataset(IterableDataset[Any]):
    """Rows of a job, task by task in the order in which the tasks were done.

    A row is a dict: ``image``, uint8 (3, height, width), or where the job stores tokens ``tokens``,
    int64 (rows, columns); ``prompt``; ``seed``; ``render`` and ``index``, which name the picture;
    ``metadata``, the user's own columns; ``spec``, the whole render.

    Each of ``ranks`` processes, and in it each worker of a ``DataLoader``, gets rows of its own:
    the picture's name decides, so no two readers ever get the same one. A position is that of one
    reader. With workers, ``StatefulDataLoader`` of torchdata asks each of them for its position.

    Args:
        connection: to the farm.
        job: its id.
        transform: makes what is given of a row.
        follow: wait for rows until the job ends; else stop after those that are there.
        rank: of this process, from 0.
        ranks: how many processes read the job.
        parallel: pictures fetched at a time.
    """

    def __init__(
        self,
        connection: Connection,
        job: str,
        *,
        transform: Callable[[Row], Any] | None,
        follow: bool,
        rank: int,
        ranks: int,
        parallel: int,
    ) -> None:
        if not 0 <= rank < ranks:
            raise InvalidInput(f"{rank} is not one of {ranks} ranks", field="rank")
        self._connection, self._job = connection, job
        self._transform = transform
        self._follow = follow
        self._rank, self._ranks = rank, ranks
        self._parallel = parallel
        self._resumed = False
        # The position: all tasks up to the cursor were given, and these pictures of the next one.
        self._cursor, self._given = START, list[tuple[int, int]]()

    def state_dict(self) -> dict[str, Any]:
        """The position after the last row that was given."""
        return {"job": self._job, "cursor": self._cursor, "given": list(self._given)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration start at a position; those after it start at the beginning.

        Raises:
            InvalidInput: it is a position in another job.
        """
        if state["job"] != self._job:
            raise InvalidInput(f"it is a position in job {state['job']}", field="state")
        self._cursor = str(state["cursor"])
        self._given = [(int(render), int(image)) for render, image in state["given"]]
        self._resumed = True

    def __iter__(self) -> Iterator[Any]:
        if not self._resumed:
            self._cursor, self._given = START, []
        self._resumed = False
        # A process that a DataLoader started must not use its parent's connections.
        connection = copy.deepcopy(self._connection)
        try:
            with ThreadPoolExecutor(self._parallel) as pool:
                for page, cursor in self._tasks(connection):
                    wanted = runs(page, self._wanted(page.pictures))
                    whole = yield from self._rows(connection, pool, wanted)
                    if whole:
                        self._cursor, self._given = cursor, []
        finally:
            drive(connection.wire.close())

    def _tasks(self, connection: Connection) -> Iterator[tuple[Page, str]]:
        """The pictures of each task, and the cursor behind it; again until the cursor moves."""
        path, pause = path_of("v1", "jobs", self._job, "images"), FIRST_POLL_SECONDS
        while True:
            query = {"after": self._cursor, "limit": 1}  # tasks are listed whole
            page = drive(connection.call("GET", path, query=query))
            if page["next"] != self._cursor:
                pictures = map(Picture.model_validate, page["images"])
                yield Page.of(page, pictures), str(page["next"])
                pause = FIRST_POLL_SECONDS
                continue
            if not self._follow or JobState(page["state"]) in TERMINAL_JOBS:
                return
            time.sleep(pause)
            pause = min(pause * 1.5, MAX_POLL_SECONDS)

    def _wanted(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader = Reader(self._rank * workers + number, self._ranks * workers)
        given = set(self._given)
        for one in pictures:
            if one.error is None and reader.gets(one) and (one.render, one.image) not in given:
                yield one

    def _rows(
        self, connection: Connection, pool: ThreadPoolExecutor, wanted: Iterator[Run]
    ) -> Generator[Any, None, bool]:
        """Fetched some runs ahead, and given in their order, while their addresses are fresh;
        returns whether that was all of them."""
        fresh_until = time.monotonic() + FRESH_SECONDS
        whole = False

        def fresh() -> Iterator[Run]:
            nonlocal whole
            for run in wanted:
                yield run
                if time.monotonic() >= fresh_until:
                    return
            whole = True

        read = map_ahead(pool, partial(read_files, connection), fresh(), self._parallel)
        files = itertools.chain.from_iterable(read)
        # A run's pixels may take a hundred times the memory of its files.
        for row in map_ahead(pool, _row, files, 2 * self._parallel):
            given = row if self._transform is None else self._transform(row)
            self._given.append((row["render"], row["index"]))
            yield given
        return whole


def rank_and_ranks() -> tuple[int, int]:
    """This process's among those that ``torch.distributed`` knows; alone if it is not used."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _row(file: tuple[Picture, bytes]) -> Row:
    told, data = file
    row: Row = {
        "prompt": told.spec["prompt"] or "",
        "seed": told.seed,
        "render": told.render,
        "index": told.image,
        "metadata": dict(told.metadata),
        "spec": told.spec,
    }
    if (tokens := _tokens(told, data)) is not None:
        return {"tokens": torch.from_numpy(tokens.astype(np.int64)), **row}
    pixels = np.array(Pillow.open(io.BytesIO(data)).convert("RGB"))
    return {"image": torch.from_numpy(pixels).permute(2, 0, 1), **row}


def _tokens(told: Picture, data: bytes) -> Any:
    """The grid of a file of tokens; None of a picture."""
    name = str(told.file)
    if name.endswith(".u16"):
        return token_grid(data, told.spec["height"], told.spec["width"])
    return read_facts(data).tokens if name.endswith(".safetensors") else None
