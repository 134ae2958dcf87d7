"""The engine: rows in, one denoising step at a time, pictures out."""

import contextlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.checkpoints.inspect import Checkpoint, inspect_checkpoint
from farm.errors import InvalidInput, OutOfMemory
from farm.spec import CheckpointInfo, Lane, RenderRequest, RenderSpec, Row, derived_seed
from farm_workers.engine.device import Device, Download, lacks_memory
from farm_workers.engine.generate import Picture, generate
from farm_workers.engine.row import (
    Conditioned,
    Finished,
    Leaving,
    Live,
    Pending,
    Preview,
    Result,
    cells,
    fitting,
    row_error,
    start,
)
from farm_workers.engine.sampler import mean_confidence
from farm_workers.engine.tile import FirstStepCache, Model, RowTile, Tile
from farm_workers.engine.tile_pool import StepPolicy, TilePool
from farm_workers.render_engine import Usage

LOOK_AHEAD = 32  # waiting rows whose prompts may share the work of a row's admission
FIRST_STEP_BYTES = 1 << 25

T = TypeVar("T")


class Engine:
    """Renders rows of one checkpoint in all modes; not to be called from two threads at once."""

    def __init__(self, model: Model, *, rows: int | None = None, tile: int = 8) -> None:
        """Around a loaded model, ready to run; see ``load`` for the arguments."""
        if min(rows or 1, tile) < 1:
            raise InvalidInput("rows and tile must be at least 1", field="rows")
        self._model, self._width = model, tile
        self.rows, self.numerics = rows or 8 * tile, model.numerics(tile)
        self._pending: list[Pending] = []
        self._finished: list[Finished] = []
        self._leaving: deque[Leaving] = deque()
        self._results: list[Result] = []  # that the next step hands out
        self._policy = StepPolicy()
        self._tiles = TilePool(model, width=tile)
        self._first_steps = FirstStepCache(model, cache_bytes=FIRST_STEP_BYTES)
        what = f"a tile of {tile} guided rows"
        with _fitting(what, model.device), torch.inference_mode(), model.device.scope():
            self._tiles.warm_up()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint | str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        rows: int | None = None,
        tile: int = 8,
        threads: int | None = None,
        graphs: bool = True,
    ) -> Self:
        """Load a checkpoint's parts, once for all modes.

        Args:
            checkpoint: a directory, a built-in name, a hub id with its commit, or one inspected.
            rows: how many the engine holds at once; 8 times ``tile`` unless said.
            tile: guided rows that step together; twice as many where there is no guidance. A
                part of the numerics class on a GPU, where urgent rows step alone.
            threads: of torch on the CPU; part of the numerics class.
            graphs: on a GPU, work of fixed shape as CUDA graphs: much less for the host to do.

        Raises:
            InvalidCheckpoint: it is not there, or not one of aMUSEd.
            OutOfMemory: it does not fit on the device, or not with such a tile.
        """
        from farm_workers.engine.amused import AmusedModel

        if threads is not None:
            torch.set_num_threads(threads)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = inspect_checkpoint(checkpoint)
        target = Device(device, graphs=graphs)
        with _fitting(checkpoint.info.name, target), torch.inference_mode(), target.scope():
            model = AmusedModel.load(checkpoint, target, dtype)
        return cls(model, rows=rows, tile=tile)

    @property
    def device(self) -> str:
        """For people: ``CPU``, or a GPU's number on its machine and its model."""
        return self._model.device.label

    @property
    def checkpoint(self) -> CheckpointInfo:
        return self._model.info

    def read_adapter(self, data: bytes) -> Any:
        """An adapter's file as ``add`` takes it; any thread may call this, beside the step loop.

        Raises:
            InvalidInput: it is not an adapter, or not one for this checkpoint.
        """
        return self._model.read_adapter(data)

    @property
    def usage(self) -> Usage:
        return self._tiles.usage

    @property
    def held(self) -> int:
        """Rows inside: waiting, on their way, or waiting for their pictures."""
        waiting = len(self._pending) + len(self._finished) + len(self._results)
        waiting += sum(len(leaving.rows) for leaving in self._leaving)
        return waiting + sum(len(tile.rows) for tile in self._tiles)

    @property
    def idle(self) -> bool:
        return self.held == 0

    def room(self, lane: Lane | None = None) -> int:
        """Rows that can be added now; none of a lane of another checkpoint."""
        if lane is not None and lane.checkpoint != self.checkpoint.name:
            return 0
        return max(self.rows - self.held, 0)

    def add(
        self,
        key: Hashable,
        row: Row | RenderSpec | RenderRequest,
        image: NDArray[Any] | None = None,
        mask: NDArray[Any] | None = None,
        latents: NDArray[Any] | None = None,
        embeds: Any | None = None,
        urgent: bool = False,
        adapters: Mapping[str, Any] = MappingProxyType({}),
        pixels: bool = True,
    ) -> None:
        """Take a row, or all rows of a spec or request; they start with the next step.

        Args:
            key: comes back with each result, beside the row's index in its render.
            image: uint8 (height, width, 3); ``mask`` is uint8 (height, width), 255 is repainted.
            latents: token ids (token rows, columns).
            embeds: has the four arrays of ``farm.tensors.Embeds``.
            urgent: goes before all rows that are not.
            adapters: those that the spec names, by sha256, as ``read_adapter`` gives them.
            pixels: whether the picture is wanted; else nothing is decoded, and the result has None.

        Raises:
            InvalidInput: the arrays do not fit the spec, or there is no room.
        """
        if isinstance(row, RenderRequest):
            row = row.resolve(
                self.checkpoint,
                seed=derived_seed(0, 0),
                picture=None if image is None else image.shape[:2],
            )
        rows = list(row.rows()) if isinstance(row, RenderSpec) else [row]
        if len(rows) > self.room():
            raise InvalidInput(
                f"{len(rows)} rows do not fit beside the {self.held} that the engine holds",
                field="rows",
                hint=f"it takes {self.rows}; step it until room() is {len(rows)}",
            )
        given = (image, mask, latents, embeds, adapters, pixels)
        pending = [Pending(key, one, urgent, *given) for one in rows]
        pending[0].check(self.checkpoint)
        self._pending += pending

    def generate(
        self,
        requests: Iterable[RenderRequest | Mapping[str, Any]],
        *,
        images: Iterable[Picture | None] | None = None,
        masks: Iterable[Picture | None] | None = None,
        adapters: Mapping[str, str | Path | bytes] = MappingProxyType({}),
        seed: int = 0,
    ) -> Iterator[Result]:
        """Results as they finish: ``key`` is the number of the request, ``index`` its picture's.

        The iterables are read as far as there is room, so they may be of any length. What is
        wrong with one request is the ``error`` of its result; the others go on.

        Args:
            requests: as the farm takes them, but for the names of files.
            images: for each request a picture or None: a path, a file's bytes, a PIL image or an
                array, uint8 (height, width, 3) or (height, width).
            masks: likewise; white areas are repainted.
            adapters: files of low-rank adapters, by the names that requests give them.
            seed: the seeds of requests without one follow from it and their number.

        Raises:
            InvalidInput: the engine has other rows, an adapter does not fit the checkpoint, or
                there are fewer pictures than requests.
        """
        return generate(self, requests, images, masks, adapters, seed)

    @torch.inference_mode()
    def cancel(self, keys: Iterable[Hashable]) -> None:
        """Drop the rows of these keys; none of them comes out of a later step."""
        gone = set(keys)
        self._pending = [held for held in self._pending if held.key not in gone]
        self._finished = [held for held in self._finished if held.live.pending.key not in gone]
        self._results = [result for result in self._results if result.key not in gone]
        for leaving in list(self._leaving):
            if any(held.live.pending.key in gone for held in leaving.rows):
                self._leaving.remove(leaving)
                self._results += [
                    result for result in self._delivered(leaving) if result.key not in gone
                ]
        with self._model.device.scope():
            for tile in self._tiles:
                for live in list(tile.rows):
                    if live.pending.key in gone:
                        tile.leave(live)

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """The next piece of work, and the rows that have left since the last one.

        A piece is a row's admission, a tile's step or a tile's decoding. A GPU may still be at it
        when this returns; its results come with a later call.
        """
        with self._model.device.scope():
            results, self._results = self._results, []
            tiles = self._tiles.live
            work = self._policy.choose(self._ready(bool(tiles)), tiles)
            match work:
                case Pending():
                    self._pending.remove(work)
                    self._admit(work)
                case Tile():
                    self._advance(work)
                    self._model.device.keep_pace()
                case Finished():
                    self._decode(self._with_its_like(work))
                    self._model.device.keep_pace()
            nothing_else = work is None and not results
            while self._leaving and (nothing_else or self._leaving[0].ready):
                results += self._delivered(self._leaving.popleft())
                nothing_else = False
        return results

    def _ready(self, stepping: bool) -> list[Pending | Finished]:
        """Of each class: pictures to decode, else the first row whose tile has room."""
        found: list[Pending | Finished] = []
        for urgent in (True, False):
            finished = [held for held in self._finished if held.urgent is urgent]
            # Bulk pictures wait until they fill a tile, or until there is nothing else to do.
            if finished and (urgent or not stepping or self._fill_a_tile(finished)):
                found.append(finished[0])
                continue
            waiting = [held for held in self._pending if held.urgent is urgent]
            pending = self._tiles.next(waiting)
            if pending is not None:
                found.append(pending)
        return found

    def _decode_width(self, grid: tuple[int, int], *, urgent: bool) -> int:
        return self._model.decode_width(grid, self._tiles.width_of(grid, urgent=urgent))

    def _fill_a_tile(self, finished: Sequence[Finished]) -> bool:
        """Whether the bulk pictures of the first one's size do."""
        grid = finished[0].grid
        pictures = sum(held.pictures for held in finished if held.grid == grid)
        return pictures >= self._decode_width(grid, urgent=False)

    def _with_its_like(self, first: Finished) -> list[Finished]:
        """The picture and others of its size and class that fit into a tile with it."""
        alike = (first.grid, first.urgent)
        same = [held for held in self._finished if (held.grid, held.urgent) == alike]
        rows = fitting(same, self._decode_width(first.grid, urgent=first.urgent))
        self._finished = [held for held in self._finished if held not in rows]
        return rows

    @torch.inference_mode()
    def decode(self, tokens: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """The picture (height, width, 3) of finished tokens (rows, columns): the bytes that a bulk
        row with these tokens has in this numerics class, unless it is inpainted. Of many together,
        (pictures, rows, columns), which on a GPU take hardly longer than one: all their pictures.

        Raises:
            InvalidInput: they are not those of a picture of this checkpoint.
        """
        codes = self.checkpoint.codebook_size
        if tokens.ndim not in (2, 3) or not tokens.size:
            raise InvalidInput(f"has the shape {tokens.shape}, not (rows, columns)", field="tokens")
        wrong = tokens[(tokens < 0) | (tokens >= codes)]
        if wrong.size:  # a GPU would be of no use from then on
            raise InvalidInput(f"has the token {wrong[0]}; 0 to {codes - 1} exist", field="tokens")
        rows, columns = tokens.shape[-2:]
        width = self._decode_width((rows, columns), urgent=False)
        grids = tokens.astype(np.int64).reshape(-1, rows * columns)
        with self._model.device.scope():
            flat = self._model.device.upload(torch.from_numpy(grids))
            pixels = self._model.decode(flat, (rows, columns), width=width)
            pictures: NDArray[np.uint8]
            (pictures,) = Download(pixels).arrays()
        return pictures if tokens.ndim == 3 else pictures[0]

    @torch.inference_mode()
    def preview(self, key: Hashable, index: int) -> Preview | None:
        """The row's predicted picture after its last step; None when it is not on its way."""
        inside = ((tile, live) for tile in self._tiles for live in tile.rows)
        for tile, live in inside:
            pending, slot = live.pending, live.slots[0]
            if (pending.key, pending.row.index) == (key, index) and live.steps_done:
                steps = live.steps_done, live.spec.row_steps
                with self._model.device.scope():
                    tokens = tile.state.predicted[slot : slot + 1]
                    pixels = self._model.decode(tokens, tile.grid, width=1)[0].cpu().numpy()
                    confidence = mean_confidence(tile.state.probability[slot], live.painted)
                return Preview(key, index, *steps, pixels, confidence)
        return None

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do it; where memory is short, again without what waits for later rows: graphs go last."""
        for captured in (False, True):
            try:
                return work()
            except Exception as error:
                if not lacks_memory(error):
                    raise
            # Here and not above, where the error still holds its tensors.
            self._tiles.make_room(captured=captured)
        return work()

    def _admit(self, pending: Pending) -> None:
        try:
            tile, live, conditioned = self._with_room(partial(self._enter, pending))
        except Exception as error:
            failed = Result.failed(pending.key, pending.row.index, row_error(error))
            self._results.append(failed)
            return
        if isinstance(tile, RowTile) and live.painted.all():
            try:
                tile.first_step(live, self._first_steps.of(conditioned, tile.grid))
            except Exception as error:
                live.error = row_error(error)
            self._collect(tile)

    def _enter(self, pending: Pending) -> tuple[Tile | None, Live, Sequence[Conditioned]]:
        """Make a row ready and put it into its tile, unless there is nothing to do for it."""
        model = self._model
        ahead = [held for held in self._pending[:LOOK_AHEAD] if held.urgent is pending.urgent]
        conditioned = model.condition(pending, ahead, alone=pending.urgent)
        before = None if pending.image is None else model.encode(pending.image)
        live = start(pending, model.info, before, model.masking_schedule)
        live.truncated = any(given.truncated for given in conditioned)
        if live.done:
            self._finish([self._untouched(live)])
            return None, live, conditioned
        tile = self._tiles.tile(pending)
        tile.enter(live, conditioned)
        return tile, live, conditioned

    def _untouched(self, live: Live) -> Finished:
        """A row without a masked token: it has its picture already."""
        tokens = live.first_tokens(self._model.device)
        facts = torch.tensor([[1.0, 0.0]], device=tokens.device)
        grid = self._model.info.grid(live.spec.height, live.spec.width)
        return Finished(live, grid, tokens, Download(tokens[None], facts), 0)

    def _advance(self, tile: Tile) -> None:
        try:
            self._with_room(partial(self._tiles.step, tile))
        except Exception as error:
            for live in tile.rows:
                live.error = row_error(error)
            self._collect(tile)
            self._tiles.drop(tile)
        else:
            self._collect(tile)

    def _collect(self, tile: Tile) -> None:
        """Rows that took their last step, or failed, leave their half-slots."""
        self._results += [live.failure() for live in tile.failed()]
        self._finish(tile.collect())

    def _finish(self, rows: Sequence[Finished]) -> None:
        """Rows that finished together: those whose pictures are wanted wait to be decoded."""
        self._finished += [held for held in rows if held.live.pending.pixels]
        if told := [held for held in rows if not held.live.pending.pixels]:
            self._leaving.append(Leaving(told))

    def _decode(self, rows: Sequence[Finished]) -> None:
        """Pictures of one size and class, as many as go through the decoder together."""
        try:
            pixels = self._with_room(partial(self._pixels, rows))
        except Exception as error:
            if len(rows) > 1:
                for held in rows:  # so that only those fail that have to
                    self._decode([held])
                return
            live = rows[0].live
            live.error = row_error(error)
            self._results.append(live.failure())
        else:
            self._leaving.append(Leaving(rows, Download(pixels)))

    def _pixels(self, rows: Sequence[Finished]) -> Tensor:
        grid, urgent = rows[0].grid, rows[0].urgent
        kept = {place: held.live.kept for place, held in enumerate(rows)}
        inputs = {place: whole for place, whole in kept.items() if whole is not None}
        tokens = torch.stack([*(held.tokens for held in rows), *inputs.values()])
        pixels = self._model.decode(tokens, grid, width=self._decode_width(grid, urgent=urgent))
        for place, whole in zip(inputs, pixels[len(rows) :], strict=True):
            shown = self._model.device.upload(cells(rows[place].live.painted, grid, whole.shape))
            pixels[place] = torch.where(shown, pixels[place], whole)
        return pixels[: len(rows)]

    def _delivered(self, leaving: Leaving) -> list[Result]:
        numerics = self.numerics
        if leaving.rows[0].urgent:
            numerics = numerics.replace(self._model.numerics(self._width), self._model.numerics(1))
        return leaving.results(numerics)


@contextlib.contextmanager
def _fitting(what: str, device: Device) -> Iterator[None]:
    """What does not fit on the device is told of as the user's affair."""
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise OutOfMemory(
            f"{what} does not fit into the memory of {device.label}",
            hint="load with a smaller tile, or end what else takes memory there",
        ) from None
