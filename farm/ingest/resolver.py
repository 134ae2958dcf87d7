"""Requests become resolved renders, by one set of rules for the farm and for ``farm render``."""

from collections.abc import Hashable, Mapping
from typing import Any

from farm.checkpoints.registry import CheckpointRegistry
from farm.ingest.adapters import AdapterNames, Adapters
from farm.ingest.assets import FILE_FIELDS, Assets
from farm.metadata import split_metadata
from farm.renders import NumberedSpec
from farm.spec import RenderRequest, RenderSpec, accepts_prompt, accepts_seed, derived_seed

MAX_PATTERNS = 256  # remembered in one batch


class Resolver:
    """Knows the checkpoints, and the tenants' files and adapters."""

    def __init__(self, registry: CheckpointRegistry, assets: Assets, adapters: Adapters) -> None:
        self._registry = registry
        self._assets = assets
        self._adapters = adapters

    def batch(self, tenant: str, *, seed: int) -> "Batch":
        """Renders of the tenant that come in together.

        Args:
            tenant: whose files and adapters they may name.
            seed: of the job; a render that names no seed gets one made from it.
        """
        return Batch(self, tenant, self._adapters.names(tenant), seed)

    def resolve(self, tenant: str, data: Any, *, names: AdapterNames, seed: int) -> RenderSpec:
        """One render, whose seed is ``seed`` if it names none."""
        if isinstance(data, dict):
            data = self._assets.take_data_urls(tenant, data)
        request = RenderRequest.parse(data)
        info = self._registry.find(request.checkpoint)
        picture = self._assets.check(tenant, request)
        spec = request.resolve(info, seed=seed, picture=picture, adapters=names)
        self._assets.check_tensors(tenant, request, info, spec.height, spec.width)
        self._adapters.check(tenant, spec, info)
        return spec


class Batch:
    """Resolves renders against one state of the farm; they come out as if each came alone.

    The rows of a file mostly differ in prompt and seed. Only these two are looked at where a row
    with the same other values was accepted before: that takes a third of the time.
    """

    def __init__(self, resolver: Resolver, tenant: str, names: AdapterNames, seed: int) -> None:
        self._resolver = resolver
        self._tenant = tenant
        self._names = names
        self._seed = seed
        self._patterns: dict[Hashable, RenderSpec] = {}  # an accepted render for each pattern

    def resolve(self, data: Any, render: int, *, columns: bool = True) -> NumberedSpec:
        """A render from JSON-like data.

        Args:
            data: as the user wrote it.
            render: index in the job.
            columns: as in ``split_metadata``.

        Raises:
            FarmError: what is wrong with it.
        """
        metadata = None
        if isinstance(data, dict):
            data, metadata = split_metadata(data, columns=columns)
        return NumberedSpec(render=render, spec=self._spec(data, render), metadata=metadata)

    def _spec(self, data: Any, render: int) -> RenderSpec:
        seed = derived_seed(self._seed, render)
        pattern = _pattern(data) if isinstance(data, dict) else None
        if pattern is not None and (known := self._patterns.get(pattern)) is not None:
            own = data.get("seed")
            return known.variant(data["prompt"], seed if own is None else own)
        spec = self._resolver.resolve(self._tenant, data, names=self._names, seed=seed)
        if pattern is not None:
            if len(self._patterns) == MAX_PATTERNS:
                self._patterns.clear()
            self._patterns[pattern] = spec
        return spec


def _pattern(data: Mapping[str, Any]) -> Hashable | None:
    """All values but prompt and seed, with their types: 1, 1.0 and true are equal and not the same.

    None if prompt or seed is not valid, or another value is a file or not plain.
    """
    if not accepts_prompt(data.get("prompt")) or not accepts_seed(data.get("seed")):
        return None
    found = []
    for name, value in data.items():
        if name == "prompt" or name == "seed":
            continue
        kind = type(value)
        if kind is float:
            value = repr(value)  # 0.0 and -0.0 are equal, too
        elif kind not in (str, int, bool) or name in FILE_FIELDS:
            return None
        found.append((name, kind, value))
    return tuple(found)
