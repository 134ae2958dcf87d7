"""aMUSEd behind the engine's seam: a checked checkpoint's parts in memory, each once."""

import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.checkpoints.inspect import Checkpoint
from farm.errors import InvalidInput
from farm.formats.adapter_file import adapter_targets
from farm.spec import CheckpointInfo
from farm_workers.engine.amused.adapters import (
    Adapter,
    RowAdapters,
    Scaled,
    SlotAdapters,
    read_adapter,
)
from farm_workers.engine.amused.codec import Codec
from farm_workers.engine.amused.conditioning import PROMPTS, Conditioning
from farm_workers.engine.amused.layers import Given, Ops
from farm_workers.engine.amused.parts import Parts, load_parts
from farm_workers.engine.amused.text_encoder import TextEncoder
from farm_workers.engine.amused.transformer import Transformer
from farm_workers.engine.amused.vq import VqModel
from farm_workers.engine.device import Device, Lru
from farm_workers.engine.row import Conditioned, Pending

ENGINE_VERSION = 5  # raised when the same row starts to give other tokens or bytes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CACHE_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}  # of prompts' conditioning
ADAPTER_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}  # on the device, the last used ones
DECODED_TOKENS = 8192  # that are decoded together at most: the pictures' memory grows with them


class AmusedModel:
    """See ``Model`` in tile.py, which this implements."""

    def __init__(
        self,
        info: CheckpointInfo,
        parts: Parts,
        device: Device,
        dtype: torch.dtype,
        *,
        masking_schedule: str = "cosine",
        fused: bool | None = None,
        adapter_bytes: int | None = None,
    ) -> None:
        """Around loaded parts, whose weights are shared, not copied.

        ``fused`` rows share matrix products in tiles of fixed shape, with a kernel for what lies
        between the products: what a GPU does unless said, and a CPU in Triton's interpreter.
        ``adapter_bytes`` of low-rank adapters stay on the device between rows.
        """
        fused = device.is_cuda if fused is None else fused
        self.info, self.device, self.dtype = info, device, dtype
        self.masking_schedule = masking_schedule
        self.by_row = not fused
        ops = _ops(fused=fused)
        kind = partial(Transformer, text_tokens=info.text_tokens)
        self.transformer = parts.transformer.build(kind)
        self.transformer.ready(ops)
        self.conditioning = Conditioning(
            info,
            device,
            parts.tokenizer,
            parts.text_encoder.build(TextEncoder),
            self.transformer,
            cache_bytes=CACHE_BYTES[device.torch.type],
        )
        self.codec = Codec(parts.vqvae.build(VqModel), device, dtype, fused=fused)
        self.conditioning_size = self.transformer.layout.size
        self.adapter_targets = adapter_targets(parts.transformer.config, parts.text_encoder.config)
        if adapter_bytes is None:
            adapter_bytes = ADAPTER_BYTES[device.torch.type]
        self._adapters: Lru[Adapter] = Lru(adapter_bytes, lambda adapter: adapter.nbytes)

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: Device, dtype: str) -> Self:
        """The parts of a checkpoint on disk."""
        if dtype not in DTYPES:
            raise InvalidInput(f"{dtype!r} is none of {', '.join(DTYPES)}", field="dtype")
        return cls(
            checkpoint.info,
            load_parts(checkpoint, device.torch, DTYPES[dtype]),
            device,
            DTYPES[dtype],
            masking_schedule=checkpoint.config("scheduler").get("masking_schedule", "cosine"),
        )

    def condition(
        self, pending: Pending, ahead: Iterable[Pending] = (), *, alone: bool = False
    ) -> list[Conditioned]:
        adapters = []
        for one in pending.row.spec.adapters:
            move = partial(pending.adapters[one.sha256].to, self.device, self.dtype)
            adapters.append(Scaled(self._adapters.get(one.sha256, move), one.scale))
        width = 1 if self.by_row or alone else PROMPTS
        return self.conditioning.of(pending, ahead, width=width, adapters=adapters)

    def read_adapter(self, data: bytes) -> Adapter:
        return read_adapter(data, self.adapter_targets)

    def adapter_slots(self, halves: int) -> SlotAdapters:
        layers = self.transformer.step_layers()
        return SlotAdapters(halves, self.device.torch, self.dtype, layers)

    def bind(self, packed: Tensor) -> Given:
        return self.transformer.layout.views(packed)

    def forward(
        self,
        tokens: Tensor,
        given: Given,
        grid: tuple[int, int],
        adapters: Sequence[Sequence[Scaled]] | SlotAdapters = (),
    ) -> Tensor:
        if isinstance(adapters, SlotAdapters):
            if adapters.shape is not None:
                given = replace(given, adapters=adapters)
        elif any(adapters):
            given = replace(given, adapters=RowAdapters(adapters))
        return self.transformer.features(tokens, given, grid)

    def logits(self, features: Tensor) -> Tensor:
        return self.transformer.logits(features)

    def encode(self, image: NDArray[np.uint8]) -> Tensor:
        return self.codec.encode(image)

    def decode_width(self, grid: tuple[int, int], rows: int) -> int:
        return 1 if self.by_row else max(min(rows, DECODED_TOKENS // (grid[0] * grid[1])), 1)

    def decode(self, tokens: Tensor, grid: tuple[int, int], *, width: int) -> Tensor:
        return self.codec.decode(tokens, grid, width=width)

    def capture(self, grid: tuple[int, int], widths: Collection[int]) -> None:
        decoded = {self.decode_width(grid, width) for width in widths}
        self.codec.capture(grid, self.info.pixel_factor, sorted(decoded))
        self.conditioning.capture(1, PROMPTS)

    def forget(self) -> None:
        self.conditioning.forget()
        self._adapters.clear()

    def numerics(self, width: int) -> str:
        if not self.device.is_cuda:
            kind = torch.backends.cpu.get_cpu_capability().replace(" ", "")
            machine = f"cpu {platform.machine()} {kind} x{torch.get_num_threads()}"
        else:
            machine = torch.cuda.get_device_name(self.device.torch)
        dtype = str(self.dtype).removeprefix("torch.")
        shape = "by row" if self.by_row else f"tile {width}"
        return (
            f"{self.info.name}; {dtype}; {machine}; torch {torch.__version__}; "
            f"engine {ENGINE_VERSION} farm {shape}"
        )


def _ops(*, fused: bool) -> Ops:
    if not fused:
        return Ops()
    # Here and not above: Triton is made for Linux only.
    from farm_workers.engine.amused.kernels import FusedOps

    return FusedOps()
