"""Many objects deleted by one request, where the server can.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
"""

from collections.abc import Sequence

from botocore.exceptions import ClientError

from farm.store.s3_client import EXPIRED, WRONG, S3Client, error_code

# Keys of a request. S3 takes 1,000, but a server that deletes them one after the other, as Ceph's
# gateway did until 2022 (its pull request 48679), may then be silent for ``READ_SECONDS``; and it
# is as busy with four requests of so many.
BULK_KEYS = 250
SIDE_BY_SIDE = 4  # requests of one call; AWS deletes 3,500 objects a second below a prefix

# Not implemented, or refused for what a request of today has or lacks: Google Cloud Storage used to
# say 400, Riak CS 405. With 400, servers tell of expired credentials as well.
_UNABLE = {400, 405, 501}


class BulkDelete:
    """Of objects in one bucket; thread-safe."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        self._able = True

    def __call__(self, names: Sequence[str]) -> Sequence[str]:
        """Delete at most ``BULK_KEYS`` objects by their keys; what is not there counts as gone.

        Returns the keys of objects that may still be there: the server failed at them, or cannot
        do it at all, which is remembered. Requests for single objects delete them, or tell why not.

        Raises:
            botocore's errors.
        """
        if not self._able:
            return names
        try:
            answer = self._client.call(
                "delete_objects",
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": name} for name in names]},
            )
        except ClientError as error:
            if not _unable(error):
                raise
            self._able = False
            return names
        gone = {one["Key"] for one in answer.get("Deleted", ())}
        if not gone and not answer.get("Errors"):  # it has taken the request for another one
            self._able = False
        return [name for name in names if name not in gone]


def _unable(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status in _UNABLE and error_code(error) not in WRONG | EXPIRED
