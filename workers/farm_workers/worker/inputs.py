"""The files that a render needs: pictures, masks, starting tokens and embeddings."""

import collections
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np

from farm.formats.decoding import Decoded, read_image, read_mask
from farm.formats.tensors import Embeds, read_embeds, read_latents
from farm.spec import CheckpointInfo, RenderSpec

CACHE_BYTES = 256 * 2**20


class Inputs(NamedTuple):
    """Decoded inputs of one render, shared by its rows; ``notes`` say what was converted."""

    image: np.ndarray | None = None  # uint8 (height, width, 3)
    mask: np.ndarray | None = None  # uint8 (height, width), 255 is repainted
    latents: np.ndarray | None = None  # token ids (rows, columns)
    embeds: Embeds | None = None
    notes: tuple[str, ...] = ()


class InputReader:
    """Reads and decodes a render's assets, and keeps what it read last.

    One picture is often the input of a whole job, so decoded arrays are kept in a cache of at most
    ``cache_bytes``; the least recently used goes first.
    ``read_asset(tenant, asset id)`` gives an asset's bytes.
    """

    def __init__(
        self,
        read_asset: Callable[[str, str], bytes],
        infos: Mapping[str, CheckpointInfo],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._read_asset = read_asset
        self._infos = infos
        self._cache: collections.OrderedDict[Hashable, Decoded] = collections.OrderedDict()
        self._cache_bytes = cache_bytes
        self._held = 0
        self._lock = threading.Lock()

    def prepare(self, tenant: str, spec: RenderSpec, executor: Executor) -> "Future[Inputs]":
        """The inputs of a render, at once where it needs none, else read by the executor."""
        if not spec.assets:
            future: Future[Inputs] = Future()
            future.set_result(Inputs())
            return future
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
        return Inputs(image, mask, latents, embeds, tuple(notes))

    def _kept(
        self, read: Callable[..., Decoded], tenant: str, asset: str, size: tuple[int, int]
    ) -> Decoded:
        key = (read.__name__, tenant, asset, size)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        decoded = read(self._read_asset(tenant, asset), size)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = decoded
                self._held += decoded.pixels.nbytes
            while self._held > self._cache_bytes and len(self._cache) > 1:
                _, oldest = self._cache.popitem(last=False)
                self._held -= oldest.pixels.nbytes
        return decoded
