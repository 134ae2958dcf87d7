"""Adapters on their way to an engine: fetched once, checked, and kept in a bounded cache."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from fake_adapters import adapter_file
from fake_engine import INFO, FakeEngine
from test_worker import TENANT, Farm

from farm.errors import NotFound, RenderError
from farm.spec import RenderRequest, RenderSpec
from farm.store import keys
from farm_workers.worker.byte_cache import ByteCache
from farm_workers.worker.inputs import InputReader


@pytest.fixture
def farm(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    farm = Farm(redis_url, tmp_path / "store", monkeypatch)
    yield farm
    farm.stop()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_missing_and_a_damaged_adapter_fail_their_own_renders_and_no_other(farm: Farm) -> None:
    good, damaged = adapter_file(0), adapter_file(1)
    farm.store.put(keys.asset(TENANT, digest(good)), good)
    farm.store.put(keys.asset(TENANT, digest(damaged)), damaged[:-1] + b"x")
    farm.store.put(keys.asset("bob", "b" * 64), good)
    engine = farm.start()
    job = farm.submit_renders(
        [
            {"prompt": "plain"},
            {"prompt": "good", "adapters": [{"adapter": digest(good)}]},
            {"prompt": "damaged", "adapters": [{"adapter": digest(damaged)}]},
            {"prompt": "of bob's", "adapters": [{"adapter": "b" * 64}]},
            {"prompt": "again", "adapters": [{"adapter": digest(good), "scale": 0.5}]},
        ],
        max_failed=2,
    )
    farm.wait(job)
    failures = {row.render: str(row.failure) for row in farm.rows(job) if row.failure is not None}
    assert failures == {
        2: f"error[render]: the adapter {digest(damaged)} is damaged in the store",
        3: f"error[render]: the adapter {'b' * 64} is no longer in the store",
    }
    assert engine.adapters_read <= 2  # two loaders may have met at the first


class Shelf:
    """Adapters of ten bytes each, and how often they were read from it."""

    def __init__(self) -> None:
        self.reads = 0
        self.engine = FakeEngine()

    def read(self, tenant: str, asset: str) -> bytes:
        self.reads += 1
        for number in range(100):
            if digest(self.data(number)) == asset:
                return self.data(number)
        raise NotFound("no object")

    def data(self, number: int) -> bytes:
        return b"%010d" % number

    def spec(self, *numbers: int) -> RenderSpec:
        chosen = [{"adapter": digest(self.data(number))} for number in numbers]
        return RenderRequest.parse({"prompt": "x", "adapters": chosen}).resolve(INFO, seed=0)


def test_fifty_adapters_in_turn_take_the_room_of_five() -> None:
    shelf = Shelf()
    inputs = InputReader(shelf.read, {INFO.name: INFO}, {INFO.name: shelf.engine}, adapter_bytes=50)
    for number in range(50):
        read = inputs.read(TENANT, shelf.spec(number, 99))  # 99 is used all the time
        assert list(read.adapters) == [digest(shelf.data(number)), digest(shelf.data(99))]
        assert inputs._adapters.held <= 50
    assert (shelf.reads, shelf.engine.adapters_read) == (51, 51)
    inputs.read(TENANT, shelf.spec(49, 99))
    assert shelf.reads == 51
    inputs.read(TENANT, shelf.spec(0))
    assert shelf.reads == 52


def test_a_render_without_adapters_waits_for_nothing() -> None:
    shelf = Shelf()
    inputs = InputReader(shelf.read, {INFO.name: INFO}, {INFO.name: shelf.engine})
    with ThreadPoolExecutor(1) as executor:
        assert inputs.prepare(TENANT, shelf.spec(), executor).done()
        assert not inputs.prepare(TENANT, shelf.spec(1), executor).result().notes
    with pytest.raises(RenderError, match="no longer in the store"):
        inputs.read(
            TENANT,
            RenderRequest.parse({"prompt": "x", "adapters": [{"adapter": "a" * 64}]}).resolve(
                INFO, seed=0
            ),
        )


def test_a_cache_keeps_the_last_used_and_one_that_is_larger_than_all_its_room() -> None:
    cache = ByteCache[bytes](10, len)

    def made(key: str, size: int) -> bool:
        """Whether it was not there."""
        calls = []
        assert cache.get(key, lambda: calls.append(key) or bytes(size)) == bytes(size)  # type: ignore[func-returns-value]
        return bool(calls)

    assert [made("a", 4), made("b", 4), made("a", 4), made("c", 4)] == [True, True, False, True]
    assert (cache.held, made("a", 4), made("b", 4)) == (8, False, True)
    assert (made("huge", 100), cache.held, made("huge", 100)) == (True, 100, False)
    assert (made("d", 4), cache.held) == (True, 4)
    with pytest.raises(ZeroDivisionError):
        cache.get("e", lambda: bytes(1 // 0))
    assert cache.held == 4


def test_threads_that_share_a_cache_lose_no_bytes() -> None:
    cache = ByteCache[bytes](100, len)
    gate = threading.Barrier(4)

    def work(number: int) -> None:
        gate.wait(10)
        for turn in range(300):
            key = (turn * (number + 1)) % 40
            assert len(cache.get(key, partial(bytes, 1 + key % 7))) == 1 + key % 7

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, number) for number in range(4)]:
            done.result()
    assert cache.held == sum(map(len, cache._values.values())) <= 100
