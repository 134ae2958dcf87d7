"""Input files on their way to the farm."""

from pathlib import Path
from typing import Any

from farm.errors import FarmError
from farm.spec import FILE_FIELDS
from farm_client.connection import Connection, path_of
from farm_client.inputs import (
    ADAPTERS,
    FileInput,
    adapter_files,
    asset_id,
    digest,
    file_stamp,
    is_url,
    read_input,
    with_adapters,
)
from farm_client.models import Asset, NamedAdapter

ASK_FIRST_BYTES = 64 * 1024  # a larger file is sent only if the farm does not have it
MAX_REMEMBERED = 10_000  # files


class Uploads:
    """Sends files, each once as long as it does not change."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent: dict[tuple[str, int, int], str] = {}

    async def upload(self, value: FileInput, field: str, base: Path | None = None) -> Asset:
        data = read_input(value, field, base)
        return await self._upload_bytes(data, field)

    async def _upload_bytes(self, data: bytes, field: str) -> Asset:
        try:
            if len(data) > ASK_FIRST_BYTES and (known := await self._known(digest(data))):
                return known
            told = await self._connection.call(
                "PUT",
                "/v1/assets",
                content=data,
                content_type="application/octet-stream",
                query={"kind": "adapter" if field == ADAPTERS else FILE_FIELDS.get(field)},
                seconds=300.0,
            )
        except FarmError as error:
            if error.field == "asset":
                error.field = field
            raise
        return Asset.model_validate(told)

    async def _known(self, asset: str) -> Asset | None:
        try:
            return Asset.model_validate(
                await self._connection.call("GET", path_of("v1", "assets", asset))
            )
        except FarmError as error:
            if error.code != "not_found":
                raise
            return None

    async def replace_files(self, data: dict[str, Any], base: Path | None) -> dict[str, Any]:
        """Files become assets; the same file is read and sent once."""
        found = dict(data)
        for field in FILE_FIELDS:
            value = found.get(field)
            if value is not None and not is_url(value):
                found[field] = asset_id(value) or await self._sent_once(value, field, base)
        ids = {
            place: await self._sent_once(value, ADAPTERS, base)
            for place, value in adapter_files(found).items()
        }
        return with_adapters(found, ids)

    async def _sent_once(self, value: Any, field: str, base: Path | None) -> str:
        stamp = file_stamp(value, base)
        if stamp is None:
            return (await self.upload(value, field, base)).id
        if stamp not in self._sent:
            asset = await self.upload(value, field, base)
            if len(self._sent) >= MAX_REMEMBERED:
                return asset.id
            self._sent[stamp] = asset.id
        return self._sent[stamp]

    async def add_adapter(self, name: str, file: FileInput, alpha: float | None) -> NamedAdapter:
        told = await self._connection.call(
            "PUT",
            path_of("v1", "adapters", name),
            content=read_input(file, "file"),
            content_type="application/octet-stream",
            query={"alpha": alpha},
            seconds=300.0,
        )
        return NamedAdapter.model_validate(told)
