"""Input files on their way to the farm."""

from pathlib import Path
from typing import Any

from farm.errors import FarmError
from farm_client.connection import Connection, path_of
from farm_client.inputs import (
    ASSET_KINDS,
    FILE_FIELDS,
    FileInput,
    asset_id,
    digest,
    file_stamp,
    is_url,
    read_input,
)
from farm_client.models import Asset

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
                query={"kind": ASSET_KINDS.get(field)},
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
            if value is None or is_url(value):
                continue
            known = asset_id(value)
            stamp = file_stamp(value, base) if known is None else None
            if known is None and stamp is not None:
                known = self._sent.get(stamp)
            if known is None:
                known = (await self.upload(value, field, base)).id
                if stamp is not None and len(self._sent) < MAX_REMEMBERED:
                    self._sent[stamp] = known
            found[field] = known
        return found
