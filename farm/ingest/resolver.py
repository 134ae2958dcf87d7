"""Requests become resolved renders, by one set of rules for the farm and for ``farm render``."""

from collections.abc import Mapping
from typing import Any

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import FarmError, Unavailable
from farm.ingest.adapters import AdapterNames, Adapters
from farm.ingest.assets import Assets
from farm.ingest.kinds import Kind
from farm.ingest.ndjson import Entries, Entry
from farm.metadata import metadata_of, split_metadata
from farm.renders import NumberedSpec, Renders, VariantRow, variant_row
from farm.spec import (
    FILE_FIELDS,
    RenderRequest,
    RenderSpec,
    accepts_prompts,
    accepts_seed,
    derived_seed,
    derived_seeds,
)

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
    with the same other values was accepted before: that takes a twentieth of the time.
    """

    def __init__(self, resolver: Resolver, tenant: str, names: AdapterNames, seed: int) -> None:
        self._resolver = resolver
        self._tenant = tenant
        self._names = names
        self._seed = seed
        self._patterns: dict[str, RenderSpec] = {}  # an accepted render for each pattern

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

    def resolve_all(self, entries: Entries, first: int) -> tuple[Renders, dict[int, FarmError]]:
        """Renders that came in together, and what is wrong with those that are refused, by place.

        Args:
            first: index in the job of the first.

        Raises:
            Unavailable: of the store; no render is to blame, and all may be sent again.
        """
        accepted = accepts_prompts(entries.prompts)
        derived = derived_seeds(self._seed, range(first, first + len(entries)))
        metadata = _Metadata(entries)
        known: dict[Kind, RenderSpec] = {}  # the first of each kind
        rows: list[VariantRow] = []
        refused: dict[int, FarmError] = {}
        columns = (entries.kinds, entries.prompts, entries.seeds, accepted, derived)
        for place, (kind, prompt, own, good, seed) in enumerate(zip(*columns, strict=True)):
            alike = known.get(kind)
            try:
                if alike is not None and good and (own is None or accepts_seed(own)):
                    used = seed if own is None else own
                    rows.append((first + place, alike, prompt, used, metadata.of(place)))
                    continue
                found = self._entry(entries[place], first + place)
            except Unavailable:
                raise
            except FarmError as error:
                refused[place] = error
            else:
                rows.append(variant_row(found))
                if _names_no_file(kind.value):
                    known[kind] = found.spec
        return Renders.of_variants(rows), refused

    def _entry(self, entry: Entry, render: int) -> NumberedSpec:
        if entry.error is not None:
            raise entry.error
        return self.resolve(entry.data, render, columns=entry.line is not None)

    def _spec(self, data: Any, render: int) -> RenderSpec:
        seed = derived_seed(self._seed, render)
        pattern = _pattern(data)
        if pattern is not None and (known := self._patterns.get(pattern)) is not None:
            own = data.get("seed")
            return known.variant(data["prompt"], seed if own is None else own)
        spec = self._resolver.resolve(self._tenant, data, names=self._names, seed=seed)
        if pattern is not None:
            if len(self._patterns) == MAX_PATTERNS:
                self._patterns.clear()
            self._patterns[pattern] = spec
        return spec


class _Metadata:
    """Of rows that came in together. Those of lines that differ in nothing else are one object."""

    def __init__(self, entries: Entries) -> None:
        self._own, self._lines = entries.own, entries.lines
        self._known: dict[int, str | None] = {}  # by the object

    def of(self, place: int) -> str | None:
        own = self._own[place]
        if own is None:
            return None
        if id(own) not in self._known:
            columns = self._lines[place] is not None
            self._known[id(own)] = metadata_of(own, columns=columns)
        return self._known[id(own)]


def _pattern(data: Any) -> str | None:
    """All values but prompt and seed, as text: 1, 1.0 and true are equal and not the same.

    None if prompt or seed is not valid, or another value is a file.
    """
    if not isinstance(data, dict) or not _names_no_file(data):
        return None
    rest = data.copy()
    good = accepts_prompts([rest.pop("prompt", None)]) == [True]
    return repr(rest) if good and accepts_seed(rest.pop("seed", None)) else None


def _names_no_file(data: Mapping[str, Any]) -> bool:
    return FILE_FIELDS.keys().isdisjoint(data)
