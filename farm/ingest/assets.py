"""Input files of renders: stored once per tenant under the sha256 of their bytes."""

import base64
import binascii
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from farm.errors import InvalidInput, NotFound
from farm.formats import decoding as picture
from farm.formats import tensors
from farm.formats.adapter_file import read_adapter_file
from farm.spec import FILE_FIELDS, AssetKind, CheckpointInfo, RenderRequest
from farm.store import Store, keys

MAX_TENSOR_HEADER = 2**20  # bytes
Probe = Callable[[bytes, Literal["image", "mask"]], picture.Picture]
PICTURE_FIELDS = tuple(name for name, kind in FILE_FIELDS.items() if kind in ("image", "mask"))
_CACHED = 4096  # facts kept in memory; a few hundred bytes each


class Asset(BaseModel):
    """What is known of a file; stored beside it. Pictures have their upright size in pixels,
    latents their token rows and columns."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Literal["image", "latents", "embeds", "adapter"]
    size: int  # bytes
    width: int | None = None
    height: int | None = None
    notes: tuple[str, ...] = ()


class ByteQuota(Protocol):
    """Counts the bytes that a tenant stores."""

    def take_bytes(self, tenant: str, size: int) -> None: ...

    def give_bytes(self, tenant: str, size: int) -> None: ...


class Assets:
    """A tenant sees its own files and no others."""

    def __init__(
        self, store: Store, probe: Probe = picture.probe, quota: ByteQuota | None = None
    ) -> None:
        """``probe`` looks at a picture; of strangers' pictures it does so in a sandbox."""
        self._quota = quota
        self._store = store
        self._probe = probe
        self.facts = functools.lru_cache(_CACHED)(self._facts)
        self._check_tensors = functools.lru_cache(_CACHED)(self._check_tensors_once)

    def add(self, tenant: str, data: bytes, kind: AssetKind | None = None) -> Asset:
        """Check a file by its content and keep it; the same bytes again are the same asset.

        Args:
            kind: what it is meant for, where that is known; other files are refused.
        """
        asset = examine(data, kind, probe=self._probe)
        if kind is not None and asset.kind != ("image" if kind == "mask" else kind):
            raise InvalidInput(f"the file holds {asset.kind}, not {kind}", field="asset")
        key = keys.asset(tenant, asset.id)
        self._keep(tenant, key, data)
        self._store.put(f"{key}.json", asset.model_dump_json().encode())
        return asset

    def _keep(self, tenant: str, key: str, data: bytes) -> None:
        if self._quota is None or self._store.size(key) is not None:
            self._store.put(key, data)
            return
        self._quota.take_bytes(tenant, len(data))
        fresh = False
        try:
            fresh = self._store.put(key, data)
        finally:
            if not fresh:  # it was there already, or could not be stored
                self._quota.give_bytes(tenant, len(data))

    def _facts(self, tenant: str, asset: str) -> Asset:
        key = keys.asset(tenant, asset)
        try:
            return Asset.model_validate_json(self._store.get(f"{key}.json"))
        except NotFound:
            data = self.read(tenant, asset)  # an upload that died before its facts were written
        facts = examine(data, probe=self._probe)
        self._store.put(f"{key}.json", facts.model_dump_json().encode())
        return facts

    def read(self, tenant: str, asset: str) -> bytes:
        try:
            return self._store.get(keys.asset(tenant, asset))
        except NotFound:
            raise NotFound(
                f"unknown asset {asset}", hint="upload the file first; its id is its sha256"
            ) from None

    def check(self, tenant: str, request: RenderRequest) -> tuple[int, int] | None:
        """All files of a request are there and of the right kind.

        Returns:
            Height and width of the input picture, where there is one.
        """
        sizes = {}
        for field in FILE_FIELDS:
            asset = getattr(request, field)
            if asset is None:
                continue
            try:
                facts = self.facts(tenant, asset)
            except NotFound as error:
                raise NotFound(error.message, field=field, hint=error.hint) from None
            wanted = "image" if field in PICTURE_FIELDS else field
            if facts.kind != wanted:
                raise InvalidInput(f"the asset holds {facts.kind}, not {wanted}", field=field)
            sizes[field] = (facts.height, facts.width)
        image, mask = sizes.get("image"), sizes.get("mask_image")
        if image and mask and image != mask:
            raise InvalidInput(
                f"the mask has {mask[1]} x {mask[0]} pixels, the image {image[1]} x {image[0]}",
                field="mask_image",
                hint="both must have the same size",
            )
        if image is None or image[0] is None or image[1] is None:
            return None
        return image[0], image[1]

    def check_tensors(
        self, tenant: str, request: RenderRequest, info: CheckpointInfo, height: int, width: int
    ) -> None:
        """Latents and embeddings fit the checkpoint and the size that they are used with."""
        if request.latents is not None:
            self._check_tensors(tenant, "latents", request.latents, info, height, width)
        if request.embeds is not None:
            self._check_tensors(tenant, "embeds", request.embeds, info, 0, 0)

    def _check_tensors_once(
        self, tenant: str, field: str, asset: str, info: CheckpointInfo, height: int, width: int
    ) -> None:
        data = self.read(tenant, asset)
        if field == "latents":
            tensors.read_latents(data, info, height, width)
        else:
            tensors.read_embeds(data, info)

    def take_data_urls(self, tenant: str, data: dict[str, Any]) -> dict[str, Any]:
        """Pictures inside a request become assets."""
        taken = {}
        for field in PICTURE_FIELDS:
            value = data.get(field)
            if not isinstance(value, str):
                continue
            if value.startswith("data:"):
                taken[field] = self.take_data_url(tenant, field, value).id
            elif "://" in value[:16]:
                raise InvalidInput(
                    "addresses are not fetched", field=field, hint="upload the file as an asset"
                )
        return data | taken if taken else data

    def take_data_url(self, tenant: str, field: str, url: str) -> Asset:
        try:
            return self.add(tenant, _data_url(url, field), FILE_FIELDS[field])
        except InvalidInput as error:
            error.field = field
            raise


def examine(data: bytes, kind: AssetKind | None = None, *, probe: Probe = picture.probe) -> Asset:
    """What a file holds, by its content; what the farm has no use for is refused.

    Args:
        kind: what it is meant for, where that is known.
    """
    name = hashlib.sha256(data).hexdigest()
    if not data:
        raise InvalidInput("the file is empty", field="asset")
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x93NUMPY")):
        raise InvalidInput(
            "pickle, zip and npy files are refused",
            field="asset",
            hint="save tensors with safetensors",
        )
    if kind == "adapter":
        read_adapter_file(data)
        return Asset(id=name, kind=kind, size=len(data))
    if not _is_safetensors(data):
        found = probe(data, "mask" if kind == "mask" else "image")
        return Asset(
            id=name, kind="image", size=len(data),
            width=found.width, height=found.height, notes=tuple(found.notes),
        )  # fmt: skip
    return _examine_tensors(name, data)


def _examine_tensors(name: str, data: bytes) -> Asset:
    shapes = _tensor_shapes(data)
    if name_of_latents := next((name for name in tensors.LATENTS if name in shapes), None):
        shape = shapes[name_of_latents]
        if len(shape) != 2:
            raise InvalidInput(
                f"the tensor has {len(shape)} dimensions; it needs token rows and columns",
                field="latents",
            )
        return Asset(id=name, kind="latents", size=len(data), height=shape[0], width=shape[1])
    if {"prompt_embeds", "encoder_hidden_states"} <= shapes.keys():
        return Asset(id=name, kind="embeds", size=len(data))
    if any(".lora" in tensor for tensor in shapes):
        read_adapter_file(data)
        return Asset(id=name, kind="adapter", size=len(data))
    raise InvalidInput(
        f"the safetensors file holds {', '.join(sorted(shapes)[:8]) or 'nothing'}",
        field="asset",
        hint="it must hold latents, prompt_embeds and encoder_hidden_states, or an adapter",
    )


def _is_safetensors(data: bytes) -> bool:
    """The length of a JSON header in 8 bytes, then the header."""
    return len(data) > 9 and data[8:9] == b"{" and 2 <= int.from_bytes(data[:8], "little") < 2**40


def _tensor_shapes(data: bytes) -> dict[str, list[int]]:
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_TENSOR_HEADER, len(data) - 8):
        raise InvalidInput("the safetensors header is cut off or too long", field="asset")
    try:
        header = json.loads(data[8 : 8 + length])
        return {
            str(name)[:80]: [_side(side) for side in entry["shape"]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidInput("the safetensors header cannot be read", field="asset") from None


def _side(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"{value!r} is not a side of a tensor")
    return value


def _data_url(value: str, field: str) -> bytes:
    head, comma, body = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidInput(
            "the data URL is not base64", field=field, hint="data:image/png;base64,…"
        )
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput("the data URL holds wrong base64", field=field) from None
