"""The files that a render needs: pictures, masks, starting tokens, embeddings and adapters."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from farm.errors import NotFound, RenderError
from farm.formats.decoding import Decoded, read_image, read_mask
from farm.formats.tensors import Embeds, read_embeds, read_latents
from farm.spec import CheckpointInfo, RenderSpec
from farm_workers.render_engine import Adapter, RenderEngine
from farm_workers.worker.byte_cache import ByteCache

CACHE_BYTES = 256 * 2**20  # of decoded pictures
ADAPTER_BYTES = 512 * 2**20


class Inputs(NamedTuple):
    """Decoded inputs of one render, shared by its rows; ``notes`` say what was converted."""

    image: np.ndarray | None = None  # uint8 (height, width, 3)
    mask: np.ndarray | None = None  # uint8 (height, width), 255 is repainted
    latents: np.ndarray | None = None  # token ids (rows, columns)
    embeds: Embeds | None = None
    adapters: Mapping[str, Adapter] = MappingProxyType({})  # by the sha256 of their files
    notes: tuple[str, ...] = ()

    @property
    def given(self) -> Mapping[str, Any]:
        """Those that there are, as an engine takes them."""
        values = self._asdict().items()
        return {name: value for name, value in values if value is not None and name != "notes"}

    def done(self) -> bool:
        """They need not be read; so it is used like a ``Future``, which takes longer to make."""
        return True

    def result(self) -> "Inputs":
        return self


Awaited = Inputs | Future[Inputs]

NOTHING = Inputs()


class InputReader:
    """Reads and decodes a render's assets, and keeps what it read last.

    One picture is often the input of a whole job, and one adapter too, so both are kept.
    ``read_asset(tenant, asset id)`` gives an asset's bytes; ``engines`` read their adapters.
    ``told(cache, hit)`` hears of each look into what is kept.
    """

    def __init__(
        self,
        read_asset: Callable[[str, str], bytes],
        infos: Mapping[str, CheckpointInfo],
        engines: Mapping[str, RenderEngine],
        *,
        adapter_bytes: int = ADAPTER_BYTES,
        told: Callable[[str, bool], None] = lambda cache, hit: None,
    ) -> None:
        self._read_asset = read_asset
        self._infos = infos
        self._engines = engines
        self._pictures = ByteCache[Decoded](
            CACHE_BYTES, lambda decoded: decoded.pixels.nbytes, functools.partial(told, "pictures")
        )
        self._adapters = ByteCache[Adapter](
            adapter_bytes, lambda adapter: adapter.nbytes, functools.partial(told, "adapters")
        )

    def prepare(self, tenant: str, spec: RenderSpec, executor: Executor) -> Awaited:
        """The inputs of a render, at once where it needs none, else read by the executor."""
        if not spec.assets and not spec.adapters:
            return NOTHING
        return executor.submit(self.read, tenant, spec)

    def read(self, tenant: str, spec: RenderSpec) -> Inputs:
        """Read a render's inputs; raises ``FarmError`` where an asset is missing or unfit."""
        size = (spec.height, spec.width)
        info = self._infos[spec.checkpoint]
        image = mask = latents = embeds = None
        notes: list[str] = []
        if spec.image is not None:
            decoded = self._kept(read_image, tenant, spec.image, size)
            image = decoded.pixels
            notes += decoded.notes
        if spec.mask_image is not None:
            decoded = self._kept(read_mask, tenant, spec.mask_image, size)
            mask = decoded.pixels
            notes += decoded.notes
        if spec.latents is not None:
            data = self._read_asset(tenant, spec.latents)
            latents = read_latents(data, info, spec.height, spec.width)
        if spec.embeds is not None:
            embeds = read_embeds(self._read_asset(tenant, spec.embeds), info)
        adapters = {one.sha256: self._adapter(tenant, spec, one.sha256) for one in spec.adapters}
        return Inputs(image, mask, latents, embeds, adapters, tuple(notes))

    def _kept(
        self, read: Callable[..., Decoded], tenant: str, asset: str, size: tuple[int, int]
    ) -> Decoded:
        key = (read.__name__, tenant, asset, size)
        return self._pictures.get(key, lambda: read(self._read_asset(tenant, asset), size))

    def _adapter(self, tenant: str, spec: RenderSpec, sha256: str) -> Adapter:
        make = functools.partial(self._read_adapter, tenant, spec.checkpoint, sha256)
        return self._adapters.get((tenant, spec.checkpoint, sha256), make)

    def _read_adapter(self, tenant: str, checkpoint: str, sha256: str) -> Adapter:
        try:
            data = self._read_asset(tenant, sha256)
        except NotFound:
            raise RenderError(f"the adapter {sha256} is no longer in the store") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise RenderError(f"the adapter {sha256} is damaged in the store")
        return self._engines[checkpoint].read_adapter(data)
