"""Half-slots for rows of one token grid: tensors that stay in place while rows come and go."""

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.spec import CheckpointInfo
from farm_workers.engine.device import Device, Download, Lru
from farm_workers.engine.row import Finished, Live, Outcome, Pending
from farm_workers.engine.sampler import Sampler, State, TorchSampler, row_error

KEPT_GRAPHS = 4  # of passes with adapters, each with the features of all half-slots


class Conditioned(Protocol):
    """A prompt as the model's forward pass takes it."""

    @property
    def key(self) -> Hashable:
        """Equal for equal prompts in equal circumstances."""

    @property
    def packed(self) -> Tensor: ...  # (conditioning_size,)
    @property
    def truncated(self) -> bool: ...
    @property
    def adapters(self) -> Sequence[Any]:
        """What the model adds to the layers of its forward pass; the same in both halves."""


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
        """Where half-slots keep their adapters: by number, an empty sequence for none.

        By row it is a list. In tiles of fixed shape it also has ``reserve(adapters)``, called
        before they are put in, and ``shape``, which is None while there are none and else equal
        where the same work is done.
        """

    def forward(
        self, tokens: Tensor, given: Any, grid: tuple[int, int], adapters: Any = ()
    ) -> Tensor:
        """Token ids (rows, tokens) to features (rows, halves, tokens, channels).

        ``adapters`` are those of all half-slots, or by row a sequence with those of each row.
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

    def numerics(self, width: int) -> str:
        """The name of the numbers: in one class the same row has the same tokens and bytes."""


class Tile:
    """Rows that step together, in ``2 * width`` half-slots: a guided row takes two, another one.

    All half-slots are computed in every step, with rows in them or not, so that the shapes never
    change.
    """

    def __init__(
        self,
        model: Model,
        grid: tuple[int, int],
        *,
        width: int,
        urgent: bool,
        on_host: bool,
    ) -> None:
        self.grid, self.width, self.urgent = grid, width, urgent
        self.rows: list[Live] = []
        self.size = 2 * width
        self._model, device = model, model.device.torch
        self.state = State.empty(self.size, grid[0] * grid[1], device)
        self.packed = torch.zeros(
            self.size, model.conditioning_size, dtype=model.dtype, device=device
        )
        self.adapters = model.adapter_slots(self.size)
        self.sampler = self._sampler(on_host)
        self._free = list(range(self.size))
        self._replay: Callable[[], object] | None = None
        # By the adapters' shape. More would be kept for nothing: once there are more buffers,
        # the graphs that know fewer of them are never used again.
        self._adapted: Lru[Callable[..., tuple[Tensor, ...]]] = Lru(KEPT_GRAPHS, lambda graph: 1)

    def _sampler(self, on_host: bool) -> Sampler:
        if on_host:
            return TorchSampler(self._model, self.state)
        # Here and not above: Triton is made for Linux only.
        from farm_workers.engine.triton_sampler import TritonSampler

        return TritonSampler(self._model, self.state, self._model.device)

    @property
    def busy(self) -> int:
        return sum(len(live.slots) for live in self.rows)

    @property
    def computed(self) -> int:
        """Half-slots that a step computes."""
        return self.size

    @property
    def room(self) -> int:
        """Half-slots that are free."""
        return self.size - self.busy

    @property
    def cost(self) -> float:
        """Of one step, in tokens through the transformer: of all that are computed."""
        return self.computed * self.state.tokens.shape[1]

    def enter(self, live: Live, conditioned: Sequence[Conditioned]) -> None:
        """Take a row; where that raises, nothing of it stays."""
        self._reserve(conditioned[0].adapters)
        live.slots = self._take(len(conditioned))
        self.rows.append(live)
        try:
            self.sampler.enter(live, live.first_tokens(self._model.device))
            for slot, given in zip(live.slots, conditioned, strict=True):
                self.packed[slot].copy_(given.packed)
                self.adapters[slot] = given.adapters
        except Exception:
            self.leave(live)
            raise

    def _reserve(self, adapters: Sequence[Any]) -> None:
        self.adapters.reserve(adapters)

    def _take(self, halves: int) -> tuple[int, ...]:
        return tuple(self._free.pop(0) for _ in range(halves))

    def leave(self, live: Live) -> None:
        """Drop a row before its end."""
        self._release(live)
        for slot in live.slots:
            self.state.tokens[slot].zero_()  # nothing masked: the sampler passes over it

    def _release(self, live: Live) -> None:
        self.rows.remove(live)
        self._free = sorted((*self._free, *live.slots))
        for slot in live.slots:
            self.adapters[slot] = ()

    def step(self) -> None:
        """One denoising step of every row."""
        if self._replay is None:
            self._advance()
        elif self.adapters.shape is None:
            self._replay()
        else:
            self._advance_adapted(self.adapters.shape)
        self._count(self.rows)

    def _advance_adapted(self, shape: Hashable) -> None:
        """By a graph of the forward pass alone, recorded when rows need it: the sampler's state
        must not move while it is.
        """
        (features,) = self._adapted.get(shape, self._recorded)()
        self.sampler.step(features, self.rows)

    def _recorded(self) -> Callable[..., tuple[Tensor, ...]]:
        """The forward pass as a graph, or as it is where there is no memory to record it in."""
        try:
            return self._model.device.graphed(self._features)
        except torch.OutOfMemoryError:
            logging.getLogger(__name__).warning("adapters run without a CUDA graph")
        torch.cuda.empty_cache()  # here and not above, where the error still holds its tensors
        return lambda: (self._features(),)

    def _advance(self) -> None:
        self.sampler.step(self._features(), self.rows)

    def _features(self) -> Tensor:
        """(half-slots, tokens, channels) of the forward pass."""
        given = self._model.bind(self.packed[:, None])
        return self._model.forward(self.state.tokens, given, self.grid, self.adapters)[:, 0]

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
        outcome = Outcome(Download(tokens, facts))
        for live in done:
            self._release(live)
        return [
            Finished(live, self.grid, tokens[place], outcome, place)
            for live, place in zip(done, places, strict=True)
        ]

    def failed(self) -> list[Live]:
        """Rows with an error; they leave as well."""
        found = [live for live in self.rows if live.error is not None]
        for live in found:
            self.leave(live)
        return found

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def capture(self) -> None:
        """Record the step as a CUDA graph; called at load, while the tile is empty."""
        self._replay = self._model.device.capture(self._advance)


class RowTile(Tile):
    """Rows whose bits do not depend on the batch: only what is there is computed.

    Guided rows lie in pairs of half-slots from the lower end, the others in single ones from the
    upper end, both without gaps, so that each kind is one batch.
    """

    def __init__(self, model: Model, grid: tuple[int, int], *, width: int, urgent: bool) -> None:
        super().__init__(model, grid, width=width, urgent=urgent, on_host=True)
        self._bound: dict[tuple[int, int, int], Any] = {}  # by start, stop and halves
        self._computed: Tensor | None = None  # features of all half-slots

    @property
    def computed(self) -> int:
        return self.busy

    def _kind(self, halves: int) -> list[Live]:
        return [live for live in self.rows if len(live.slots) == halves]

    def _take(self, halves: int) -> tuple[int, ...]:
        count = len(self._kind(halves))
        return (2 * count, 2 * count + 1) if halves == 2 else (self.size - 1 - count,)

    def _reserve(self, adapters: Sequence[Any]) -> None:
        """There is nothing to make room for."""

    def leave(self, live: Live) -> None:
        self._release(live)

    def _release(self, live: Live) -> None:
        """The last row of its kind moves into the gap."""
        last = max(self._kind(len(live.slots)), key=lambda one: abs(one.slots[0] - self._end(one)))
        if last is not live:
            for target, source in zip(live.slots, last.slots, strict=True):
                for held in (*self.state, self.packed, self.adapters):
                    held[target] = held[source]
        for slot in last.slots:
            self.adapters[slot] = ()
        last.slots = live.slots
        self.rows.remove(live)

    def _end(self, live: Live) -> int:
        return 0 if len(live.slots) == 2 else self.size

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
                slots = slice(live.slots[0], live.slots[-1] + 1)
                self._compute(slots, len(live.slots))
            except Exception as error:
                live.error = row_error(error)
            else:
                self.sampler.step(self._all(), [live])

    def _features(self) -> Tensor:
        guided, plain = len(self._kind(2)), len(self._kind(1))
        if guided:
            self._compute(slice(0, 2 * guided), 2)
        if plain:
            self._compute(slice(self.size - plain, self.size), 1)
        return self._all()

    def _compute(self, slots: slice, halves: int) -> None:
        key = (slots.start, slots.stop, halves)
        if key not in self._bound:
            rows = (slots.stop - slots.start) // halves
            self._bound[key] = self._model.bind(self.packed[slots].unflatten(0, (rows, halves)))
        tokens = self.state.tokens[slots.start : slots.stop : halves]
        adapters = self.adapters[slots.start : slots.stop : halves]
        found = self._model.forward(tokens, self._bound[key], self.grid, adapters)
        self._place(slots, found.flatten(0, 1))

    def _place(self, slots: slice, features: Tensor) -> None:
        if self._computed is None:
            self._computed = features.new_zeros(self.size, *features.shape[1:])
        self._computed[slots] = features

    def _all(self) -> Tensor:
        assert self._computed is not None
        return self._computed

    def first_step(self, live: Live, features: Tensor) -> None:
        """A row's first step from features (halves, tokens, channels) that are known already."""
        self._place(slice(live.slots[0], live.slots[-1] + 1), features)
        self.sampler.step(self._all(), [live])
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
