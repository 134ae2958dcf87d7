"""A store in an S3 bucket."""

import base64
import contextlib
import hashlib
import random
import re
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as ConnectFailed
from botocore.loaders import create_loader
from urllib3.exceptions import HTTPError

from farm.addresses import masked, without_secrets
from farm.errors import InvalidInput, NotFound, StoreError
from farm.store.probing import probe
from farm.store.protocol import STREAM_BYTES, ListedObject, check_key, check_prefix, whole_range

MAX_CONNECTIONS = 32
CONNECT_SECONDS = 5
READ_SECONDS = 20  # of silence; a dead connection costs that much before the next attempt
PAGE_KEYS = 1000  # of a list; the most that S3 gives at once
ATTEMPTS = 10  # botocore waits up to 0.05, 0.1 … 12.8 s between them, but 1, 2 … 20 s if overloaded
RACE_ATTEMPTS = 8  # of a PUT that met another one of the same key under way
BODY_ATTEMPTS = 4  # of a body that broke off; botocore repeats requests, not bodies

_LOADER = create_loader()  # shared: reading boto3's own files takes a fifth of a second

_MISSING = {"NoSuchKey", "NotFound", "404"}
_TAKEN = {"PreconditionFailed", "412"}
_RACING = {"ConditionalRequestConflict", "OperationAborted", "409"}
_WRONG = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_REFUSED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"}
_OVERLOADED = {"SlowDown", "ServiceUnavailable", "Throttling", "RequestLimitExceeded", "503"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}
_UNKNOWN = {"NotImplemented", "501"}


class S3Store:
    """Objects appear by a PUT with ``If-None-Match: *``."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        attempts: int | None = None,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        options = (("endpoint_url", endpoint_url), ("region", region))
        query = "&".join(f"{name}={quote(value, safe=':/')}" for name, value in options if value)
        self.url = f"s3://{bucket}/{self._prefix}".rstrip("/") + (query and f"?{query}")
        with self._errors("reach"):
            core = botocore.session.get_session()
            core.register_component("data_loader", _LOADER)
            session = boto3.session.Session(botocore_session=core)
            self._client: Any = session.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region or session.region_name or "us-east-1",
                config=Config(
                    signature_version="s3v4",
                    max_pool_connections=MAX_CONNECTIONS,
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": attempts or ATTEMPTS},
                    # Other stores refuse the checksums that boto3 adds by itself; the signature
                    # covers the body's sha256 anyway.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
            self._client.meta.events.register_last("before-call.s3", _without_expect)
            _check_credentials(session.get_credentials())

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        name = self._name(key)
        # Some servers keep what has arrived when a connection breaks off; with this they refuse.
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        for attempt in range(1, RACE_ATTEMPTS + 1):
            try:
                with self._errors(f"write {key} to"):
                    self._client.put_object(
                        Bucket=self._bucket,
                        Key=name,
                        Body=data,
                        ContentType=content_type,
                        ContentMD5=digest,
                        IfNoneMatch="*",
                    )
                return True
            except _Taken:
                return False
            except _Racing:
                if attempt == RACE_ATTEMPTS:
                    raise
                time.sleep(random.random() * 0.05 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def get(self, key: str) -> bytes:
        return self._get(key)

    def read(self, key: str, offset: int, size: int) -> bytes:
        data = self._get(key, Range=f"bytes={offset}-{offset + size - 1}")
        return whole_range(data, key, size)

    def stream(self, key: str) -> Iterator[bytes]:
        return self._stream(key)

    def _get(self, key: str, **options: str) -> bytes:
        for attempt in range(1, BODY_ATTEMPTS + 1):
            try:
                return b"".join(self._stream(key, **options))
            except _BrokeOff:
                if attempt == BODY_ATTEMPTS:
                    raise
                time.sleep(random.random() * 0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _stream(self, key: str, **options: str) -> Iterator[bytes]:
        name = self._name(key)
        with self._errors(f"read {key} from", key):
            body = self._client.get_object(Bucket=self._bucket, Key=name, **options)["Body"]
            with contextlib.closing(body):
                yield from body.iter_chunks(STREAM_BYTES)

    def size(self, key: str) -> int | None:
        name = self._name(key)
        try:
            with self._errors(f"look up {key} in", key):
                found = self._client.head_object(Bucket=self._bucket, Key=name)
                return int(found["ContentLength"])
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[ListedObject]:
        check_prefix(prefix)
        with self._errors("list"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket,
                Prefix=self._prefix + prefix,
                PaginationConfig={"PageSize": PAGE_KEYS},
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    yield ListedObject(found["Key"][len(self._prefix) :], found["Size"])

    def delete(self, key: str) -> None:
        name = self._name(key)
        with contextlib.suppress(NotFound), self._errors(f"delete {key} from", key):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def signed_url(self, key: str, *, seconds: int, filename: str | None = None) -> str | None:
        parameters = {"Bucket": self._bucket, "Key": self._name(key)}
        if filename is not None:
            parameters["ResponseContentDisposition"] = _disposition(filename)
        with self._errors(f"sign a link to {key} in"):
            return str(
                self._client.generate_presigned_url(
                    "get_object", Params=parameters, ExpiresIn=seconds
                )
            )

    def probe(self, writers: int = 16) -> None:
        probe(self, writers)

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    @contextlib.contextmanager
    def _errors(self, what: str, key: str | None = None) -> Iterator[None]:
        """boto3's errors as the farm's; with a key, a missing object is ``NotFound``."""
        try:
            yield
        except ClientError as error:
            raise self._explain(what, key, error) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StoreError(
                f"cannot {what} {self.url}: there are no credentials",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            ) from error
        except (CredentialRetrievalError, TokenRetrievalError) as error:
            raise StoreError(
                f"cannot {what} {self.url}: there are no usable credentials: {error}",
                hint="log in again, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            ) from error
        except SSLError as error:
            raise StoreError(
                f"cannot {what} {self.url}: {masked(str(error))}",
                hint="AWS_CA_BUNDLE names the file with the certificates to trust",
            ) from error
        except (ConnectFailed, HTTPClientError) as error:
            raise StoreError(
                f"cannot {what} {self.url}: {self._address} does not answer",
                hint="is the server running, and AWS_ENDPOINT_URL or endpoint_url right?",
            ) from error
        except (IncompleteReadError, ResponseStreamingError, HTTPError) as error:
            raise _BrokeOff(f"cannot {what} {self.url}: the connection broke off") from error
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"cannot {what} {self.url}: {masked(str(error))}") from error

    @property
    def _address(self) -> str:
        return without_secrets(str(self._client.meta.endpoint_url))

    def _explain(self, what: str, key: str | None, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        failed = f"cannot {what} {self.url}"
        if code in _MISSING and key is not None:
            return NotFound(f"no object {key} in the store")
        if code in _TAKEN:
            return _Taken(f"{failed}: the key is taken")
        if code in _RACING:
            return _Racing(f"{failed}: other writers of the same key keep interfering")
        said = str(error.response.get("Error", {}).get("Message", "")).strip()
        reason, hint = f"{code}: {said}" if said else code, None
        if code == "NoSuchBucket":
            reason = f"there is no bucket {self._bucket!r} at {self._address}"
            hint = "make the bucket, or correct the store's URL"
        elif code in _WRONG:
            reason = f"the credentials are wrong ({code})"
            hint = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif code in _EXPIRED:
            reason, hint = f"the credentials have expired ({code})", "renew them"
        elif code in _REFUSED:
            reason = f"these credentials do not allow it ({code})"
            hint = "they need s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
        elif code == "RequestTimeTooSkewed":
            reason, hint = "the clocks of this machine and the server differ", "set the clock"
        elif code in _OVERLOADED:
            reason, hint = f"it is overloaded ({code})", "the farm tries again later"
        elif code in _FULL:
            reason, hint = f"it is full ({code})", "free some space, or raise the quota"
        elif code in _UNKNOWN:
            reason = f"the server cannot do it ({code})"
            hint = "use a store that honours If-None-Match, such as AWS S3, Ceph or MinIO"
        return StoreError(f"{failed}: {reason}", hint=hint)


class _Taken(StoreError):
    """There is an object at the key."""


class _Racing(StoreError):
    """Another write of the same key is under way; which of them wins is not decided yet."""


class _BrokeOff(StoreError):
    """The connection ended in the middle of a body."""


def _check_credentials(found: Any) -> None:
    """A line end that came along from a file makes signatures wrong, and headers impossible."""
    if found is None:
        return
    kept = found.get_frozen_credentials()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", kept.access_key),
        ("AWS_SECRET_ACCESS_KEY", kept.secret_key),
        ("AWS_SESSION_TOKEN", kept.token or ""),
    ):
        if value.split() != ([value] if value else []):
            raise InvalidInput(
                "has a space or a line end in it", field=name, hint="copy it again, without those"
            )


def _without_expect(params: dict[str, Any], **_: object) -> None:
    """Send a body without waiting to be asked for it.

    While botocore waits for "100 Continue" it reads for ever, at full speed, if the connection ends
    within that reply's headers, and takes an empty object's for the next one's (issue 3755).
    """
    params["headers"].pop("Expect", None)


def _disposition(filename: str) -> str:
    """RFC 6266: plain ASCII for old readers, UTF-8 for the others."""
    plain = re.sub(r'[^ -~]|["\\]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
