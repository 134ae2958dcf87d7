"""Pictures fetched through a proxy with a path, and from a store with another address outside."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from fake_worker import FakeWorker
from harness import INFO, Gateway, Serve
from s3_servers import StubS3

from farm.errors import InvalidInput, Unavailable
from farm_client import Farm

PREFIX = "/tools/farm"


class _Proxy(BaseHTTPRequestHandler):
    """Shows a gateway below a path that the gateway does not know."""

    gateway = ""

    def do(self) -> None:
        assert self.path.startswith(PREFIX)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = httpx2.request(
            self.command,
            self.gateway + self.path.removeprefix(PREFIX),
            headers={"Content-Type": self.headers.get("Content-Type", "")},
            content=body,
        )
        self.send_response(answer.status_code)
        for name in ("content-type", "retry-after"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = do  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prefixed(gateway: Gateway) -> Iterator[str]:
    _Proxy.gateway = gateway.url
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def s3() -> Iterator[StubS3]:
    server = StubS3()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def test_pictures_come_through_a_proxy_with_a_path_of_its_own(
    prefixed: str, fake_worker: FakeWorker, tmp_path: Path
) -> None:
    with Farm(prefixed) as farm:
        fetched = farm.submit("a boat").fetch(tmp_path)
    assert fetched.pictures == 1


def test_links_are_whole_addresses_where_the_gateway_knows_its_own(
    start: Serve, prefixed: str, tmp_path: Path
) -> None:
    gateway = start(public_url=prefixed + "/")
    _Proxy.gateway = gateway.url
    fetched, url = render(gateway, tmp_path)
    assert url.startswith(f"{prefixed}/v1/objects/")
    assert fetched == 1


@pytest.mark.parametrize(
    ("given", "starts"),
    [
        ({}, "{inner}/pictures/"),
        ({"store_public_url": "{outer}"}, "{outer}/pictures/"),
        ({"store_links": "gateway"}, "/v1/objects/"),
    ],
)
def test_a_store_is_reached_at_its_public_address_or_through_the_gateway(
    start: Serve, s3: StubS3, tmp_path: Path, given: dict[str, str], starts: str
) -> None:
    names = {"inner": s3.address, "outer": s3.address.replace("127.0.0.1", "localhost")}
    settings = {name: value.format(**names) for name, value in given.items()}
    gateway = start(store=f"s3://pictures?endpoint_url={s3.address}&region=us-east-1", **settings)
    fetched, url = render(gateway, tmp_path)
    assert url.startswith(starts.format(**names))
    assert fetched == 1


def test_a_store_that_only_the_farm_reaches_is_named_in_the_message(
    start: Serve, s3: StubS3, tmp_path: Path
) -> None:
    gateway = start(
        store=f"s3://pictures?endpoint_url={s3.address}&region=us-east-1",
        store_public_url="http://127.0.0.1:1",
    )
    with pytest.raises(Unavailable, match=r"store at 127\.0\.0\.1:1 cannot be reached") as caught:
        render(gateway, tmp_path)
    assert "FARM_STORE_LINKS=gateway" in str(caught.value.hint)


def test_a_folder_has_no_public_address(start: Serve) -> None:
    with pytest.raises(InvalidInput, match="s3://") as caught:
        start(store_public_url="http://127.0.0.1:1")
    assert caught.value.field == "FARM_STORE_PUBLIC_URL"


@pytest.mark.parametrize("name", ["public_url", "store_public_url"])
@pytest.mark.parametrize("value", ["farm.example.org", "ftp://a", "https://u:secret@a", "http://"])
def test_an_address_that_is_none_is_refused_without_being_shown(
    start: Serve, name: str, value: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        start(**{name: value})
    assert caught.value.field == f"FARM_{name.upper()}"
    assert "secret" not in str(caught.value)


def render(gateway: Gateway, folder: Path) -> tuple[int, str]:
    """How many pictures of a job were fetched, and the address of the first."""
    worker = FakeWorker(gateway.queue, gateway.store, INFO)
    worker.start()
    try:
        with Farm(gateway.url, patience=0.5) as farm:
            job = farm.submit("a boat")
            job.wait(20)
            with gateway.client() as http:
                (told,) = http.get(f"/v1/jobs/{job.id}/images").json()["images"]
            return job.fetch(folder).pictures, told["url"]
    finally:
        worker.stop()
