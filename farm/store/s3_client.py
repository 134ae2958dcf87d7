"""A boto3 client for S3 that outlives its credentials."""

import base64
import contextlib
import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader

from farm.errors import InvalidInput

MAX_CONNECTIONS = 32
CONNECT_SECONDS = 5
READ_SECONDS = 20  # of silence; a dead connection costs that much before the next attempt
PAGE_KEYS = 1000  # of a list; the most that S3 gives at once
ATTEMPTS = 10  # botocore waits up to 0.05, 0.1 … 12.8 s between them, but 1, 2 … 20 s if overloaded

WRONG = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthFailure"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_NAMELESS = {"400", "401", "403"}  # what either is called where an answer has no body: that to HEAD

_LOADER = create_loader()  # shared: reading boto3's own files takes a fifth of a second

_Keys = tuple[str, str, str]


class S3Client:
    """Calls of the S3 API, by the names of boto3's methods; thread-safe.

    boto3 renews credentials that say when they end. Of others, such as a file that was written
    again, it knows only what was there at first; so where a server refuses the credentials, they
    are looked up once more, and the call is repeated if they have changed.

    Raises:
        InvalidInput: the credentials have a space or a line end in them.
    """

    def __init__(
        self, endpoint_url: str | None, region: str | None, attempts: int | None = None
    ) -> None:
        self._endpoint_url = endpoint_url
        self._region = region
        self._attempts = attempts
        self._renewing = threading.Lock()
        self._client, self._keys = self._open(_new_session())

    @property
    def endpoint_url(self) -> str:
        return str(self._client.meta.endpoint_url)

    def call(self, operation: str, **parameters: Any) -> Any:
        """Raises what boto3 raises."""
        client = self._client
        try:
            return getattr(client, operation)(**parameters)
        except ClientError as error:
            refused = error_code(error) in WRONG | EXPIRED | _NAMELESS
            if not refused or not self._renewed(client):
                raise
        return getattr(self._client, operation)(**parameters)

    def pages(self, **parameters: Any) -> Iterator[Any]:
        """The answers to ``list_objects_v2`` until the last one.

        Raises ``ValueError`` where the server has more and does not say how to go on.
        """
        more: dict[str, str] = {}
        while True:
            page = self.call("list_objects_v2", MaxKeys=PAGE_KEYS, **parameters, **more)
            yield page
            if not page.get("IsTruncated"):
                return
            if "NextContinuationToken" not in page:
                raise ValueError("the server's list breaks off and names no continuation")
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def signed_url(self, operation: str, parameters: dict[str, str], seconds: int) -> str:
        """A link that does one call without credentials."""
        return str(
            self._client.generate_presigned_url(operation, Params=parameters, ExpiresIn=seconds)
        )

    def _renewed(self, refused: Any) -> bool:
        """Whether there are other credentials now than those of the client that was refused."""
        with self._renewing:
            if self._client is refused:
                with contextlib.suppress(InvalidInput, BotoCoreError):  # the refusal says enough
                    session = _new_session()
                    if _credentials(session) != self._keys:
                        self._client, self._keys = self._open(session)
            return self._client is not refused

    def _open(self, session: boto3.session.Session) -> tuple[Any, _Keys | None]:
        client = session.client(
            "s3",
            endpoint_url=self._endpoint_url,
            region_name=self._region or session.region_name or "us-east-1",
            config=Config(
                signature_version="s3v4",
                max_pool_connections=MAX_CONNECTIONS,
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                tcp_keepalive=True,
                retries={"mode": "standard", "total_max_attempts": self._attempts or ATTEMPTS},
                # Other stores refuse the checksums that boto3 adds by itself; the signature
                # covers the body's sha256 anyway.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        client.meta.events.register_last("before-call.s3", _without_expect)
        client.meta.events.register_last("before-call.s3.DeleteObjects", _with_content_md5)
        client.meta.events.register_last("before-call.s3.HeadBucket", _without_redirect)
        return client, _credentials(session)


def error_code(error: ClientError) -> str:
    """S3's name of an error; the status where the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def content_md5(data: bytes) -> str:
    """Some servers keep what has arrived when a connection breaks off; with this they refuse."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _new_session() -> boto3.session.Session:
    core = botocore.session.get_session()
    core.register_component("data_loader", _LOADER)
    return boto3.session.Session(botocore_session=core)


def _credentials(session: boto3.session.Session) -> _Keys | None:
    """A line end that came along from a file makes signatures wrong, and headers impossible."""
    found = session.get_credentials()
    if found is None:
        return None
    kept = found.get_frozen_credentials()
    keys = kept.access_key, kept.secret_key, kept.token or ""
    names = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
    for name, value in zip(names, keys, strict=True):
        if value.split() != ([value] if value else []):
            raise InvalidInput(
                "has a space or a line end in it", field=name, hint="copy it again, without those"
            )
    return keys


def _with_content_md5(params: dict[str, Any], **_: object) -> None:
    """What every server takes in place of the CRC-32, which boto3 adds to this call in any case.

    MinIO before 2025, OVH and others refuse the call without it (aws-sdk-js-v3 issue 6920).
    """
    params["context"].pop("checksum", None)
    params["headers"]["Content-MD5"] = content_md5(params["body"])


def _without_redirect(params: dict[str, Any], **_: object) -> None:
    """Where an answer redirects and names no region, botocore asks for the bucket's, and were that
    answer a redirect too, for the region of that, until its stack is full."""
    params["context"]["s3_redirect"]["redirected"] = True


def _without_expect(params: dict[str, Any], **_: object) -> None:
    """Send a body without waiting to be asked for it.

    While botocore waits for "100 Continue" it reads for ever, at full speed, if the connection ends
    within that reply's headers, and takes an empty object's for the next one's (issue 3755).
    """
    params["headers"].pop("Expect", None)
