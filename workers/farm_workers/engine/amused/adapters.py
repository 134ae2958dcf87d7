"""Low-rank adapters: what they add to the linear layers that they change.

An adapter adds ``up @ down @ x``, times alpha / rank and the row's scale, to what a layer makes of
``x`` (Hu et al., arXiv 2106.09685). Rows with different adapters, and without, share a tile.
"""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from farm.formats.adapter_file import AdapterLayer, Targets, read_adapter_file
from farm_workers.engine.device import Device

RANK_STEP = 16  # a tile of fixed shape takes ranks in such steps, each a product by itself


class LowRank(NamedTuple):
    """What is added to one layer."""

    down: Tensor  # (rank, inputs)
    up: Tensor  # (outputs, rank)
    told: AdapterLayer


@dataclass(frozen=True, eq=False)
class Adapter:
    """The matrices of a file, by the names of the layers within each part of the model."""

    transformer: Mapping[str, LowRank]
    text_encoder: Mapping[str, LowRank]

    @property
    def nbytes(self) -> int:
        layers = (*self.transformer.values(), *self.text_encoder.values())
        return sum(layer.down.nbytes + layer.up.nbytes for layer in layers)

    def to(self, device: Device, dtype: torch.dtype) -> "Adapter":
        parts = (self.transformer, self.text_encoder)
        matrices = [one for part in parts for layer in part.values() for one in layer[:2]]
        moved = iter(device.upload_all(matrices, dtype))
        return Adapter(
            *(
                {name: LowRank(next(moved), next(moved), one.told) for name, one in part.items()}
                for part in parts
            )
        )


def read_adapter(data: bytes, targets: Targets) -> Adapter:
    """A file's matrices, on the CPU and as they are stored; needs no engine and no device.

    Args:
        targets: the checkpoint's layers, see ``adapter_targets``.

    Raises:
        InvalidInput: it is not an adapter, or not one for this checkpoint.
    """
    told = read_adapter_file(data, targets)
    tensors = safetensors.torch.load(data)
    parts: dict[str, dict[str, LowRank]] = {"transformer": {}, "text_encoder": {}}
    for layer in told.layers:
        part, _, name = layer.name.partition(".")
        parts[part][name] = LowRank(tensors[layer.down], tensors[layer.up], layer)
    return Adapter(**parts)


class Scaled(NamedTuple):
    """One of a row's adapters, on the device."""

    adapter: Adapter
    scale: float


class Adapters(Protocol):
    """The adapters of the rows of one pass."""

    def add(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        """``y`` (rows, ..., outputs) after what they make of ``x`` is added to it, in place."""


class RowAdapters:
    """Each row's products by themselves: PEFT's arithmetic (``lora.Linear``), bit for bit."""

    def __init__(self, rows: Sequence[Sequence[Scaled]], part: str = "transformer") -> None:
        self._rows: list[list[tuple[Mapping[str, LowRank], float]]] = [
            [(getattr(adapter, part), scale) for adapter, scale in row] for row in rows
        ]

    @property
    def names(self) -> set[str]:
        """Of all layers that are changed in some row."""
        return {name for row in self._rows for layers, _ in row for name in layers}

    def add(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        for place, adapters in enumerate(self._rows):
            for layers, scale in adapters:
                layer = layers.get(name)
                if layer is None:
                    continue
                found = F.linear(F.linear(x[place : place + 1], layer.down), layer.up)
                y[place : place + 1].add_(found.mul_(layer.told.scaling(scale)))
        return y


class SlotAdapters:
    """The adapters of the half-slots of a tile of fixed shape, in buffers that stay in place.

    Ranks are padded to steps of ``RANK_STEP``, each of them a batched product over all half-slots,
    so that a row's bits do not depend on its neighbours' ranks: for a half-slot without an adapter
    the products are zero. A layer has as many buffers as some row's adapters have needed for it;
    lists of tensors are copied with ``_foreach``, because a launch for each would take longer.
    """

    def __init__(
        self, halves: int, device: torch.device, dtype: torch.dtype, layers: Collection[str]
    ) -> None:
        """``layers`` are those of the pass; what adapters add to others is not done here."""
        self._like, self._layers = {"device": device, "dtype": dtype}, layers
        self._used = [0] * halves  # steps of each half-slot, in the layer that has most of them
        self._buffers: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @property
    def shape(self) -> tuple[int, int] | None:
        """Of the products: all buffers and the steps in use; None where no row has an adapter.

        Buffers are only ever added, so their number says which ones there are.
        """
        steps = max(self._used)
        return (sum(map(len, self._buffers.values())), steps) if steps else None

    def reserve(self, adapters: Sequence[Scaled]) -> None:
        """Make the buffers that a row needs, all or none; those that are there stay where they are.

        Raises:
            torch.OutOfMemoryError: they do not fit beside all else.
        """
        wanted: Counter[str] = Counter()
        sizes: dict[str, tuple[int, int]] = {}
        for adapter, _ in adapters:
            for name, layer in self._own(adapter).items():
                wanted[name] += _steps(layer)
                sizes[name] = (layer.down.shape[1], layer.up.shape[0])
        made = {
            name: [
                self._empty(*sizes[name]) for _ in range(len(self._buffers.get(name, ())), count)
            ]
            for name, count in wanted.items()
        }
        for name, buffers in made.items():
            self._buffers.setdefault(name, []).extend(buffers)

    def _own(self, adapter: Adapter) -> dict[str, LowRank]:
        layers = adapter.transformer.items()
        return {name: layer for name, layer in layers if name in self._layers}

    def _empty(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        halves = len(self._used)
        return (
            torch.zeros(halves, RANK_STEP, inputs, **self._like),  # type: ignore[call-overload]
            torch.zeros(halves, outputs, RANK_STEP, **self._like),  # type: ignore[call-overload]
        )

    def __setitem__(self, slot: int, adapters: Sequence[Scaled]) -> None:
        """A row's adapters, for which there are buffers; an empty list takes them away."""
        if self._used[slot]:
            # Both matrices: what has overflowed in one of them is not zero times zero either.
            torch._foreach_zero_(
                [part[slot] for steps in self._buffers.values() for step in steps for part in step]
            )
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        taken: Counter[str] = Counter()
        for adapter, scale in adapters:
            layers = self._own(adapter)
            if not layers:
                continue
            scaled = torch._foreach_mul(
                [layer.up for layer in layers.values()],
                [layer.told.scaling(scale) for layer in layers.values()],
            )
            for (name, layer), up in zip(layers.items(), scaled, strict=True):
                parts = zip(layer.down.split(RANK_STEP), up.split(RANK_STEP, 1), strict=True)
                free = self._buffers[name][taken[name] :]
                for step, (rows, columns) in zip(free, parts, strict=False):
                    targets += [step[0][slot, : len(rows)], step[1][slot, :, : len(rows)]]
                    sources += [rows, columns]
                taken[name] += _steps(layer)
        self._used[slot] = max(taken.values(), default=0)  # before the copy, which may raise
        if targets:
            torch._foreach_copy_(targets, sources)

    def add(self, y: Tensor, x: Tensor, name: str) -> Tensor:
        for down, up in self._buffers.get(name, [])[: max(self._used)]:
            y[:, 0].baddbmm_(torch.bmm(x[:, 0], down.mT), up.mT)
        return y


def _steps(layer: LowRank) -> int:
    return -(-layer.told.rank // RANK_STEP)


@contextlib.contextmanager
def hooked(module: nn.Module, adapters: RowAdapters) -> Iterator[None]:
    """Within, the module's layers add what the adapters say; afterwards they are as before."""
    handles = [
        module.get_submodule(name).register_forward_hook(
            lambda layer, given, output, name=name: adapters.add(output, given[0], name)
        )
        for name in adapters.names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
