"""A large object in parts that travel side by side, and of which each is repeated by itself.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

import contextlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from botocore.exceptions import BotoCoreError, ClientError

from farm.store.s3_client import S3Client, content_md5, error_code

LARGE_BYTES = 32 * 2**20  # from here on an object is sent in parts
PART_BYTES = 8 * 2**20  # of all but the last; S3 takes 5 MiB at least
SIDE_BY_SIDE = 4  # parts of one object

TAKEN = {"PreconditionFailed", "412"}
UNKNOWN = {"NotImplemented", "501"}


class Multipart:
    """Uploads into one bucket; thread-safe."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._once: bool | None = None
        self._asking = threading.Lock()

    def writes_once(self, prefix: str) -> bool:
        """Whether the server honours ``If-None-Match`` for uploads in parts too; it is tried once.

        Some, such as Ceph's gateway before version 20, honour it for single requests only.

        Args:
            prefix: start of the key of a small object, which is removed again.

        Raises:
            botocore's errors.
        """
        with self._asking:
            if self._once is None:
                key = f"{prefix}probe/{secrets.token_hex(16)}"
                self._client.call("put_object", Bucket=self._bucket, Key=key, Body=b"first")
                try:
                    self.put(key, b"second", "application/octet-stream")
                    self._once = False
                except ClientError as error:
                    if error_code(error) not in TAKEN | UNKNOWN:
                        raise
                    self._once = error_code(error) in TAKEN
                finally:
                    self._client.call("delete_object", Bucket=self._bucket, Key=key)
            return self._once

    def put(self, key: str, data: bytes, content_type: str) -> None:
        """Write an object unless its key is taken; it appears with the last of these calls.

        An upload that is cut off leaves parts that no list of objects shows; a bucket's rule
        ``AbortIncompleteMultipartUpload`` removes them after some days.

        Raises:
            botocore's errors; one of ``TAKEN`` if the key was taken.
        """
        place = {"Bucket": self._bucket, "Key": key}
        started = self._client.call("create_multipart_upload", **place, ContentType=content_type)
        place["UploadId"] = started["UploadId"]
        view = memoryview(data)

        def send(start: int) -> dict[str, object]:
            part = bytes(view[start : start + PART_BYTES])
            number = start // PART_BYTES + 1
            sent = self._client.call(
                "upload_part",
                **place,
                PartNumber=number,
                Body=part,
                ContentMD5=content_md5(part),
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

        try:
            with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="parts") as pool:
                parts = list(pool.map(send, range(0, len(data), PART_BYTES)))
            self._client.call(
                "complete_multipart_upload",
                **place,
                MultipartUpload={"Parts": parts},
                IfNoneMatch="*",
            )
        except BaseException:
            with contextlib.suppress(ClientError, BotoCoreError):
                self._client.call("abort_multipart_upload", **place)
            raise
