"""Half-slots for rows of one token grid: tensors that stay in place while rows come and go."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.spec import CheckpointInfo
from farm_workers.engine.device import Device, Download, Lru, lacks_memory
from farm_workers.engine.row import Conditioned, Finished, Live, Pending, row_error
from farm_workers.engine.sampler import Sampler, State, TorchSampler

KEPT_GRAPHS = 4  # of passes with adapters, each with the features of all half-slots


class Model(Protocol):
    """All that the engine knows of a masked image model.

    A *half* is one forward pass of a row: with its prompt, or with the negative one. Features are
    what the last projection, ``logits``, makes scores of, for any choice of tokens.
    """

    info: CheckpointInfo
    device: Device
    dtype: torch.dtype
    masking_schedule: str
    conditioning_size: int  # numbers of a packed prompt
    by_row: bool  # a row's bits do not depend on the batch; else they do on its shape

    def condition(
        self, pending: Pending, ahead: Iterable[Pending] = (), *, alone: bool = False
    ) -> Sequence[Conditioned]:
        """The row's halves, the one without the prompt first; ``ahead`` may share the work."""

    def bind(self, packed: Tensor) -> Any:
        """What ``forward`` takes, as views of (rows, halves, conditioning_size)."""

    def read_adapter(self, data: bytes) -> Any:
        """An adapter's file, checked; from any thread."""

    def adapter_slots(self, halves: int) -> Any:
        """Where a tile of fixed shape keeps adapters: by half-slot, an empty sequence for none.

        Before they are put in, ``reserve(adapters)`` is called. ``shape`` is None while there are
        none, and else equal where the same work is done.
        """

    def forward(
        self, tokens: Tensor, given: Any, grid: tuple[int, int], adapters: Any = ()
    ) -> Tensor:
        """Token ids (rows, tokens) to features (rows, halves, tokens, channels).

        ``adapters`` are the slots of a tile of fixed shape, or a sequence with those of each row.
        """

    def logits(self, features: Tensor) -> Tensor:
        """Features (..., channels) to scores (..., codes)."""

    def encode(self, image: NDArray[Any]) -> Tensor:
        """A picture (height, width, 3) to token ids (tokens,)."""

    def decode_width(self, grid: tuple[int, int], rows: int) -> int:
        """Pictures that are decoded together where ``rows`` step together."""

    def decode(self, tokens: Tensor, grid: tuple[int, int], *, width: int) -> Tensor:
        """Token ids (pictures, tokens) to uint8 (pictures, height, width, 3)."""

    def capture(self, grid: tuple[int, int], widths: Collection[int]) -> None:
        """Make CUDA graphs of all but ``forward``, for pictures of that size and such tiles."""

    def forget(self) -> None:
        """Give up the memory of what is kept for later rows."""

    def numerics(self, width: int) -> str:
        """The name of the numbers: in one class the same row has the same tokens and bytes."""


class Tile(ABC):
    """Rows that step together, in ``2 * width`` half-slots: a guided row takes two, another one."""

    def __init__(
        self, model: Model, grid: tuple[int, int], *, width: int, urgent: bool, on_host: bool
    ) -> None:
        self.grid, self.width, self.urgent, self.size = grid, width, urgent, 2 * width
        self.rows: list[Live] = []
        self.state = State.empty(self.size, grid[0] * grid[1], model.device.torch)
        self._model, self._free = model, list(range(self.size))
        self.sampler = self._sampler(on_host)

    def _sampler(self, on_host: bool) -> Sampler:
        if on_host:
            return TorchSampler(self._model, self.state)
        # Here and not above: Triton is made for Linux only.
        from farm_workers.engine.triton_sampler import TritonSampler

        return TritonSampler(self._model, self.state)

    @abstractmethod
    def _fill(self, live: Live, conditioned: Sequence[Conditioned]) -> None:
        """Take what a row's passes read into its half-slots."""

    @abstractmethod
    def _empty(self, live: Live) -> None:
        """Forget it again, whatever of it has come in."""

    @abstractmethod
    def _features(self) -> Tensor:
        """(half-slots, tokens, channels) of the forward pass."""

    @property
    def captured(self) -> bool:
        """Whether its step is a CUDA graph."""
        return False

    @property
    def busy(self) -> int:
        return sum(len(live.slots) for live in self.rows)

    @property
    def computed(self) -> int:
        """Half-slots that a step computes."""
        return self.busy

    @property
    def room(self) -> int:
        """Half-slots that are free."""
        return len(self._free)

    @property
    def cost(self) -> float:
        """Of one step, in tokens through the transformer: of all that are computed."""
        return self.computed * self.state.tokens.shape[1]

    def enter(self, live: Live, conditioned: Sequence[Conditioned]) -> None:
        """Take a row; where that raises, nothing of it stays."""
        live.slots = tuple(self._free.pop(0) for _ in conditioned)
        self.rows.append(live)
        try:
            self._fill(live, conditioned)
            self.sampler.enter(live, live.first_tokens(self._model.device))
        except Exception:
            self.leave(live)
            raise

    def leave(self, live: Live) -> None:
        """Drop a row, before its end or after it."""
        self._empty(live)
        self.sampler.leave(live)
        self.rows.remove(live)
        self._free = sorted((*self._free, *live.slots))

    def step(self) -> None:
        """One denoising step of every row."""
        self._advance()
        self._count(self.rows)

    def _advance(self) -> None:
        self.sampler.step(self._features(), self.rows)

    def _count(self, rows: Iterable[Live]) -> None:
        for live in rows:
            live.step += 1
            live.steps_done += 1

    def collect(self) -> list[Finished]:
        """Rows that took their last step leave; the host does not wait for what they bring."""
        done = [live for live in self.rows if live.done and live.error is None]
        if not done:
            return []
        tokens, facts, places = self.sampler.outcome(done)
        brought = Download(tokens, facts)
        for live in done:
            self.leave(live)
        return [
            Finished(live, self.grid, tokens[place], brought, place)
            for live, place in zip(done, places, strict=True)
        ]

    def failed(self) -> list[Live]:
        """Rows with an error; they leave as well."""
        found = [live for live in self.rows if live.error is not None]
        for live in found:
            self.leave(live)
        return found


class FixedTile(Tile):
    """All half-slots are computed in every step, with rows in them or not, so that the shapes
    never change, and a CUDA graph holds."""

    def __init__(
        self, model: Model, grid: tuple[int, int], *, width: int, urgent: bool, on_host: bool
    ) -> None:
        super().__init__(model, grid, width=width, urgent=urgent, on_host=on_host)
        size, device = (self.size, model.conditioning_size), model.device.torch
        self.packed = torch.zeros(size, dtype=model.dtype, device=device)
        self.adapters = model.adapter_slots(self.size)
        self._replays: dict[int, Callable[[], object]] = {}  # of a step, by the sampler's groups
        # By the adapters' shape. More would be kept for nothing: once there are more buffers,
        # the graphs that know fewer of them are never used again.
        self._adapted: Lru[Callable[..., tuple[Tensor, ...]]] = Lru(KEPT_GRAPHS, lambda graph: 1)

    @property
    def computed(self) -> int:
        return self.size

    @property
    def captured(self) -> bool:
        return bool(self._replays)

    def capture(self) -> None:
        """Record the step as CUDA graphs; called at load, while the tile is empty."""
        for groups in (1, 2):
            self._replays[groups] = self._model.device.capture(partial(self._pass, groups))

    def _pass(self, groups: int) -> None:
        self.sampler.step(self._features(), self.rows, groups)

    def _fill(self, live: Live, conditioned: Sequence[Conditioned]) -> None:
        self.adapters.reserve(conditioned[0].adapters)
        for slot, given in zip(live.slots, conditioned, strict=True):
            self.packed[slot].copy_(given.packed)
            self.adapters[slot] = given.adapters

    def _empty(self, live: Live) -> None:
        for slot in live.slots:
            self.adapters[slot] = ()
            if not live.done:
                self.state.tokens[slot].zero_()  # nothing masked: the sampler passes over it

    def _advance(self) -> None:
        if not self._replays:
            super()._advance()
        elif self.adapters.shape is None:
            self._replays[self.sampler.groups]()
        else:
            # By a graph of the forward pass alone, recorded when rows need it: the sampler's
            # state must not move while it is.
            (features,) = self._adapted.get(self.adapters.shape, self._recorded)()
            self.sampler.step(features, self.rows)

    def _recorded(self) -> Callable[..., tuple[Tensor, ...]]:
        """The forward pass as a graph, or as it is where there is no memory to record it in."""
        try:
            return self._model.device.graphed(self._features)
        except Exception as error:
            if not lacks_memory(error):
                raise
            logging.getLogger(__name__).warning("adapters run without a CUDA graph")
        torch.cuda.empty_cache()  # here and not above, where the error still holds its tensors
        return lambda: (self._features(),)

    def _features(self) -> Tensor:
        given = self._model.bind(self.packed[:, None])
        return self._model.forward(self.state.tokens, given, self.grid, self.adapters)[:, 0]


class RowTile(Tile):
    """Rows whose bits do not depend on the batch: only what is there is computed, the guided rows
    as one batch and the others as one."""

    def __init__(self, model: Model, grid: tuple[int, int], *, width: int, urgent: bool) -> None:
        super().__init__(model, grid, width=width, urgent=urgent, on_host=True)
        self._given: dict[Live, Sequence[Conditioned]] = {}
        self._bound: dict[tuple[int, ...], Any] = {}  # a batch's, until a row comes or goes
        self._computed: Tensor | None = None  # features of all half-slots

    def _fill(self, live: Live, conditioned: Sequence[Conditioned]) -> None:
        self._given[live] = conditioned
        self._bound.clear()

    def _empty(self, live: Live) -> None:
        self._given.pop(live, None)
        self._bound.clear()

    def _advance(self) -> None:
        try:
            features = self._features()
        except Exception:
            self._one_by_one()
        else:
            self.sampler.step(features, self.rows)

    def _one_by_one(self) -> None:
        """After a pass that failed: each row for itself, so that only those fail that have to."""
        for live in self.rows:
            try:
                features = self._compute([live])
            except Exception as error:
                live.error = row_error(error)
            else:
                self.sampler.step(features, [live])

    def _features(self) -> Tensor:
        for halves in (1, 2):
            alike = [live for live in self.rows if len(live.slots) == halves]
            if alike:
                self._compute(alike)
        assert self._computed is not None
        return self._computed

    def _compute(self, rows: Sequence[Live]) -> Tensor:
        """Of rows with as many halves each, beside what is known of the others."""
        slots = tuple(slot for live in rows for slot in live.slots)
        if slots not in self._bound:
            packed = torch.stack([half.packed for live in rows for half in self._given[live]])
            self._bound[slots] = self._model.bind(packed.unflatten(0, (len(rows), -1)))
        tokens = self.state.tokens[[live.slots[0] for live in rows]]
        adapters = [self._given[live][0].adapters for live in rows]
        found = self._model.forward(tokens, self._bound[slots], self.grid, adapters)
        return self._put(slots, found.flatten(0, 1))

    def _put(self, slots: Sequence[int], features: Tensor) -> Tensor:
        if self._computed is None:
            self._computed = features.new_zeros(self.size, *features.shape[1:])
        self._computed[list(slots)] = features
        return self._computed

    def first_step(self, live: Live, features: Tensor) -> None:
        """A row's first step from features (halves, tokens, channels) that are known already."""
        self.sampler.step(self._put(live.slots, features), [live])
        self._count([live])


class FirstStepCache:
    """The first forward pass of rows that start all masked: it follows from the prompt alone.

    Kept while there is room: the negative prompt's is the same for nearly every row.
    """

    def __init__(self, model: Model, *, cache_bytes: int) -> None:
        self._model = model
        self._held: Lru[Tensor] = Lru(cache_bytes, lambda features: features.nbytes)

    def of(self, conditioned: Sequence[Conditioned], grid: tuple[int, int]) -> Tensor:
        """Features (halves, tokens, channels); each half is a pass by itself, kept or not."""
        return torch.cat(
            [
                self._held.get((given.key, grid), partial(self._make, given, grid))
                for given in conditioned
            ]
        )

    def _make(self, given: Conditioned, grid: tuple[int, int]) -> Tensor:
        tokens = torch.full((1, grid[0] * grid[1]), self._model.info.mask_token_id)
        bound = self._model.bind(given.packed[None, None])
        return self._model.forward(tokens, bound, grid, [given.adapters])[0]
