"""Where pictures, chunks and assets lie: a local folder or an S3 bucket, behind one protocol."""

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from farm.addresses import without_secrets
from farm.errors import InvalidInput
from farm.store.protocol import ListedObject, Store

__all__ = ["ListedObject", "Store", "open_store"]

_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9_./-]{0,256}")
_OPTIONS = ("endpoint_url", "region")
_CREDENTIALS = "credentials come from the environment: AWS_ACCESS_KEY_ID and the like"
_HINT = "write a folder, file:///folder or s3://bucket/prefix"


def open_store(url: str, *, attempts: int | None = None) -> Store:
    """The store at a URL; nothing is read or written before the first call.

    ``s3://bucket/prefix`` takes its credentials, region and endpoint from boto3's usual places
    (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` …); ``?endpoint_url=…&region=…`` overrides them.
    ``attempts`` is how often a request to a failing server is made; by default for 13 s on average.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        if not url.strip() or "\0" in url:
            raise InvalidInput("is empty", field="store", hint=_HINT)
        return _local(Path(url).expanduser())
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in {"", "localhost"} or len(parts.path) < 2:
            raise InvalidInput(
                f"{without_secrets(url)!r} is not an absolute path", field="store", hint=_HINT
            )
        return _local(Path(unquote(parts.path)))
    if scheme == "s3":
        return _s3(url, attempts)
    raise InvalidInput(f"the farm has no store for {scheme}://", field="store", hint=_HINT)


def _local(root: Path) -> Store:
    from farm.store.local import LocalStore

    return LocalStore(root)


def _s3(url: str, attempts: int | None) -> Store:
    from farm.store.s3 import S3Store  # boto3 takes a third of a second to import

    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidInput("is not an address", field="store", hint=_HINT) from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if set(options) - set(_OPTIONS):
        raise InvalidInput(
            "has an option that an s3:// store does not know",
            field="store",
            hint=f"known are {' and '.join(_OPTIONS)}; {_CREDENTIALS}",
        )
    if "@" in url.partition("?")[0] or parts.fragment:
        raise InvalidInput(
            "credentials do not belong in its address", field="store", hint=_CREDENTIALS
        )
    if not _BUCKET.fullmatch(parts.netloc):
        raise InvalidInput(f"{parts.netloc!r} is not a bucket's name", field="store", hint=_HINT)
    if not _PREFIX.fullmatch(parts.path) or ".." in parts.path:
        raise InvalidInput(
            f"{parts.path!r} is not a prefix that the farm uses",
            field="store",
            hint="use letters, digits, dot, dash, underscore and slash",
        )
    endpoint = options.get("endpoint_url")
    if endpoint is not None:
        _check_endpoint(endpoint)
    return S3Store(
        parts.netloc,
        parts.path,
        endpoint_url=endpoint,
        region=options.get("region") or None,
        attempts=attempts,
    )


def _check_endpoint(endpoint: str) -> None:
    hint = "for example http://127.0.0.1:9000"
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        raise InvalidInput("endpoint_url is not an address", field="store", hint=hint) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput("endpoint_url is not an address", field="store", hint=hint)
    if parts.username is not None or parts.query:
        raise InvalidInput("endpoint_url carries credentials", field="store", hint=_CREDENTIALS)
