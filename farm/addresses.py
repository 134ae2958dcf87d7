"""Addresses that may carry a password: checked, and named in messages without it."""

import ipaddress
import re
import socket
from urllib.parse import SplitResult, parse_qsl, urlsplit

from farm.errors import InvalidInput

REDIS_HINT = "for example redis://127.0.0.1:6379 or unix:///run/valkey.sock"
ENCODE_HINT = (
    "in a user name or password write @ as %40, / as %2F, ? as %3F, # as %23, : as %3A, % as %25"
)

_SECONDS = r"(?=.*[1-9])\d{1,9}(\.\d{1,9})?"
_ANY_OPTIONS = {
    "db": r"\d{1,9}",
    "username": ".*",
    "password": ".*",
    "client_name": "[!-~]+",
    "protocol": "[23]",
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "health_check_interval": r"\d{1,9}",
    "max_connections": r"\d{1,9}",
    "retry_on_timeout": ".*",
}
_HOST_OPTIONS = {**_ANY_OPTIONS, "socket_keepalive": ".*"}
_TLS_OPTIONS = {
    "ssl_ca_certs": ".*",
    "ssl_ca_path": ".*",
    "ssl_certfile": ".*",
    "ssl_keyfile": ".*",
    "ssl_password": ".*",
    "ssl_cert_reqs": "none|optional|required",
    "ssl_check_hostname": ".*",
    "ssl_ciphers": ".*",
}
# What may stand after the ? of an address, by its scheme. redis-py passes others on to a connection
# that does not know them, and looks at most values when it connects.
_OPTIONS = {
    "redis": _HOST_OPTIONS,
    "rediss": {**_HOST_OPTIONS, **_TLS_OPTIONS},
    "unix": _ANY_OPTIONS,
}
_USER_INFO = re.compile(r"//[^\s/\"']*@")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def is_loopback(name: str) -> bool:
    """Whether a host can only be this machine, whatever a name server says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def split_host(text: str) -> str | None:
    """The host of ``host:port`` or ``[v6]:port``; None where it cannot be read."""
    try:
        parts = urlsplit(f"//{text}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if parts.netloc == text else None


def reachable(address: str) -> bool:
    """Whether something takes connections at ``host:port``, now and without patience."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=0.5).close()
    except (OSError, ValueError):
        return False
    return True


def without_secrets(url: str) -> str:
    """The address as it may be shown: without user, password and query."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that cannot be read"
    return parts._replace(netloc=host, query="", fragment="").geturl()


def masked(text: str) -> str:
    """Another program's message, without the users and passwords of the addresses in it."""
    return _USER_INFO.sub("//", text)


def check_redis_url(url: str) -> str:
    """The address itself, if it is one of Redis; no message repeats a part of it.

    Raises:
        InvalidInput: what is wrong, with a hint where a password may need percent-encoding.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _OPTIONS:
        raise _wrong("must start with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _wrong("is not an address", rest) from None
    credentials = parts.netloc.rpartition("@")[0]
    if "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        raise _wrong("has a character in its password that ends the address", rest)
    if _LONE_PERCENT.search(credentials):
        raise _wrong("has a % in its password that is not percent-encoding", rest)
    known = _OPTIONS[scheme]
    if not all(
        re.fullmatch(known.get(name, "(?!)"), value) for name, value in parse_qsl(parts.query)
    ):
        raise InvalidInput(
            "has an option that is not understood",
            field="REDIS_URL",
            hint=f"REDIS_URL takes after the ?: {', '.join(known)}",
        )
    if scheme == "unix":
        if not parts.path.startswith("/"):
            raise _wrong("has no socket path")
        return url
    if not host or port == 0:
        raise _wrong("has no host and port", rest)
    if not _is_database(parts):
        raise _wrong("has something other than a database number after the host")
    return url


def check_http_url(url: str) -> str:
    """The address without its last slash, if it is one of HTTP; no message repeats it.

    Raises:
        ValueError: it is not, or it carries a user, a query or a fragment.
    """
    parts = urlsplit(url)
    _ = parts.port
    plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError("not an address of HTTP")
    return url.rstrip("/")


def _is_database(parts: SplitResult) -> bool:
    path = parts.path.strip("/")
    return not path or (path.isascii() and path.isdigit())


def _wrong(message: str, rest: str = "") -> InvalidInput:
    hint = ENCODE_HINT if "@" in rest else REDIS_HINT
    return InvalidInput(message, field="REDIS_URL", hint=hint)
