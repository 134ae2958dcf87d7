"""Addresses that let anyone who has one read one stored object, or a range, for a while."""

import functools
import hmac
import mimetypes
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from farm.errors import InvalidInput, NotAllowed
from farm.settings import GatewaySettings
from farm.sinks.protocol import Source
from farm.store import Store, open_store

SAME_SECONDS = 60  # at most
LINKS_KEPT = 4096  # some 500 bytes each


class Signer:
    """Signs and checks addresses below ``/v1/objects``; gateways with one secret agree."""

    def __init__(self, secret: bytes, now: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now = now

    def path(self, key: str, *, seconds: int, filename: str, part: str = "") -> str:
        """``part`` is the range's offset and size, as in ``1536+40961``; empty for the whole."""
        expires = self.start(seconds) + seconds
        query = {
            "expires": expires,
            "filename": filename,
            "signature": self._sign(key, expires, filename, part),
        }
        if part:
            query["part"] = part
        return f"/v1/objects/{quote(key)}?{urlencode(query)}"

    def start(self, seconds: int) -> int:
        """The moment from which an address counts that is asked for now. It stays the same for a
        while, so that whoever asks again, as the page does, need not fetch its pictures again."""
        now = int(self._now())
        return now - now % max(min(seconds // 8, SAME_SECONDS), 1)

    def check(self, key: str, expires: int, filename: str, signature: str, part: str = "") -> None:
        if "\n" in key or "\n" in filename:  # it parts the fields that are signed
            raise NotAllowed("the address is not signed by this farm")
        right = self._sign(key, expires, filename, part)
        if not hmac.compare_digest(right.encode(), signature.encode(errors="replace")):
            raise NotAllowed("the address is not signed by this farm")
        if expires < self._now():
            raise NotAllowed("the address has expired", hint="ask for the job's images again")

    def _sign(self, key: str, expires: int, filename: str, part: str) -> str:
        fields = [key, str(expires), filename, *([part] if part else [])]
        text = "\n".join(fields).encode()
        return hmac.digest(self._secret, text, "sha256").hex()


class Links:
    """Addresses of pictures: the store's own where it has any, otherwise the gateway's.

    Args:
        direct: the store as callers reach it, whose own links are given out; None if every
            picture comes through the gateway.
        base: what stands before the gateway's own paths, such as ``https://host/prefix``; empty
            where callers know where they found it.
    """

    def __init__(self, direct: Store | None, signer: Signer, seconds: int, base: str = "") -> None:
        self._direct = direct
        self._signer = signer
        self._seconds = seconds
        self._base = base.rstrip("/")
        self._link = functools.lru_cache(LINKS_KEPT)(self._direct_link)

    def to(self, source: Source) -> str:
        """Ranges always go through the gateway: no store signs a link to one."""
        url = None
        if source.offset is None:
            url = self._link(source.key, source.name, self._signer.start(self._seconds))
        return url or self.through_gateway(source)

    def _direct_link(self, key: str, name: str, _: int) -> str | None:
        if self._direct is None:
            return None
        return self._direct.signed_url(key, seconds=self._seconds, filename=name)

    def through_gateway(self, source: Source) -> str:
        """For those who do not reach the store."""
        part = "" if source.offset is None else f"{source.offset}+{source.size}"
        seconds, name = self._seconds, source.name
        return self._base + self._signer.path(source.key, seconds=seconds, filename=name, part=part)


def linked_store(settings: GatewaySettings, store: Store) -> Store | None:
    """The store whose own links callers get; its address may be another one for them."""
    if settings.store_links == "gateway":
        return None
    if not settings.store_public_url:
        return store
    if not store.url.startswith("s3://"):
        raise InvalidInput("is for an s3:// store", field="FARM_STORE_PUBLIC_URL")
    parts = urlsplit(settings.store_url)
    query = {**dict(parse_qsl(parts.query)), "endpoint_url": settings.store_public_url}
    return open_store(parts._replace(query=urlencode(query)).geturl())


def media_type(key: str) -> str:
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def secret_of(data: Path) -> bytes:
    """The farm's own signing secret; the first gateway that needs one makes it."""
    path = data / "secret"
    data.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".secret-{secrets.token_hex(8)}")
    if not path.exists():
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secrets.token_hex(32).encode())
            out.flush()
            os.fsync(out.fileno())  # an empty one would let anyone sign
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another gateway was faster
        finally:
            draft.unlink()
    return path.read_bytes()
