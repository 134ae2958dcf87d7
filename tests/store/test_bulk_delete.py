"""Many objects deleted from S3 by one request, and servers that do not do it, or not whole."""

from collections.abc import Sequence

import pytest
from s3_servers import Answer, StubS3, deleted

from farm.errors import StoreError
from farm.store import Store, open_store, s3

KEYS = ["a/1", "a/2", "a/3"]


@pytest.fixture
def store(stub: StubS3) -> Store:
    return open_store(f"s3://bucket/prefix?endpoint_url={stub.address}")


def fill(store: Store, keys: Sequence[str] = KEYS) -> None:
    for key in keys:
        store.put(key, b"x")


def requests(stub: StubS3, method: str) -> list[str]:
    return [path for asked, path, _ in stub.requests if asked == method]


def test_as_many_keys_as_fit_travel_in_a_request_with_their_md5(
    store: Store, stub: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the CRC-32 of current boto3, which older servers do not take for it."""
    monkeypatch.setattr(s3, "BULK_KEYS", 2)
    fill(store)
    store.delete_many(KEYS)
    assert stub.objects == {}
    assert requests(stub, "POST") == ["/bucket"] * 2
    assert requests(stub, "DELETE") == []
    for method, _, headers in stub.requests:
        assert "content-md5" in headers, method
        assert not [name for name in headers if "checksum" in name]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "InvalidArgument"),
        (400, "MissingContentMD5"),
        (405, "MethodNotAllowed"),
        (405, ""),
        (501, "NotImplemented"),
    ],
)
def test_a_server_that_cannot_do_it_is_asked_once_and_gets_single_requests(
    store: Store, stub: StubS3, status: int, code: str
) -> None:
    stub.rule = lambda method, path: Answer(status, code) if method == "POST" else None
    for _ in range(2):
        fill(store)
        store.delete_many(KEYS)
        assert stub.objects == {}
    assert len(requests(stub, "POST")) == 1
    assert len(requests(stub, "DELETE")) == 2 * len(KEYS)


def test_a_server_that_names_no_key_in_its_answer_is_not_believed(
    store: Store, stub: StubS3
) -> None:
    stub.rule = lambda method, path: Answer(200, body=deleted()) if method == "POST" else None
    for _ in range(2):
        fill(store)
        store.delete_many(KEYS)
        assert stub.objects == {}
    assert len(requests(stub, "POST")) == 1


def test_what_a_server_failed_at_is_deleted_by_itself_or_told(store: Store, stub: StubS3) -> None:
    failed = b"<Error><Key>prefix/a/2</Key><Code>InternalError</Code></Error></DeleteResult>"
    answer = Answer(200, body=deleted("prefix/a/1").replace(b"</DeleteResult>", failed))
    stub.rule = lambda method, path: answer if method == "POST" else None
    fill(store)
    store.delete_many(KEYS[:2])
    assert requests(stub, "DELETE") == ["/bucket/prefix/a/2"]
    stub.rule = lambda method, path: answer if method == "POST" else Answer(403, "AccessDenied")
    with pytest.raises(StoreError, match=r"cannot delete a/2 from .* do not allow it"):
        store.delete_many(KEYS[:2])


def test_credentials_that_have_expired_say_nothing_about_the_server(
    store: Store, stub: StubS3
) -> None:
    fill(store)
    stub.rule = lambda method, path: Answer(400, "ExpiredToken")
    with pytest.raises(StoreError, match="credentials have expired"):
        store.delete_many(KEYS)
    stub.rule = lambda method, path: None
    store.delete_many(KEYS)
    assert stub.objects == {}
    assert requests(stub, "DELETE") == []
