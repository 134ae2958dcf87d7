"""Calls to one farm: authorised, repeated while that can help, with errors in plain words."""

import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

import farm
from farm.addresses import without_secrets
from farm.errors import (
    CODES,
    AllRejected,
    FarmError,
    InvalidInput,
    RejectedRender,
    TooLarge,
    Unavailable,
    from_dict,
)
from farm_client.address import Address
from farm_client.transport import Call, Opened, Reply, Wire

PATIENCE_SECONDS = 60.0  # for a farm that has answered before
FIRST_PATIENCE_SECONDS = 1.0  # for one that never has: it is probably not running
FIRST_DELAY_SECONDS = 0.2
MAX_DELAY_SECONDS = 8.0
RETRIED = frozenset({429, 502, 503, 504})
MAX_ERROR_BYTES = 16 * 2**20

Result = TypeVar("Result")


class Connection:
    """Every call may be repeated: submissions carry an idempotency key, the rest changes nothing
    the second time."""

    def __init__(
        self,
        address: Address,
        wire: Wire,
        *,
        patience: float = PATIENCE_SECONDS,
        answered: bool = False,
    ) -> None:
        self.address = address
        self.wire = wire
        self._patience = patience
        self._answered = answered
        self._reached: set[str] = set()  # stores that have given an object
        self._unreached: set[str] = set()
        self._headers = {"User-Agent": f"farm-client/{farm.__version__}", "Accept": "*/*"}
        if address.api_key:
            self._headers["Authorization"] = f"Bearer {_header_value(address.api_key)}"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in another process or on another machine, opens connections of its own."""
        make = partial(type(self), patience=self._patience, answered=self._answered)
        return make, (self.address, self.wire)

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json_body: Any = None,
        content: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 60.0,
    ) -> Any:
        """The JSON of a good answer; a bad one raises what it says."""
        sent = dict(headers or {})
        if json_body is not None:
            content = json.dumps(json_body).encode()
            content_type = "application/json"
        if content_type:
            sent["Content-Type"] = content_type
        call = Call(method, self._url(path, query), {**self._headers, **sent}, content, seconds)
        reply = await self._patiently(call)
        try:
            return json.loads(reply.body)
        except ValueError:
            raise self._stranger(reply) from None

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        method: str = "GET",
        query: Mapping[str, Any] | None = None,
        seconds: float = 60.0,
    ) -> AsyncIterator[Opened]:
        """An answer that is read as it comes; its reader repeats the call, but for one over a
        quota, of which nothing was done."""
        call = Call(method, self._url(path, query), self._headers, None, seconds)
        started, attempt = time.monotonic(), 0
        try:
            while True:
                async with self.wire.open(call) as opened:
                    self._answered = True
                    if opened.status < 300:
                        yield opened
                        return
                    failure = self._error(await _read(opened))
                if opened.status != 429:
                    raise failure
                await self.pause(attempt, failure, started)
                attempt += 1
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._lost(error) from None

    @asynccontextmanager
    async def object(
        self, url: str, wanted: range | None = None, *, gateway_url: str | None = None
    ) -> AsyncIterator[Opened]:
        """A stored object by its signed address; the API key is not sent.

        Args:
            url: the address.
            wanted: of its bytes; the status is 206 if no others come, and 200 if all do.
            gateway_url: another address, for a store that was out of reach from the beginning.
        """
        if gateway_url is not None and urlsplit(url).netloc in self._unreached:
            url = gateway_url
        if url.startswith("/"):  # below the farm's address, which may have a path of its own
            url = self.address.url + url
        headers = {"Accept": "*/*"}
        if wanted is not None:
            headers["Range"] = f"bytes={wanted.start}-{wanted.stop - 1}"
            headers["Accept-Encoding"] = "identity"  # else it may be a range of a compressed body
        call = Call("GET", url, headers)
        store = None if url.startswith(f"{self.address.url}/") else urlsplit(url).netloc
        try:
            async with self.wire.open(call) as opened:
                if opened.status >= 300:
                    if store is not None and gateway_url is not None and self._never_reached(store):
                        raise _out_of_reach(store)  # another answers there, or it lets no one in
                    raise self._error(await _read(opened), store)
                if store is not None:
                    self._reached.add(store)
                yield opened
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            if store is None:
                raise self._lost(error) from None
            self._never_reached(store)
            raise _out_of_reach(store) from None

    def _never_reached(self, store: str) -> bool:
        """Noted for the next call, if it is so."""
        if store not in self._reached:
            self._unreached.add(store)
        return store in self._unreached

    async def persist(
        self, read: Callable[[], Awaitable[Result]], reached: Callable[[], int] = lambda: 0
    ) -> Result:
        """What a call that changes nothing gives, repeated while that can help.

        Args:
            read: the call.
            reached: how far it has come; each time it is farther, patience starts again.
        """
        started, attempt, farthest = time.monotonic(), 0, 0
        while True:
            try:
                return await read()
            except FarmError as error:
                if (now := reached()) > farthest:
                    started, attempt, farthest = time.monotonic(), 0, now
                await self.pause(attempt, error, started)
            attempt += 1

    async def pause(self, attempt: int, error: FarmError, started: float) -> None:
        """Wait before the next attempt; raise the error if that would not help or take too long."""
        wait = min(FIRST_DELAY_SECONDS * 2 ** min(attempt, 10), MAX_DELAY_SECONDS)
        wait *= random.uniform(0.5, 1.0)
        asked = getattr(error, "retry_after", None)
        if asked is not None:
            wait = max(wait, asked)
        if not error.retryable or time.monotonic() + wait > started + self.patience:
            raise error
        await self.wire.sleep(wait)

    @property
    def patience(self) -> float:
        """Seconds that a farm may be away: few for one that has never answered."""
        return self._patience if self._answered else min(FIRST_PATIENCE_SECONDS, self._patience)

    async def _patiently(self, call: Call) -> Reply:
        started, attempt = time.monotonic(), 0
        while True:
            try:
                async with self.wire.open(call) as opened:
                    reply = await _read(opened)
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                failure: FarmError = self._lost(error)
            else:
                self._answered = True
                if reply.status < 300:
                    return reply
                failure = self._error(reply)
                if reply.status not in RETRIED:
                    raise failure
            await self.pause(attempt, failure, started)
            attempt += 1

    def _url(self, path: str, query: Mapping[str, Any] | None) -> str:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        return f"{self.address.url}{path}" + (f"?{urlencode(given)}" if given else "")

    def _lost(self, error: Exception) -> Unavailable:
        """What went wrong below HTTP, in words."""
        url, text = self.address.url, str(error)
        if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
            return _final(f"{url} is not a valid address: {text}", None)
        if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER" in text:
            return _final(f"{url} does not speak https", f"try {url.replace('https', 'http', 1)}")
        if "CERTIFICATE" in text:
            return _final(f"the certificate of {url} is not trusted", text.split("] ")[-1][:120])
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Unavailable(f"no farm answers at {url}", hint=self._who_may_be_missing())
        if (
            isinstance(error, httpx2.RemoteProtocolError)
            and url.startswith("http:")
            and not self._answered
        ):
            secure = url.replace("http", "https", 1)
            return Unavailable(f"{url} does not answer in plain http", hint=f"try {secure}?")
        if isinstance(error, httpx2.TimeoutException):
            return Unavailable(f"the farm at {url} did not answer in time")
        return Unavailable(f"the connection to {url} broke: {text[:100] or type(error).__name__}")

    def _who_may_be_missing(self) -> str:
        if self.address.local:
            return "start one with: farm up"
        scheme, host = self.address.url.split(":")[0], urlsplit(self.address.url).hostname or ""
        proxies = getproxies()
        proxy = proxies.get(scheme) or proxies.get("all")
        if proxy and not proxy_bypass(host):
            return f"asked through the proxy {without_secrets(proxy)}; NO_PROXY={host} avoids it"
        return "is FARM_URL right, and is the farm running there?"

    def _error(self, reply: Reply, store: str | None = None) -> FarmError:
        """Args:
        reply: a bad one.
        store: where it came from, if not from the farm.
        """
        failure = self._told(reply, store)
        after = reply.headers.get("retry-after", "")
        if after.isdecimal() and after.isascii():
            failure.retry_after = min(float(after), 60.0)  # type: ignore[attr-defined]
        return failure

    def _told(self, reply: Reply, store: str | None) -> FarmError:
        try:
            content = json.loads(reply.body)
            facts = content["error"]
            failure = from_dict(facts)
            if rejected := content.get("errors"):
                failure = AllRejected([RejectedRender.from_dict(one) for one in rejected])
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._stranger(reply) if store is None else _refused(store, reply)
        if type(failure) is FarmError and facts.get("code") not in CODES:
            kind = InvalidInput if reply.status < 500 else Unavailable
            failure = kind(failure.message, field=failure.field, hint=failure.hint)
        server = reply.headers.get("farm-version")
        if server and server.split(".")[:2] != farm.__version__.split(".")[:2]:
            other = f"the farm has version {server}, this client {farm.__version__}"
            failure.hint = f"{failure.hint}; {other}" if failure.hint else other
        return failure

    def _stranger(self, reply: Reply) -> FarmError:
        url, status = self.address.url, reply.status
        if status in RETRIED:
            return Unavailable(f"{url} answers HTTP {status}: the farm behind it does not answer")
        if status == 413:
            return TooLarge(
                f"a proxy at {url} takes no body of this size",
                hint="it should let 100 MiB through; nginx has client_max_body_size for that",
            )
        hint = "is FARM_URL right?"
        if place := _redirect(reply):
            hint = f"it redirects to {place}; {hint}"
        if status == 400 and url.startswith("http:"):
            hint = f"try {url.replace('http', 'https', 1)}?"
        return _final(f"{url} answers HTTP {status}, but is not a farm", hint)


class _Final(Unavailable):
    """Trying again would not help."""

    retryable = False


def _final(message: str, hint: str | None) -> Unavailable:
    return _Final(message, hint=hint)


def _out_of_reach(store: str) -> Unavailable:
    return Unavailable(
        f"the farm's store at {store} cannot be reached from here",
        hint="the farm's gateway needs FARM_STORE_PUBLIC_URL, an address of the store that "
        "you can reach, or FARM_STORE_LINKS=gateway",
    )


def _redirect(reply: Reply) -> str | None:
    """Where an answer sends. Nothing here follows: a signed address is good for its host alone,
    and the API key is for the farm."""
    if not 300 <= reply.status < 400:
        return None
    return without_secrets(reply.headers.get("location", "")) or "another address"


def _refused(store: str, reply: Reply) -> Unavailable:
    message = f"the farm's store at {store} answers HTTP {reply.status}"
    if reply.status in RETRIED:
        return Unavailable(message)
    if place := _redirect(reply):
        needs = "AWS_ENDPOINT_URL or FARM_STORE_PUBLIC_URL with the store's own address"
        if region := reply.headers.get("x-amz-bucket-region"):
            place, needs = f"the region {region}", f"AWS_DEFAULT_REGION={region}"
        return _final(f"{message}: it redirects to {place}", f"the farm's gateway needs {needs}")
    return _final(message, "the address may have expired, or the object may be gone: try again")


async def _read(opened: Opened) -> Reply:
    held = bytearray()
    async for part in opened.parts:
        held += part
        if opened.status >= 400 and len(held) > MAX_ERROR_BYTES:
            break
    return Reply(opened.status, opened.headers, bytes(held))


def _header_value(key: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput("has characters that no key has", field="FARM_API_KEY")
    return key


def path_of(*parts: str | int) -> str:
    return "/" + "/".join(quote(str(part), safe="") for part in parts)
