"""A store in an S3 bucket."""

import contextlib
import itertools
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as ConnectFailed
from urllib3.exceptions import HTTPError

from farm.addresses import masked, without_secrets
from farm.errors import NotFound, StoreError
from farm.store.bulk_delete import BULK_KEYS, SIDE_BY_SIDE, BulkDelete
from farm.store.multipart import LARGE_BYTES, TAKEN, UNKNOWN, Multipart
from farm.store.protocol import STREAM_BYTES, ListedObject, check_key, check_prefix, whole_range
from farm.store.s3_client import EXPIRED, WRONG, S3Client, content_md5, error_code

RACE_ATTEMPTS = 8  # of a PUT that met another one of the same key under way
BODY_ATTEMPTS = 4  # of a body that broke off; botocore repeats requests, not bodies
DELETERS = 16  # at work where each object needs a request of its own, which takes some 30 ms

_MISSING = {"NoSuchKey", "NotFound", "404"}
# The last: an upload in parts was completed by a request whose answer was lost.
_RACING = {"ConditionalRequestConflict", "OperationAborted", "409", "NoSuchUpload"}
_REFUSED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403"}
_OVERLOADED = {"SlowDown", "ServiceUnavailable", "Throttling", "RequestLimitExceeded", "503"}
_REDIRECTS = {301, 302, 303, 307, 308}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"}


class S3Store:
    """Objects appear by a request with ``If-None-Match: *``: a PUT, or the last one of an upload in
    parts."""

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
            self._client = S3Client(endpoint_url, region, attempts)
        self._multipart = Multipart(self._client, bucket)
        self._bulk_delete = BulkDelete(self._client, bucket)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> bool:
        name = self._name(key)
        for attempt in range(1, RACE_ATTEMPTS + 1):
            try:
                with self._errors(f"write {key} to"):
                    if len(data) < LARGE_BYTES or not self._multipart.writes_once(self._prefix):
                        self._put_whole(name, data, content_type)
                    elif self.size(key) is None:  # else it is not sent for nothing
                        self._multipart.put(name, data, content_type)
                    else:
                        return False
                return True
            except _Taken:
                return False
            except _Racing:
                if attempt == RACE_ATTEMPTS:
                    raise
                time.sleep(random.random() * 0.05 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _put_whole(self, name: str, data: bytes, content_type: str) -> None:
        self._client.call(
            "put_object",
            Bucket=self._bucket,
            Key=name,
            Body=data,
            ContentType=content_type,
            ContentMD5=content_md5(data),
            IfNoneMatch="*",
        )

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
            found = self._client.call("get_object", Bucket=self._bucket, Key=name, **options)
            body = found["Body"]
            with contextlib.closing(body):
                try:
                    yield from body.iter_chunks(STREAM_BYTES)
                except ReadTimeoutError as error:  # a line that was cut without a word
                    raise _BrokeOff(f"cannot read {key} from {self.url}: it fell silent") from error

    def size(self, key: str) -> int | None:
        name = self._name(key)
        try:
            with self._errors(f"look up {key} in", key):
                found = self._client.call("head_object", Bucket=self._bucket, Key=name)
                return int(found["ContentLength"])
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[ListedObject]:
        check_prefix(prefix)
        with self._errors("list"):
            for page in self._client.pages(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", ()):
                    yield ListedObject(found["Key"][len(self._prefix) :], found["Size"])

    def folders(self, prefix: str) -> Iterator[str]:
        check_prefix(prefix)
        start = self._prefix + prefix
        with self._errors("list"):
            for page in self._client.pages(Bucket=self._bucket, Prefix=start, Delimiter="/"):
                for found in page.get("CommonPrefixes", ()):
                    yield found["Prefix"][len(self._prefix) :]

    def delete(self, key: str) -> None:
        name = self._name(key)
        with contextlib.suppress(NotFound), self._errors(f"delete {key} from", key):
            self._client.call("delete_object", Bucket=self._bucket, Key=name)

    def delete_many(self, keys: Sequence[str]) -> None:
        names = [self._name(key) for key in keys]
        blocks = [names[start : start + BULK_KEYS] for start in range(0, len(names), BULK_KEYS)]
        with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="delete") as pool:
            left = itertools.chain.from_iterable(pool.map(self._delete_block, blocks))
            singly = [name.removeprefix(self._prefix) for name in left]
        with ThreadPoolExecutor(DELETERS, thread_name_prefix="delete") as pool:
            for _ in pool.map(self.delete, singly):
                pass

    def _delete_block(self, names: Sequence[str]) -> Sequence[str]:
        with self._errors("delete from"):
            return self._bulk_delete(names)

    def prune(self, prefix: str) -> None:
        """A bucket has no folders."""

    def signed_url(self, key: str, *, seconds: int, filename: str | None = None) -> str | None:
        parameters = {"Bucket": self._bucket, "Key": self._name(key)}
        if filename is not None:
            parameters["ResponseContentDisposition"] = _disposition(filename)
        with self._errors(f"sign a link to {key} in"):
            return self._client.signed_url("get_object", parameters, seconds)

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
        except (IncompleteReadError, ResponseStreamingError, HTTPError) as error:
            raise _BrokeOff(f"cannot {what} {self.url}: the connection broke off") from error
        except (ConnectFailed, HTTPClientError) as error:
            raise StoreError(
                f"cannot {what} {self.url}: {self._address} does not answer",
                hint="is the server running, and AWS_ENDPOINT_URL or endpoint_url right?",
            ) from error
        except (BotoCoreError, ValueError) as error:
            raise StoreError(f"cannot {what} {self.url}: {masked(str(error))}") from error

    @property
    def _address(self) -> str:
        return without_secrets(self._client.endpoint_url)

    def _explain(self, what: str, key: str | None, error: ClientError) -> Exception:
        code = error_code(error)
        failed = f"cannot {what} {self.url}"
        if code in _MISSING and key is not None:
            return NotFound(f"no object {key} in the store")
        if code in TAKEN:
            return _Taken(f"{failed}: the key is taken")
        if code in _RACING:
            return _Racing(f"{failed}: other writers of the same key keep interfering")
        said = str(error.response.get("Error", {}).get("Message", "")).strip()
        reason, hint = f"{code}: {said}" if said else code, None
        if code == "NoSuchBucket":
            reason = f"there is no bucket {self._bucket!r} at {self._address}"
            hint = "make the bucket, or correct the store's URL"
        elif code in WRONG:
            reason = f"the credentials are wrong ({code})"
            hint = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif code in EXPIRED:
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
        elif error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _REDIRECTS:
            reason, hint = _redirect(error)
        elif code in UNKNOWN:
            reason = f"the server cannot do it ({code})"
            hint = "use a store that honours If-None-Match, such as AWS S3, Ceph or MinIO"
        return StoreError(f"{failed}: {reason}", hint=hint)


def _redirect(error: ClientError) -> tuple[str, str]:
    """What botocore did not follow: where to, and what to set."""
    told = error.response.get("Error", {})
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if region := headers.get("x-amz-bucket-region") or told.get("Region"):
        hint = f"set AWS_DEFAULT_REGION={region}; an AWS_ENDPOINT_URL must be one of that region"
        return f"the bucket is in the region {region}", hint
    place = without_secrets(headers.get("location") or told.get("Endpoint") or "another address")
    return f"it redirects to {place}", "is AWS_ENDPOINT_URL or endpoint_url right?"


class _Taken(StoreError):
    """There is an object at the key."""


class _Racing(StoreError):
    """Another write of the same key is under way; which of them wins is not decided yet."""


class _BrokeOff(StoreError):
    """The connection ended, or fell silent, in the middle of a body."""


def _disposition(filename: str) -> str:
    """RFC 6266: plain ASCII for old readers, UTF-8 for the others."""
    plain = re.sub(r'[^ -~]|["\\]', "_", filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
