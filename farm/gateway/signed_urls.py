"""Addresses that let anyone who has one read one stored object, or a range, for a while."""

import hashlib
import hmac
import mimetypes
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

from farm.errors import NotAllowed
from farm.sinks.protocol import Source
from farm.store import Store


class Signer:
    """Signs and checks addresses below ``/v1/objects``; gateways with one secret agree."""

    def __init__(self, secret: bytes, now: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._now = now

    def path(self, key: str, *, seconds: int, filename: str, part: str = "") -> str:
        """``part`` is the range's offset and size, as in ``1536+40961``; empty for the whole."""
        expires = int(self._now()) + seconds
        query = {
            "expires": expires,
            "filename": filename,
            "signature": self._sign(key, expires, filename, part),
        }
        if part:
            query["part"] = part
        return f"/v1/objects/{quote(key)}?{urlencode(query)}"

    def check(self, key: str, expires: int, filename: str, signature: str, part: str = "") -> None:
        right = self._sign(key, expires, filename, part)
        if not hmac.compare_digest(right.encode(), signature.encode(errors="replace")):
            raise NotAllowed("the address is not signed by this farm")
        if expires < self._now():
            raise NotAllowed("the address has expired", hint="ask for the job's images again")

    def _sign(self, key: str, expires: int, filename: str, part: str) -> str:
        fields = [key, str(expires), filename, *([part] if part else [])]
        text = "\n".join(fields).encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()


class Links:
    """Addresses of pictures: the store's own where it has any, otherwise the gateway's."""

    def __init__(self, store: Store, signer: Signer, seconds: int) -> None:
        self._store = store
        self._signer = signer
        self._seconds = seconds

    def to(self, source: Source) -> str:
        """Ranges always go through the gateway: no store signs a link to one."""
        key, name, seconds = source.key, source.name, self._seconds
        if source.offset is not None:
            part = f"{source.offset}+{source.size}"
            return self._signer.path(key, seconds=seconds, filename=name, part=part)
        url = self._store.signed_url(key, seconds=seconds, filename=name)
        return url or self._signer.path(key, seconds=seconds, filename=name)


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
        try:
            os.link(draft, path)
        except FileExistsError:
            pass  # another gateway was faster
        finally:
            draft.unlink()
    return path.read_bytes()
