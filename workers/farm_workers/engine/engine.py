"""The engine: rows in, one denoising step at a time, pictures out."""

import itertools
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from farm.checkpoints.inspect import Checkpoint, inspect_checkpoint
from farm.errors import FarmError, InvalidInput, OutOfMemory, RenderError
from farm.spec import CheckpointInfo, Lane, Row
from farm_workers.engine.admission import Live, Pending, start
from farm_workers.engine.checkpoint import Parts, load_parts, numerics_class
from farm_workers.engine.codec import Codec
from farm_workers.engine.conditioning import Conditioning
from farm_workers.engine.done import Done, Finished, Preview, decoded, mean_confidence
from farm_workers.engine.opening import Openings
from farm_workers.engine.tile_pool import TilePool
from farm_workers.engine.tiles import Tile
from farm_workers.engine.turns import Turns

AHEAD = 32  # waiting rows whose prompts may fill a tile of the text encoder
CACHE_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}  # of prompts' conditioning


class Engine:
    def __init__(self, parts: Parts, *, rows: int, tile: int, numerics: str) -> None:
        self._parts = parts
        self.rows, self.numerics = rows, numerics
        self._codec = Codec(parts, width=tile)
        self._conditioning = Conditioning(parts, cache_bytes=CACHE_BYTES[parts.device.type])
        self._openings = Openings(parts, cache_bytes=CACHE_BYTES[parts.device.type] // 4)
        self._pending: list[Pending] = []
        self._finished: list[Finished] = []
        self._tiles = TilePool(parts, width=tile)
        self._failed: list[Done] = []
        self._turns = Turns()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint | str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        rows: int | None = None,
        tile: int = 8,
        strict: bool = True,
        threads: int | None = None,
        model: str = "farm",
    ) -> Self:
        """Load a checkpoint's parts, once for all modes.

        Args:
            checkpoint: a directory, a built-in name, a hub id with its commit, or one inspected.
            rows: how many the engine holds at once.
            tile: guided rows that step together; twice as many where there is no guidance.
            strict: a row's bits never depend on its neighbours. Without it rows share matrix
                products, which is a little faster and gives reproducibility up.
            threads: of torch on the CPU; part of the numerics class.
            model: ``farm``, or ``diffusers`` for UVit2DModel itself.
        """
        if min(rows or 1, tile) < 1:
            raise InvalidInput("rows and tile must be at least 1", field="rows")
        if threads is not None:
            torch.set_num_threads(threads)
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = inspect_checkpoint(checkpoint)
        target = torch.device(device)
        if target.type == "cuda" and dtype == "float32":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        with torch.inference_mode():
            parts = load_parts(checkpoint, target, dtype, model=model, strict=strict)
        return cls.of(parts, rows=rows, tile=tile, model=model)

    @classmethod
    def of(
        cls, parts: Parts, *, rows: int | None = None, tile: int = 8, model: str = "farm"
    ) -> Self:
        """An engine around loaded parts, ready to run."""
        width = f"tile {tile}" if parts.padded else "by row"
        if parts.transformer.together and not parts.padded:
            width = "loose"
        numerics = numerics_class(parts, model=model, width=width)
        engine = cls(parts, rows=rows or 8 * tile, tile=tile, numerics=numerics)
        with torch.inference_mode():
            engine._tiles.warm_up()
        return engine

    @property
    def checkpoint(self) -> CheckpointInfo:
        return self._parts.info

    @property
    def held(self) -> int:
        """Rows inside: waiting, on their way, or waiting to be decoded."""
        waiting = len(self._pending) + len(self._finished) + len(self._failed)
        return waiting + sum(len(tile.rows) for tile in self._tiles)

    @property
    def idle(self) -> bool:
        return self.held == 0

    def room(self, lane: Lane | None = None) -> int:
        """Rows that can be added now."""
        return max(self.rows - self.held, 0)

    def add(
        self,
        key: Hashable,
        row: Row,
        image: NDArray[np.uint8] | None = None,
        mask: NDArray[np.uint8] | None = None,
        latents: NDArray[Any] | None = None,
        embeds: Any | None = None,
        urgent: bool = False,
    ) -> None:
        """Take a row; it starts with the next step.

        Raises:
            InvalidInput: the arrays do not fit the row's spec.
        """
        pending = Pending(key, row, urgent, image, mask, latents, embeds)
        pending.check(self.checkpoint)
        self._pending.append(pending)

    @torch.inference_mode()
    def cancel(self, keys: Iterable[Hashable]) -> None:
        """Drop the rows of these keys; none of them comes out of a later step."""
        gone = set(keys)
        self._pending = [held for held in self._pending if held.key not in gone]
        self._finished = [held for held in self._finished if held.live.pending.key not in gone]
        self._failed = [done for done in self._failed if done.key not in gone]
        for tile in self._tiles:
            for slot in reversed(range(len(tile.rows))):
                if tile.rows[slot].pending.key in gone:
                    tile.leave(slot)

    @torch.inference_mode()
    def step(self) -> list[Done]:
        """The next piece of work: a row's admission, a tile's step or a tile's decoding."""
        done, self._failed = self._failed, []
        tiles = self._tiles.live
        work = self._turns.choose(self._ready(bool(tiles)), tiles)
        match work:
            case Pending():
                self._pending.remove(work)
                self._admit(work)
            case Tile():
                self._advance(work)
            case Finished():
                done += self._decode(work)
        return done

    def _ready(self, stepping: bool) -> list[Pending | Finished]:
        """Of each class: pictures to decode, else the first row whose tile has room."""
        found: list[Pending | Finished] = []
        for urgent in (True, False):
            finished = [held for held in self._finished if held.urgent is urgent]
            # Bulk pictures wait until they fill a tile, or until there is nothing else to do.
            full = bool(finished) and len(finished) >= self._codec.width(finished[0].grid)
            if finished and (urgent or full or not stepping):
                found.append(finished[0])
                continue
            waiting = (held for held in self._pending if held.urgent is urgent)
            found += itertools.islice((held for held in waiting if self._tiles.has_room(held)), 1)
        return found

    def preview(self, key: Hashable, index: int) -> Preview | None:
        """The row's predicted picture after its last step; None when it is not on its way."""
        for tile in self._tiles:
            for slot, live in enumerate(tile.rows):
                if (live.pending.key, live.pending.row.index) == (key, index) and live.steps_done:
                    return self._preview(tile, slot, live)
        return None

    @torch.inference_mode()
    def _preview(self, tile: Tile, slot: int, live: Live) -> Preview:
        pixels = self._codec.decode(tile.predicted[slot : slot + 1], tile.grid)[0]
        return Preview(
            live.pending.key,
            live.pending.row.index,
            live.steps_done,
            live.spec.row_steps,
            pixels.cpu().numpy(),
            mean_confidence(tile.probability[slot], live.painted),
        )

    def _admit(self, pending: Pending) -> None:
        parts, spec = self._parts, pending.row.spec
        try:
            ahead = [held.row.spec.prompt or "" for held in self._pending[:AHEAD]]
            conditioned = self._conditioning.of(spec, pending.embeds, ahead)
            live, tokens = start(pending, parts.info, self._codec, parts.masking_schedule)
            live.truncated = any(given.truncated for given in conditioned)
            if live.done:
                grid = parts.info.grid(spec.height, spec.width)
                self._finished.append(Finished(live, grid, tokens.to(parts.device), 1.0))
            else:
                tile = self._tiles.tile(pending)
                tile.enter(live, tokens, conditioned)
                if tile.by_row and live.painted.all():
                    opening = self._openings.of(conditioned, tile.grid)
                    tile.advance(len(tile.rows) - 1, opening)
                    self._collect(tile)
        except FarmError as error:
            self._failed.append(Done.failure(pending, error))
        except torch.cuda.OutOfMemoryError:
            error = OutOfMemory("the row's picture did not fit on the GPU", hint="make it smaller")
            self._failed.append(Done.failure(pending, error))

    def _advance(self, tile: Tile) -> None:
        try:
            tile.step()
        except torch.cuda.OutOfMemoryError:
            for live in tile.rows:
                error = OutOfMemory("a step did not fit on the GPU", hint="load a smaller tile")
                self._failed.append(Done.failure(live.pending, error, live.steps_done))
            self._tiles.drop(tile)
        else:
            self._collect(tile)

    def _collect(self, tile: Tile) -> None:
        """Rows that took their last step leave their slots."""
        for slot in reversed(range(len(tile.rows))):
            live = tile.rows[slot]
            if not live.done:
                continue
            if tile.failed(slot):
                error = RenderError(
                    "the model's scores are not finite for this row",
                    hint="check its embeds and the checkpoint; its neighbours are not concerned",
                )
                self._failed.append(Done.failure(live.pending, error, live.steps_done))
            else:
                confidence = mean_confidence(tile.probability[slot], live.painted)
                tokens = tile.tokens[slot].clone()
                self._finished.append(Finished(live, tile.grid, tokens, confidence))
            tile.leave(slot)

    def _decode(self, first: Finished) -> list[Done]:
        """The picture and others of its size and class that fit into a tile with it."""
        alike = (first.grid, first.urgent)
        same = [held for held in self._finished if (held.grid, held.urgent) == alike]
        same = same[: self._codec.width(first.grid)]
        self._finished = [held for held in self._finished if held not in same]
        return decoded(self._codec, same)
