"""Real workers in threads of the test, with fake engines."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_engine import INFO, FakeEngine
from harness import Gateway

from farm.checkpoints.inspect import Checkpoint
from farm_workers.worker import worker as worker_module
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker


class Workers:
    def __init__(self, gateway: Gateway, redis_url: str, data: Path, lease_ms: int = 2000) -> None:
        self.settings = WorkerSettings(
            redis_url=redis_url, name="test", data=data, store=gateway.store.url,
            checkpoints=("fake",), lease_ms=lease_ms,
        )  # fmt: skip
        self.url = gateway.url
        self.running: list[tuple[Worker, threading.Thread, FakeEngine]] = []

    def start(self, name: str = "worker-0", engine: FakeEngine | None = None) -> Worker:
        engine = engine or FakeEngine()
        worker = Worker(self.settings, name, load_engine=lambda *_: engine)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        self.running.append((worker, thread, engine))
        # Its checkpoint can be named once it has joined and the gateway has looked again.
        while "fake" not in {one["id"] for one in self.checkpoints()}:
            time.sleep(0.05)
        return worker

    def checkpoints(self) -> list[dict[str, Any]]:
        answer = httpx2.get(f"{self.url}/v1/checkpoints").json()
        return list(answer["checkpoints"])

    def stop(self) -> None:
        for worker, thread, engine in self.running:
            engine.gate.set()
            worker.stop()
            thread.join(20)
        self.running.clear()


@contextlib.contextmanager
def real_workers(
    gateway: Gateway, redis_url: str, folder: Path, **settings: int
) -> Iterator[Workers]:
    """They find a checkpoint that is not there, and end with the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            worker_module, "inspect_checkpoint", lambda _: Checkpoint(path=folder, info=INFO)
        )
        workers = Workers(gateway, redis_url, folder / "worker", **settings)
        yield workers
        workers.stop()
