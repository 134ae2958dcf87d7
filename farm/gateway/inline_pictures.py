"""Pictures that stand in a request as data URLs are handled like uploads, within a budget."""

from typing import Any

import anyio
from anyio.to_thread import run_sync

from farm.errors import FarmError, TooLarge
from farm.ingest.assets import PICTURE_FIELDS, Assets
from farm.ingest.ndjson import Entries, Entry

MAX_PICTURES = 100  # different ones in one body, or in one piece of a long one
MAX_PIXELS = 2**25  # of all of them: thirty of 1024 x 1024

UPLOADS = anyio.CapacityLimiter(8)  # each may hold an asset's whole size in memory


async def keep_pictures(assets: Assets, tenant: str, entries: Entries) -> Entries:
    """The entries with each data URL replaced by the id of the asset that it has become.

    Submissions without pictures never wait for those that have some.
    """
    if not any(_has_pictures(kind.value) for kind in set(entries.kinds)):
        return entries
    budget = _Budget(assets, tenant)
    return Entries.of([await budget.keep(entry) for entry in entries])


def _has_pictures(data: Any) -> bool:
    return isinstance(data, dict) and any(
        isinstance(data.get(field), str) and data[field].startswith("data:")
        for field in PICTURE_FIELDS
    )


class _Budget:
    """What is left of one body's budget."""

    def __init__(self, assets: Assets, tenant: str) -> None:
        self._assets = assets
        self._tenant = tenant
        self._known: dict[tuple[str, str], str | FarmError] = {}
        self._pixels = 0

    async def keep(self, entry: Entry) -> Entry:
        if not _has_pictures(entry.data):
            return entry
        data = dict(entry.data)
        for field in PICTURE_FIELDS:
            url = data.get(field)
            if not isinstance(url, str) or not url.startswith("data:"):
                continue
            if (field, url) not in self._known:
                self._known[field, url] = await self._look(field, url)
            found = self._known[field, url]
            if isinstance(found, FarmError):
                return entry._replace(error=found)
            data[field] = found
        return entry._replace(data=data)

    async def _look(self, field: str, url: str) -> str | FarmError:
        if len(self._known) >= MAX_PICTURES or self._pixels >= MAX_PIXELS:
            return TooLarge(
                f"one request may hold {MAX_PICTURES} pictures of {MAX_PIXELS:,} pixels in all",
                field=field,
                hint="upload pictures as assets",
            )
        try:
            asset = await run_sync(
                self._assets.take_data_url, self._tenant, field, url, limiter=UPLOADS
            )
        except FarmError as error:
            if error.retryable:
                raise
            self._pixels += MAX_PIXELS // 16  # a refused one has cost something too
            return error
        self._pixels += (asset.width or 0) * (asset.height or 0)
        return asset.id
