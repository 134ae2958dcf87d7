"""What only a server shows that checks every signature: Ceph's object gateway.

The suite of all stores, in ``test_store.py``, runs on it as well.
"""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from farm.errors import StoreError
from farm.store import open_store
from farm.store.probing import probe

pytestmark = pytest.mark.xdist_group("ceph")


@pytest.fixture
def url(ceph_address: str) -> str:
    return f"s3://farm-test/{os.urandom(8).hex()}?endpoint_url={ceph_address}"


def test_a_link_that_was_changed_or_is_too_old_is_refused(url: str) -> None:
    store = open_store(url)
    store.put("picture.png", b"png")
    good = store.signed_url("picture.png", seconds=60)
    soon = store.signed_url("picture.png", seconds=1)
    assert good is not None
    assert soon is not None
    with urllib.request.urlopen(good) as answer:
        assert answer.read() == b"png"
    time.sleep(2.1)
    for wrong in (good.replace("picture.png", "other.png"), f"{good[:-4]}0000", soon):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(wrong)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials_are_named(url: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "wrong")
    with pytest.raises(StoreError, match="the credentials are wrong") as caught:
        probe(open_store(url))
    assert name in (caught.value.hint or "")


def test_a_bucket_of_somebody_else_is_not_allowed(
    ceph_folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(url).put("key", b"x")
    _administer(ceph_folder, "user", "create", "--uid=stranger", "--display-name=stranger")
    _use(monkeypatch, *_new_key(ceph_folder, "stranger"))
    store = open_store(url)
    calls: list[Callable[[], object]] = [
        lambda: store.put("other", b"x"),
        lambda: store.get("key"),
        lambda: store.size("key"),
        lambda: list(store.list("")),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="these credentials do not allow it"):
            call()


def test_keys_may_be_replaced_while_a_store_is_open(
    ceph_folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    store = None
    for _ in range(3):
        old, (key, secret) = file.exists() and file.read_text(), _new_key(ceph_folder, "test")
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        if old:
            _administer(ceph_folder, "key", "rm", f"--access-key={old.split()[3]}")
        store = store or open_store(url)
        assert store.put(key, b"x")
    assert store is not None
    assert len(list(store.list(""))) == 3


def _administer(folder: Path, *words: str) -> str:
    command = ["radosgw-admin", "-c", str(folder / "ceph.conf"), "-n", "client.rgw.a", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _new_key(folder: Path, user: str) -> tuple[str, str]:
    key, secret = os.urandom(10).hex(), os.urandom(10).hex()
    told = (f"--uid={user}", "--key-type=s3", f"--access-key={key}", f"--secret={secret}")
    _administer(folder, "key", "create", *told)
    return key, secret


def _use(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
