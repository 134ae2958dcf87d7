"""Pictures that are made to harm: what they cost the gateway, and those who call meanwhile."""

import base64
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from bombs import BOMBS
from harness import gateway_process, png, post, until

MOST_BYTES = 300 * 2**20  # of the gateway's memory
MOST_SECONDS = 5.0  # of processor time, for one picture
CALM_ANSWERS = 20  # to others, before the first of these pictures comes
MOST_SLOWER = 10  # times, the median answer to others meanwhile


class Watched:
    """A gateway process; its memory and the answers to others are looked at all the time."""

    def __init__(self, url: str, process: psutil.Process) -> None:
        self.url = url
        self.process = process
        self.memory = 0
        self.sandbox_memory = 0
        self.waits: list[float] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._measure), threading.Thread(target=self._ask)
        ]  # fmt: skip

    def __enter__(self) -> "Watched":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _measure(self) -> None:
        while not self._stop.wait(0.02):
            self.memory = max(self.memory, self.process.memory_info().rss)
            for child in self.process.children(recursive=True):
                try:
                    self.sandbox_memory = max(self.sandbox_memory, child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue

    def _ask(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=20) as http:
            while not self._stop.wait(0.02):
                started = time.monotonic()
                assert post(http, {"prompt": "x"}).status_code == 201
                assert http.get("/v1/jobs?limit=1").status_code == 200
                self.waits.append((time.monotonic() - started) / 2)


@pytest.fixture
def made() -> dict[str, bytes]:
    """Every bomb, made before anything is measured."""
    return {name: bomb.make() for name, bomb in BOMBS.items()}


@pytest.fixture
def watched(redis_url: str, tmp_path: Path) -> Iterator[Watched]:
    with gateway_process(redis_url, tmp_path) as (url, process):
        with httpx2.Client(base_url=url) as http:
            assert http.put("/v1/assets", content=png()).status_code == 201
        with Watched(url, process) as watched:
            yield watched


@pytest.mark.slow
def test_no_picture_costs_more_than_it_may_and_others_do_not_wait(
    made: dict[str, bytes], watched: Watched
) -> None:
    told = []
    until(lambda: len(watched.waits) >= CALM_ANSWERS)
    calm = statistics.median(watched.waits)
    del watched.waits[:]
    with httpx2.Client(base_url=watched.url, timeout=60) as http:
        for name, bomb in BOMBS.items():
            data = made[name]
            started = time.monotonic()
            answer = http.put("/v1/assets", content=data)
            seconds = time.monotonic() - started
            told.append(f"{name}: {len(data):,} bytes, {answer.status_code}, {seconds:.2f} s")
            assert (answer.status_code in (413, 422)) is bomb.refused, (name, answer.text)
            assert seconds < 4 * MOST_SECONDS, name  # a machine may be busy with other things
    print(*told, sep="\n")
    print(
        f"gateway {watched.memory >> 20} MiB, one sandbox {watched.sandbox_memory >> 20} MiB, "
        f"others {statistics.median(watched.waits) * 1000:.0f} ms, before {calm * 1000:.0f}, "
        f"99 of 100 {sorted(watched.waits)[-len(watched.waits) // 100] * 1000:.0f} ms, "
        f"slowest {max(watched.waits) * 1000:.0f} ms of {len(watched.waits)}"
    )
    assert watched.memory < MOST_BYTES
    assert watched.sandbox_memory < MOST_BYTES
    assert statistics.median(watched.waits) < MOST_SLOWER * calm


@pytest.mark.slow
def test_bombs_in_data_urls_cost_no_more_than_uploads(watched: Watched) -> None:
    bomb = BOMBS["webp of 8192 x 8192"].make()
    url = "data:image/webp;base64," + base64.b64encode(bomb).decode()
    answers = []

    def send() -> None:
        with httpx2.Client(base_url=watched.url, timeout=60) as http:
            answers.append(post(http, {"prompt": "x", "image": url}).status_code)

    senders = [threading.Thread(target=send) for _ in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert answers == [413] * 6
    assert watched.memory < MOST_BYTES
