"""What an S3 server can do wrong, and what the farm then says."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from s3_servers import Answer, StubS3

from farm.errors import StoreError
from farm.store import Store, multipart, open_store, s3, s3_client
from farm.store.probing import probe
from farm.store.s3_client import S3Client


def _open(stub: StubS3, prefix: str = "") -> Store:
    return open_store(f"s3://bucket/{prefix}?endpoint_url={stub.address}")


def _always(status: int, code: str) -> Callable[[str, str], Answer]:
    return lambda method, path: Answer(status, code)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)


@pytest.mark.parametrize(
    ("status", "code", "said", "hint"),
    [
        (404, "NoSuchBucket", "there is no bucket 'bucket' at http://127.0.0.1", "make the bucket"),
        (403, "InvalidAccessKeyId", "credentials are wrong", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "credentials are wrong", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "credentials have expired", "renew"),
        (403, "AccessDenied", "do not allow it", "s3:PutObject"),
        (403, "RequestTimeTooSkewed", "clocks", "set the clock"),
        (503, "SlowDown", "overloaded", "tries again"),
        (507, "XMinioStorageFull", "full", "free some space"),
        (501, "NotImplemented", "cannot do it", "If-None-Match"),
        (418, "Teapot", "Teapot: said so", ""),
    ],
)
@pytest.mark.usefixtures("_impatient")
def test_a_refusal_is_explained(stub: StubS3, status: int, code: str, said: str, hint: str) -> None:
    stub.rule = _always(status, code)
    store = _open(stub)
    for call in (
        lambda: store.put("key", b"x"),
        lambda: store.get("key"),
        lambda: list(store.list("")),
        lambda: store.delete("key"),
        lambda: store.delete_many(["key"]),
        lambda: probe(store, 2),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert said in caught.value.message
        assert hint in (caught.value.hint or "")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "said", "hint"),
    [
        (Answer(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
         "the bucket is in the region eu-west-1", "set AWS_DEFAULT_REGION=eu-west-1"),
        (Answer(307, "TemporaryRedirect"), "it redirects to another address", "AWS_ENDPOINT_URL"),
        (Answer(302, body=b"<html>", headers={"Location": "https://login.test/?next=1"}),
         "it redirects to https://login.test/", "AWS_ENDPOINT_URL"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("_impatient")
def test_a_redirect_is_named_with_what_to_set(
    stub: StubS3, answer: Answer, said: str, hint: str
) -> None:
    stub.rule = lambda method, path: answer
    store = _open(stub)
    for call in (
        lambda: store.put("key", b"x"),
        lambda: store.get("key"),
        lambda: store.size("key"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreError) as caught:
            call()
        assert said in caught.value.message
        assert hint in (caught.value.hint or "")


@pytest.mark.usefixtures("_impatient")
def test_a_lookup_without_permission_is_no_missing_object(stub: StubS3) -> None:
    stub.rule = _always(403, "")
    with pytest.raises(StoreError, match="do not allow it"):
        _open(stub).size("key")


def test_a_server_that_is_slow_for_a_while_is_asked_again(stub: StubS3) -> None:
    refusals = iter([Answer(503, "SlowDown"), Answer(503, "SlowDown")])
    stub.rule = lambda method, path: next(refusals, None)
    assert _open(stub).put("key", b"x")
    assert len(stub.requests) == 3


def test_writers_that_race_are_told_who_won(stub: StubS3) -> None:
    refusals = iter([Answer(409, "ConditionalRequestConflict")] * 2)
    stub.rule = lambda method, path: next(refusals, None)
    assert _open(stub).put("key", b"x")


def test_a_store_that_lets_everybody_win_fails_the_probe(stub: StubS3) -> None:
    stub.honours_conditions = False
    with pytest.raises(StoreError, match="17 of 17 writers") as caught:
        probe(_open(stub))
    assert "If-None-Match" in (caught.value.hint or "")
    assert stub.objects == {}


def test_a_store_that_lets_latecomers_win_fails_the_probe(stub: StubS3) -> None:
    """As a server does that looks first and writes after, and was lucky in the race."""
    puts = []
    lock = threading.Lock()

    def rule(method: str, path: str) -> Answer | None:
        if method != "PUT":
            return None
        with lock:
            puts.append(path)
        return Answer(412, "PreconditionFailed") if 1 < len(puts) <= 16 else None

    stub.rule = rule
    stub.honours_conditions = False
    with pytest.raises(StoreError, match="does not write objects only once"):
        probe(_open(stub))


def test_a_body_that_breaks_off_is_read_again(stub: StubS3) -> None:
    store = _open(stub)
    store.put("key", b"complete")
    broken = iter([Answer(200, body=b"comp", promised=8)] * 2)
    stub.rule = lambda method, path: next(broken, None)
    assert store.get("key") == b"complete"


def test_a_stream_that_breaks_off_is_an_error(stub: StubS3) -> None:
    stub.rule = lambda method, path: Answer(200, body=b"comp", promised=8)
    with pytest.raises(StoreError, match="broke off"):
        list(_open(stub).stream("key"))


@pytest.mark.usefixtures("_impatient")
def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(StoreError, match=f"{address} does not answer") as caught:
            open_store(f"s3://bucket?endpoint_url={address}").get("key")
    assert "AWS_ENDPOINT_URL" in (caught.value.hint or "")


def test_missing_credentials_are_named(stub: StubS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="there are no credentials") as caught:
        _open(stub).put("key", b"x")
    assert "AWS_ACCESS_KEY_ID" in (caught.value.hint or "")


def _write_credentials(path: Path, key: str) -> None:
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n"
    draft = path.with_suffix(".part")
    draft.write_text(text)
    draft.replace(path)


def test_credentials_that_were_replaced_are_used_from_then_on(
    stub: StubS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    _write_credentials(tmp_path / "credentials", "old")
    store = _open(stub)
    assert store.put("key", b"x")

    def refuse_old(method: str, path: str) -> Answer | None:
        known = "Credential=new/" in stub.requests[-1][2]["authorization"]
        return None if known else Answer(400, "ExpiredToken")

    stub.rule = refuse_old
    with pytest.raises(StoreError, match="credentials have expired"):
        store.get("key")
    _write_credentials(tmp_path / "credentials", "new")
    asked = len(stub.requests)
    assert store.get("key") == b"x"
    assert store.put("other", b"y")
    assert len(stub.requests) - asked == 3, "one refusal, then two calls"


def test_a_list_that_cannot_go_on_is_an_error_and_not_the_whole(stub: StubS3) -> None:
    page = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    stub.rule = lambda method, path: Answer(200, body=page)
    for listed in (_open(stub).list, _open(stub).folders):
        with pytest.raises(StoreError, match="names no continuation"):
            list(listed(""))


def test_an_answer_without_a_body_can_tell_of_replaced_credentials_too(
    stub: StubS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S3 says 400 or 403 to a HEAD and not why; a large shard begins with one."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    _write_credentials(tmp_path / "credentials", "key0")
    store = _open(stub)
    assert store.put("key", b"x")
    for number, refusal in enumerate((Answer(400, "ExpiredToken"), Answer(403, "InvalidToken")), 1):

        def refuse_old(
            method: str, path: str, new: str = f"key{number}", refusal: Answer = refusal
        ) -> Answer | None:
            known = f"Credential={new}/" in stub.requests[-1][2]["authorization"]
            return None if known else refusal

        stub.rule = refuse_old
        with pytest.raises(StoreError):
            store.size("key")
        _write_credentials(tmp_path / "credentials", f"key{number}")
        assert store.size("key") == 1


def test_a_large_object_travels_in_parts_where_those_are_written_once(
    s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entity tag of an upload in parts ends with their number."""
    monkeypatch.setattr(s3, "LARGE_BYTES", multipart.PART_BYTES + 1)
    data = os.urandom(multipart.PART_BYTES + 1)
    client = boto3.client("s3", endpoint_url=s3_address, region_name="us-east-1")
    call = S3Client.call
    for honoured in (True, False):

        def without_condition(
            self: S3Client, operation: str, *, honoured: bool = honoured, **given: Any
        ) -> Any:
            if operation == "complete_multipart_upload" and not honoured:
                del given["IfNoneMatch"]
            return call(self, operation, **given)

        monkeypatch.setattr(S3Client, "call", without_condition)
        prefix = f"parts-{os.urandom(8).hex()}"
        store = open_store(f"s3://farm-test/{prefix}?endpoint_url={s3_address}")
        assert store.put("large", data, content_type="image/png")
        assert not store.put("large", data)
        assert store.get("large") == data
        found = client.head_object(Bucket="farm-test", Key=f"{prefix}/large")
        assert found["ETag"].endswith('-2"') is honoured
        assert found["ContentType"] == "image/png"
        assert [one.key for one in store.list("")] == ["large"]


def test_a_part_that_fails_leaves_neither_object_nor_upload(
    s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LARGE_BYTES", multipart.PART_BYTES + 1)
    call = S3Client.call

    def fail_second(self: S3Client, operation: str, **given: Any) -> Any:
        if given.get("PartNumber") == 2:
            raise EndpointConnectionError(endpoint_url=s3_address)
        return call(self, operation, **given)

    monkeypatch.setattr(S3Client, "call", fail_second)
    prefix = f"parts-{os.urandom(8).hex()}"
    store = open_store(f"s3://farm-test/{prefix}?endpoint_url={s3_address}")
    with pytest.raises(StoreError, match="does not answer"):
        store.put("large", bytes(multipart.PART_BYTES + 1))
    assert list(store.list("")) == []
    client = boto3.client("s3", endpoint_url=s3_address, region_name="us-east-1")
    left = client.list_multipart_uploads(Bucket="farm-test").get("Uploads", [])
    assert not [one for one in left if one["Key"].startswith(prefix)]


def test_an_unknown_profile_is_named(stub: StubS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="nobody"):
        _open(stub)


@pytest.mark.skipif("FARM_TEST_S3" not in os.environ, reason="ministack takes any secret")
def test_a_real_server_refuses_a_wrong_secret(
    s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="credentials are wrong"):
        probe(open_store(f"s3://farm-test?endpoint_url={s3_address}"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreError, match="credentials are wrong"):
        probe(open_store(f"s3://farm-test?endpoint_url={s3_address}"))


def test_a_missing_bucket_is_found_by_the_probe(s3_address: str) -> None:
    with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket'"):
        probe(open_store(f"s3://no-such-bucket/x?endpoint_url={s3_address}"))


def test_the_endpoint_may_come_from_the_environment(
    stub: StubS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", stub.address)
    store = open_store("s3://bucket/some/prefix")
    assert store.put("key", b"x")
    assert stub.objects == {"/bucket/some/prefix/key": b"x"}
    assert store.url == "s3://bucket/some/prefix"


def test_a_put_is_conditional_and_plain(stub: StubS3) -> None:
    """No checksum headers and no chunked encoding, which other stores than AWS may refuse; no
    waiting to be asked for the body, which botocore cannot do safely."""
    _open(stub).put("key", b"x", content_type="image/png")
    (_, _, headers) = stub.requests[0]
    assert headers["if-none-match"] == "*"
    assert headers["content-type"] == "image/png"
    assert headers["content-length"] == "1"
    assert not [name for name in headers if "checksum" in name]
    assert not {"transfer-encoding", "expect"} & set(headers)


def test_stores_with_different_prefixes_do_not_meet(stub: StubS3) -> None:
    one, other = _open(stub, "one"), _open(stub, "/two/deep/")
    assert one.put("key", b"1")
    assert other.put("key", b"2")
    assert sorted(stub.objects) == ["/bucket/one/key", "/bucket/two/deep/key"]
