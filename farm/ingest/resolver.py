"""Requests become resolved renders, by one set of rules for the farm and for ``farm render``."""

from typing import Any

from farm.checkpoints.registry import CheckpointRegistry
from farm.ingest.adapters import AdapterNames, Adapters
from farm.ingest.assets import Assets
from farm.job import NumberedSpec
from farm.metadata import split_metadata
from farm.spec import RenderRequest, derived_seed


class Resolver:
    """Knows the checkpoints, and the tenants' files and adapters."""

    def __init__(self, registry: CheckpointRegistry, assets: Assets, adapters: Adapters) -> None:
        self._registry = registry
        self._assets = assets
        self._adapters = adapters

    def names(self, tenant: str) -> AdapterNames:
        """The tenant's adapters, for renders that come in together."""
        return self._adapters.names(tenant)

    def resolve(
        self,
        tenant: str,
        data: Any,
        *,
        seed: int,
        render: int,
        names: AdapterNames,
        columns: bool = True,
    ) -> NumberedSpec:
        """A render from JSON-like data.

        Args:
            tenant: whose files it may name.
            data: as the user wrote it.
            seed: of the job; a render that names no seed gets one made from it.
            render: index in the job.
            names: the tenant's adapters.
            columns: as in ``split_metadata``.

        Raises:
            FarmError: what is wrong with it.
        """
        metadata = None
        if isinstance(data, dict):
            data, metadata = split_metadata(data, columns=columns)
            data = self._assets.take_data_urls(tenant, data)
        request = RenderRequest.parse(data)
        info = self._registry.find(request.checkpoint)
        picture = self._assets.check(tenant, request)
        derived = derived_seed(seed, render)
        spec = request.resolve(info, seed=derived, picture=picture, adapters=names)
        self._assets.check_tensors(tenant, request, info, spec.height, spec.width)
        self._adapters.check(tenant, spec, info)
        return NumberedSpec(render=render, spec=spec, metadata=metadata)
