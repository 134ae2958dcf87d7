"""Who calls: API keys, and the rules that keep web pages out of a farm without keys."""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from farm.addresses import is_loopback, split_host
from farm.errors import InvalidInput, NotAllowed

log = logging.getLogger(__name__)

Scope = Literal["read", "write", "admin"]  # admin sees how much each tenant uses

LOCAL_TENANT = "local"
SCOPES: frozenset[Scope] = frozenset({"read", "write", "admin"})
RECHECK_SECONDS = 1.0  # how often the keys file is looked at


class Forbidden(NotAllowed):
    """The caller's key does not allow this, or the call comes from a foreign web page."""

    status = 403


class Key(BaseModel):
    """What the keys file says of one key. A misspelt word would open more than is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: Annotated[str, StringConstraints(min_length=1)]
    expires: AwareDatetime | None = None
    scopes: frozenset[Scope] = frozenset({"read", "write"})
    note: str = ""  # for those who read the file


class Caller(NamedTuple):
    tenant: str
    scopes: frozenset[Scope]


_KEYS = TypeAdapter(
    dict[Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$", to_lower=True)], Key]
)


_EXAMPLE = """{"sha256 of the key": {"tenant": "ann", "expires": "2027-01-31T00:00:00Z"}}"""


class KeyFile:
    """The keys, read again when the file changes, so that a revoked key stops at once.

    If the file cannot be read later on, the last keys stay, and the log says so: a half-written
    file locks no one out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._stamp = self._stat()
        self._keys = self._read()
        self._refused = self._stamp  # the last file that the log has told of

    def find(self, key: str) -> Key | None:
        with self._lock:
            if time.monotonic() - self._looked >= RECHECK_SECONDS:
                self._looked = time.monotonic()
                stamp = self._stat()
                if stamp != self._stamp:
                    try:
                        self._keys, self._stamp = self._read(), stamp
                    except InvalidInput as error:
                        if stamp != self._refused:
                            log.warning("the keys are as they were: %s", error)
                        self._refused = stamp
        return self._keys.get(hashlib.sha256(key.encode(errors="replace")).hexdigest())

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def _read(self) -> dict[str, Key]:
        try:
            return _KEYS.validate_json(self._path.read_bytes())
        except OSError as error:
            raise InvalidInput(
                f"{self._path} cannot be read: {error.strerror}", field="FARM_KEYS"
            ) from None
        except ValidationError as error:
            raise InvalidInput(
                f"{self._path}: {_explain(error)}",
                field="FARM_KEYS",
                hint=_EXAMPLE,
            ) from None


def _explain(error: ValidationError) -> str:
    """What is wrong in the file, without a word that may be a key in plain."""
    findings = error.errors(include_url=False)
    if any(finding["loc"][-1:] == ("[key]",) for finding in findings):
        return "a key is named by its sha256, 64 hexadecimal digits, and one is not"
    loc, message = findings[0]["loc"], findings[0]["msg"].replace("Input should", "must")
    if not loc:
        return message
    digest, *field = (str(part) for part in loc)
    return f"{'.'.join(field)} of the key {digest[:8]}…: {message}".removeprefix(" of ")


class Authenticator:
    """Checks who calls."""

    def __init__(
        self,
        keys: KeyFile | None,
        *,
        without_keys: bool,
        now: Callable[[], datetime],
    ) -> None:
        if keys is None and not without_keys:
            raise InvalidInput(
                "is not set, so no one could call",
                field="FARM_KEYS",
                hint="name a keys file, or set FARM_OPEN=1 on your own machine",
            )
        self._keys = keys
        self._open = without_keys
        self._now = now

    def caller(self, authorization: str | None) -> Caller:
        if not authorization:
            if self._open:
                return Caller(LOCAL_TENANT, SCOPES)
            raise NotAllowed(
                "no API key", hint="set FARM_API_KEY, or send Authorization: Bearer KEY"
            )
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotAllowed("no bearer key", hint="send Authorization: Bearer KEY")
        key = self._keys.find(token.strip()) if self._keys is not None else None
        if key is None:
            raise NotAllowed(
                "the API key is unknown",
                hint="this farm needs none; leave the header out" if self._keys is None else None,
            )
        if key.expires is not None and key.expires <= self._now():
            raise NotAllowed(f"the API key expired on {key.expires:%Y-%m-%d %H:%M %Z}")
        return Caller(key.tenant, key.scopes)

    def check_page(self, host: str | None, origin: str | None, address: str | None) -> None:
        """On an open farm neither another machine nor a stranger's web page may get in.

        A header can say anything, so the caller's own address must be of this machine. A page's
        name may point to this machine for a moment, so the host that the browser believes in must
        be a loopback name, and a page's origin must be that very host.

        Args:
            address: of the caller; None where it came through a unix socket.
        """
        if not self._open:
            return
        if address is not None and not is_loopback(address):
            raise Forbidden("this farm has no keys file, so only its own machine may call")
        name = split_host(host or "")
        if name is None or not is_loopback(name):
            raise Forbidden(
                f"the host {(host or '')[:80]!r} is not this machine",
                hint="use http://127.0.0.1, or give the farm a keys file",
            )
        if origin is not None and origin.partition("://")[2] != host:
            raise Forbidden("pages of other origins may not call this farm")


def scope_missing(scope: str) -> Forbidden:
    return Forbidden(f"the API key lacks the scope {scope!r}")
