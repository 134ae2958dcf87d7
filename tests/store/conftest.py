"""The stores: a folder, a bucket of ministack or of the server that FARM_TEST_S3 names, and one of
Ceph's object gateway where its packages are installed."""

import copy
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from s3_servers import StubS3, ceph, ceph_is_installed, ministack

from farm.store import Store, open_store
from farm.store.s3 import S3Store

BUCKET = "farm-test"
_numbers = itertools.count()


@pytest.fixture(scope="session", autouse=True)
def _aws_environment() -> Iterator[None]:
    """Nothing of this machine's own AWS configuration takes part."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", os.environ.get("FARM_TEST_S3_KEY", "test"))
        patch.setenv("AWS_SECRET_ACCESS_KEY", os.environ.get("FARM_TEST_S3_SECRET", "testsecret"))
        yield


@pytest.fixture(scope="session")
def s3_address(tmp_path_factory: pytest.TempPathFactory, _aws_environment: None) -> Iterator[str]:
    """``FARM_TEST_S3=http://host:port`` takes the place of ministack."""
    if real := os.environ.get("FARM_TEST_S3"):
        _make_bucket(real)
        yield real
        return
    if not os.environ.get("CI"):
        pytest.importorskip("ministack")
    with ministack(tmp_path_factory.mktemp("ministack")) as address:
        _make_bucket(address)
        yield address


def _make_bucket(address: str) -> None:
    client = boto3.client("s3", endpoint_url=address, region_name="us-east-1")
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="session")
def bucket(s3_address: str) -> S3Store:
    """Opened once: making a boto3 client takes a third of a second."""
    return S3Store(BUCKET, endpoint_url=s3_address)


@pytest.fixture(scope="session")
def ceph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the gateway's configuration."""
    if not ceph_is_installed():
        pytest.skip("Ceph is not installed; tools/ceph.sh names its packages")
    return tmp_path_factory.mktemp("ceph")


@pytest.fixture(scope="session")
def ceph_address(ceph_folder: Path, _aws_environment: None) -> Iterator[str]:
    with ceph(ceph_folder) as address:
        boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="testsecret",
        ).create_bucket(Bucket=BUCKET)
        yield address


@pytest.fixture(scope="session")
def ceph_bucket(ceph_address: str) -> S3Store:
    return S3Store(BUCKET, endpoint_url=ceph_address)


@pytest.fixture(params=["local", "s3", pytest.param("ceph", marks=pytest.mark.xdist_group("ceph"))])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    match request.param:
        case "local":
            return open_store(str(tmp_path / "store"))
        case "s3":
            bucket = request.getfixturevalue("bucket")
        case _:
            bucket = request.getfixturevalue("ceph_bucket")
    store = copy.copy(bucket)
    prefix = f"{os.getpid()}-{os.urandom(4).hex()}-{next(_numbers)}"
    store._prefix = f"{prefix}/"
    store.url = store.url.replace(BUCKET, f"{BUCKET}/{prefix}", 1)
    return store


@pytest.fixture
def stub() -> Iterator[StubS3]:
    stub = StubS3()
    yield stub
    stub.close()
