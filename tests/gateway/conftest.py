"""A gateway on a real Valkey and a real local store, with a worker that paints plain colours."""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest
import uvicorn
from fake_worker import FakeWorker
from harness import INFO, Cli, Gateway, Result, Serve, emptied

from farm.cli.app import run
from farm.gateway.app import create_app
from farm.gateway.server import server_config
from farm.local.valkey import ServerProcess
from farm.queue import Queue, connect
from farm.settings import GatewaySettings
from farm.store import open_store
from workers import Workers, real_workers


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Of a server that no tests of other folders empty: a gateway that finds its data gone refuses
    everything, and these tests share one."""
    with (
        tempfile.TemporaryDirectory(prefix="farm-test-") as folder,
        ServerProcess(Path(folder)).serving() as server,
    ):
        yield server.url


@contextlib.contextmanager
def gateways(redis_url: str) -> Iterator[Serve]:
    """Starts gateways, each in a thread of its own."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(data: Path, **given: object) -> Gateway:
        settings = GatewaySettings.model_validate(
            {"data": data, "redis_url": redis_url, "name": "test", "port": 0, "open": True, **given}
        )
        queue, store = (
            Queue(connect(settings.redis_url), farm=settings.name),
            open_store(settings.store_url),
        )
        app = create_app(settings, queue=queue, store=store, infos=[INFO])
        config = server_config(app, settings)
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        running.append((server, thread))
        bound = server.servers[0].sockets[0].getsockname()[1]
        return Gateway(f"http://127.0.0.1:{bound}", queue, store, server, app.state.deps)

    try:
        yield serve
    finally:
        for server, _ in running:
            server.should_exit = True
        for _, thread in running:
            thread.join()


@pytest.fixture(scope="session")
def shared(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateways(redis_url) as serve:
        yield serve(tmp_path_factory.mktemp("farm"))


@pytest.fixture
def serve(redis_url: str) -> Iterator[Serve]:
    """Starts a gateway that ends with the test."""
    with gateways(redis_url) as serve:
        yield serve


@pytest.fixture
def gateway(shared: Gateway) -> Gateway:
    """An open farm without jobs and adapters."""
    return emptied(shared)


@pytest.fixture
def start(gateway: Gateway, serve: Serve, tmp_path: Path) -> Serve:
    """Starts further gateways of the same farm, with settings of their own."""
    return partial(serve, tmp_path)


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx2.Client]:
    with gateway.client() as client:
        yield client


@pytest.fixture
def fake_worker(gateway: Gateway) -> Iterator[FakeWorker]:
    fake_worker = FakeWorker(gateway.queue, gateway.store, INFO)
    fake_worker.start()
    yield fake_worker
    fake_worker.stop()


@pytest.fixture
def cli(
    gateway: Gateway,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Cli:
    """The command line, in a folder of the test's own."""
    monkeypatch.setenv("FARM_URL", gateway.url)
    monkeypatch.delenv("FARM_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)

    def cli(*arguments: str) -> Result:
        code = run(arguments)
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return Result(code, told.out, told.err)

    return cli


@pytest.fixture
def workers(gateway: Gateway, redis_url: str, tmp_path: Path) -> Iterator[Workers]:
    with real_workers(gateway, redis_url, tmp_path) as workers:
        yield workers
