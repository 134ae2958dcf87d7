"""Adapters by name: each tenant's own, and what a name stands for when a render comes in."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import Conflict, InvalidInput, NotFound
from farm.formats.adapter_file import Targets, adapter_targets, embed_alpha, read_adapter_file
from farm.ingest.assets import Assets
from farm.spec import CheckpointInfo, ModelSizes, RenderSpec, check_adapter_name
from farm.store import Store, keys

MAX_NAMED = 256  # adapters of one tenant
_READERS = 16  # records read at a time
_CACHED = 4096  # comparisons kept in memory; some 200 bytes each


class NamedAdapter(BaseModel):
    """What a name stands for; stored under the name."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str  # of the file, which lies among the tenant's assets
    size: int  # bytes
    rank: int  # the largest
    alpha: float | None  # None where the layers have different ones
    targets: tuple[str, ...]  # kinds of layers, such as to_q
    created_at: datetime


class Adapters:
    """A tenant sees its own adapters and no others."""

    def __init__(self, store: Store, assets: Assets, registry: CheckpointRegistry) -> None:
        self._store = store
        self._assets = assets
        self._registry = registry
        self._misfit = functools.lru_cache(_CACHED)(self._compare)

    def add(
        self, tenant: str, name: str, data: bytes, *, alpha: float | None = None
    ) -> NamedAdapter:
        """Name an adapter; the same again changes nothing.

        Args:
            data: a file as diffusers or PEFT writes it.
            alpha: that it was trained with, where the file does not say so.

        Raises:
            Conflict: the name stands for another file.
            InvalidInput: it is not an adapter, or fits none of the farm's checkpoints.
        """
        key = _key(tenant, name)
        data = embed_alpha(data, alpha=alpha)
        found = read_adapter_file(data)
        self._check_some_checkpoint(data)
        asset = self._assets.add(tenant, data, "adapter")
        if len(self.names(tenant).listed - {name}) >= MAX_NAMED:
            raise Conflict(
                f"you have {MAX_NAMED} adapters already", field="name", hint="farm adapter rm NAME"
            )
        record = NamedAdapter(
            name=name, sha256=asset.id, size=asset.size, rank=found.rank, alpha=found.alpha,
            targets=found.targets, created_at=datetime.now(UTC),
        )  # fmt: skip
        if self._store.put(key, record.model_dump_json().encode()):
            return record
        known = self._record(key)
        if known.sha256 != record.sha256:
            raise Conflict(
                f"{name} is another adapter already",
                field="name",
                hint=f"choose another name, or farm adapter rm {name} first",
            )
        return known

    def remove(self, tenant: str, name: str) -> bool:
        """Forget a name; renders that were accepted keep the file. False if there was none."""
        key = _key(tenant, name)
        if self._store.size(key) is None:
            return False
        self._store.delete(key)
        return True

    def all(self, tenant: str) -> list[NamedAdapter]:
        """By name."""
        found = (entry.key for entry in self._store.list(keys.adapters(tenant)))
        with ThreadPoolExecutor(_READERS) as pool:
            return [one for one in pool.map(self._record_if_any, found) if one is not None]

    def names(self, tenant: str) -> "AdapterNames":
        """What the tenant's names stand for now."""
        return AdapterNames(self._store, tenant)

    def check(self, tenant: str, spec: RenderSpec, info: CheckpointInfo) -> None:
        """All adapters of a render are there and fit its checkpoint."""
        for adapter in spec.adapters:
            misfit = self._misfit(tenant, adapter.sha256, info.id, info.sizes)
            if misfit is not None:
                raise InvalidInput(misfit.message, field="adapters", hint=misfit.hint)

    def _check_some_checkpoint(self, data: bytes) -> None:
        infos = self._registry.all()
        misfits = [_misfit(data, info.id, info.sizes) for info in infos]
        if infos and misfits[0] is not None and all(misfits):
            raise InvalidInput(
                f"fits none of this farm's checkpoints; {infos[0].id}: {misfits[0].message}",
                field="adapter",
                hint=misfits[0].hint,
            )

    def _compare(
        self, tenant: str, sha256: str, checkpoint: str, sizes: ModelSizes | None
    ) -> "_Misfit | None":
        """``_misfit`` of an asset; what is wrong is a value, so that it is remembered as well."""
        try:
            kind = self._assets.facts(tenant, sha256).kind
        except NotFound as error:
            hint = "farm adapter ls shows yours; or upload the file first"
            raise NotFound(f"there is no adapter {sha256}", field="adapters", hint=hint) from error
        if kind != "adapter":
            return _Misfit(f"the asset holds {kind}, not an adapter", None)
        return _misfit(self._assets.read(tenant, sha256), checkpoint, sizes)

    def _record_if_any(self, key: str) -> NamedAdapter | None:
        """None if the name was forgotten since it was listed."""
        try:
            return self._record(key)
        except NotFound:
            return None

    def _record(self, key: str) -> NamedAdapter:
        return NamedAdapter.model_validate_json(self._store.get(key))


class AdapterNames(dict[str, str]):
    """The sha256 of each name that was asked for. Each is looked up once, so that all renders of
    one call agree, whatever is added or removed meanwhile."""

    def __init__(self, store: Store, tenant: str) -> None:
        super().__init__()
        self._store = store
        self._tenant = tenant

    @functools.cached_property
    def listed(self) -> frozenset[str]:
        """All names that there are."""
        return frozenset(self._list())

    def _list(self) -> Iterator[str]:
        for entry in self._store.list(keys.adapters(self._tenant)):
            yield keys.adapter_name(entry.key)

    def __missing__(self, name: str) -> str:
        if name not in self.listed:
            raise self._unknown(name)
        try:
            data = self._store.get(keys.adapter(self._tenant, name))
        except NotFound:  # removed just now
            raise self._unknown(name) from None
        self[name] = NamedAdapter.model_validate_json(data).sha256
        return self[name]

    def _unknown(self, name: str) -> NotFound:
        known = ", ".join(sorted(self.listed)[:8])
        hint = f"there are: {known}" if known else f"farm adapter add {name} FILE"
        return NotFound(f"you have no adapter {name!r}", field="adapters", hint=hint)


class _Misfit(NamedTuple):
    message: str
    hint: str | None


def _misfit(data: bytes, checkpoint: str, sizes: ModelSizes | None) -> _Misfit | None:
    """What keeps an adapter from a checkpoint."""
    if sizes is None:
        return _Misfit(f"{checkpoint} takes no adapters", "its worker is of an older version")
    try:
        read_adapter_file(data, targets_of(sizes))
    except InvalidInput as error:
        return _Misfit(error.message, error.hint)
    return None


def _key(tenant: str, name: str) -> str:
    try:
        return keys.adapter(tenant, check_adapter_name(name))
    except ValueError as error:
        raise InvalidInput(str(error), field="name") from None


@functools.lru_cache(64)
def targets_of(sizes: ModelSizes) -> Targets:
    """The layers that an adapter for a checkpoint of these sizes can change."""
    return adapter_targets(sizes.transformer.model_dump(), sizes.text_encoder.model_dump())
