"""What a store's URL may be."""

from pathlib import Path

import pytest
from picture_key import picture_key

from farm.errors import InvalidInput
from farm.job import Format
from farm.store import keys, open_store


def test_a_path_and_a_file_url_are_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    for url in (str(folder), f"file://{folder}", folder.as_uri(), f"file://localhost{folder}"):
        assert open_store(url).url == folder.as_uri()


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("store").url == (tmp_path / "store").as_uri()


def test_home_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/store").url == (tmp_path / "store").as_uri()


def test_opening_a_folder_writes_nothing(tmp_path: Path) -> None:
    open_store(str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("file://host/folder", "not an absolute path"),
        ("file://", "not an absolute path"),
        ("gs://bucket", "no store for gs://"),
        ("http://127.0.0.1:9000/bucket", "no store for http://"),
        ("s3://", "not a bucket's name"),
        ("s3:///prefix", "not a bucket's name"),
        ("s3://UPPER/x", "not a bucket's name"),
        ("s3://user:secret@bucket/x", "credentials do not belong"),
        ("s3://user:sec#ret@bucket/x", "credentials do not belong"),
        ("s3://[user:secret", "is not an address"),
        ("s3://bucket?secret=secret", "does not know"),
        ("s3://bucket?endpoint_url=http://user:secret@host", "carries credentials"),
        ("s3://bucket?endpoint_url=http://user:secret@[", "not an address"),
        ("s3://bucket?endpoint_url=user:secret@host", "not an address"),
        ("file://user:secret@host/x", "not an absolute path"),
        ("s3://bucket/../other", "not a prefix"),
        ("s3://bucket/with space", "not a prefix"),
        ("s3://bucket?endpoint=x", "does not know"),
        ("s3://bucket?endpoint_url=localhost:9000", "is not an address"),
    ],
)
def test_anything_else_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        open_store(url)
    assert caught.value.field == "store"
    assert "secret" not in str(caught.value)


def test_an_s3_url_keeps_its_options() -> None:
    url = "s3://bucket/prefix?endpoint_url=http://127.0.0.1:9000&region=eu-west-1"
    assert open_store(url).url == url


def test_the_keys_of_a_job() -> None:
    job = "j0-01arz3ndektsv4rrffq69g5fav"
    prefix = keys.prefix(job)
    assert prefix == f"{prefix[:2]}/{job}/"
    assert keys.header(job) == f"{prefix}job.json"
    assert keys.chunk(job, 7) == f"{prefix}chunks/00000007.json"
    picture = picture_key(job, 0, 12, 3, Format.JPEG)
    assert picture == f"{prefix}data/0/00000012-03.jpg"
    assert keys.part(job, 1, 7) == f"{prefix}manifest/1/part-00000007.parquet"
    assert keys.success(job) == f"{prefix}_SUCCESS"
    assert keys.asset("somebody ../x", "ab" * 32).startswith("assets/")
    assert len(keys.asset("somebody ../x", "ab" * 32)) == len("assets/") + 12 + 1 + 64


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "key\n"),
        ("AWS_SECRET_ACCESS_KEY", "hush\r\n"),
        ("AWS_SECRET_ACCESS_KEY", " hush"),
        ("AWS_SESSION_TOKEN", "hush hush"),
    ],
)
def test_credentials_with_a_line_end_are_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="line end") as caught:
        open_store("s3://bucket")
    assert caught.value.field == name
    assert "hush" not in str(caught.value)
