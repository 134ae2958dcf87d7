"""An S3 store behind a line that loses replies, breaks off, falls silent or is slow."""

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from fault_proxy import FaultProxy
from test_publisher import PART, Bench

from farm.errors import StoreError
from farm.formats.manifest import read_part
from farm.store import Store, open_store, s3, s3_client
from farm_workers.publisher.publisher import Publisher


@pytest.fixture
def proxy(s3_address: str) -> Iterator[FaultProxy]:
    address = urlsplit(s3_address)
    assert address.hostname is not None
    with FaultProxy(address.hostname, address.port) as proxy:
        yield proxy


@pytest.fixture
def prefix() -> str:
    return f"faults-{os.getpid()}-{os.urandom(4).hex()}"


@pytest.fixture
def near(s3_address: str, prefix: str) -> Store:
    return open_store(f"s3://farm-test/{prefix}?endpoint_url={s3_address}")


@pytest.fixture
def far(proxy: FaultProxy, prefix: str) -> Store:
    """The same store, behind the proxy."""
    return open_store(f"s3://farm-test/{prefix}?endpoint_url=http://{proxy.address}")


def test_an_object_whose_reply_was_lost_is_there_once_and_is_ones_own(
    near: Store, far: Store, proxy: FaultProxy
) -> None:
    """The second try finds the key taken, by this very call."""
    stored: list[bytes] = []
    proxy.cut(to_client=0, then=lambda: stored.append(near.get("key")))
    assert far.put("key", b"mine") is False
    assert stored == [b"mine"], "it was there when the connection ended"
    assert far.get("key") == b"mine"
    assert [entry.key for entry in near.list("")] == ["key"]


@pytest.mark.parametrize("heard", [1, 12, 25, 60, 100])
def test_a_reply_that_breaks_off_in_its_headers_is_a_lost_one(
    near: Store, far: Store, proxy: FaultProxy, heard: int
) -> None:
    """botocore spun for ever if that reply was the 100 that asks for the body."""
    proxy.cut(to_client=heard)
    far.put("key", b"mine")
    assert proxy.cuts == 1
    assert near.get("key") == b"mine"


def test_an_empty_object_does_not_spoil_the_next_ones_reply(far: Store) -> None:
    """botocore issue 3755: a minute's silence, and the next one was written twice."""
    started = time.monotonic()
    for number in range(4):
        assert far.put(f"empty-{number}", b"")
        assert far.put(f"full-{number}", b"full")
    assert time.monotonic() - started < 5


def test_a_strangers_object_is_not_taken_for_ones_own(
    near: Store, far: Store, proxy: FaultProxy
) -> None:
    near.put("key", b"somebody else's")
    proxy.cut(to_client=0)
    assert far.put("key", b"mine") is False
    assert far.get("key") == b"somebody else's"


@pytest.mark.parametrize("sent", [0, 10, 400, 100_000, 900_000])
def test_a_body_that_broke_off_leaves_nothing_and_is_sent_again(
    near: Store, far: Store, proxy: FaultProxy, sent: int
) -> None:
    data = os.urandom(1_000_000)
    found: list[int | None] = []
    proxy.cut(to_server=sent, then=lambda: found.append(near.size("key")))
    far.put("key", data)
    assert proxy.cuts == 1
    assert found == [None]
    assert near.get("key") == data


def test_what_is_read_is_complete_or_an_error(near: Store, far: Store, proxy: FaultProxy) -> None:
    data = os.urandom(3_000_000)
    near.put("key", data)
    for times in (1, 3):
        proxy.cut(to_client=1_500_000, times=times)
        assert far.get("key") == data
    proxy.cut(to_client=1_500_000)
    with pytest.raises(StoreError, match="broke off"):
        list(far.stream("key"))
    assert proxy.cuts == 5
    assert far.get("key") == data


def test_other_calls_are_repeated_too(near: Store, far: Store, proxy: FaultProxy) -> None:
    for number in range(5):
        near.put(f"key-{number}", b"x" * number)
    calls: list[Callable[[], object]] = [
        lambda: far.size("key-2"),
        lambda: [entry.key for entry in far.list("")],
        lambda: far.delete("key-0"),
        lambda: far.size("key-0"),
        lambda: far.delete_many(["key-3", "key-4"]),
        lambda: far.size("key-4"),
    ]
    heard = []
    for call in calls:
        proxy.cut(to_client=0)
        heard.append(call())
    assert heard == [2, [f"key-{number}" for number in range(5)], None, None, None, None]
    assert proxy.cuts == 6


def test_a_list_that_breaks_off_names_every_object_once(
    near: Store, far: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PAGE_KEYS", 5)
    names = [f"key-{number:02d}" for number in range(12)]
    for name in names:
        near.put(name, b"")
    proxy.cut(to_client=600, times=4)
    assert [entry.key for entry in far.list("")] == names
    assert proxy.cuts >= 2


def test_a_server_that_comes_back_is_found(far: Store, proxy: FaultProxy) -> None:
    proxy.refuse()
    threading.Timer(2.0, proxy.heal).start()
    assert far.put("key", b"x")


def test_a_server_that_stays_away_is_named(proxy: FaultProxy, prefix: str) -> None:
    store = open_store(f"s3://farm-test/{prefix}?endpoint_url=http://{proxy.address}", attempts=2)
    with (
        proxy.failing(proxy.refuse),
        pytest.raises(StoreError, match=f"{proxy.address} does not answer") as caught,
    ):
        store.put("key", b"x")
    assert caught.value.retryable
    assert store.put("key", b"x")


def test_a_server_that_falls_silent_is_given_up_in_time(
    proxy: FaultProxy, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.3)
    store = open_store(f"s3://farm-test/{prefix}?endpoint_url=http://{proxy.address}", attempts=2)
    store.put("before", b"x")
    with proxy.failing(proxy.black_hole):
        for call in (lambda: store.put("key", b"x"), lambda: store.get("before")):
            started = time.monotonic()
            with pytest.raises(StoreError, match="does not answer"):
                call()
            assert time.monotonic() - started < 2 * 0.3 + 2.5, "two silences and a pause"
    store.put("key", b"x")
    assert store.get("key") == b"x", "also if the first one arrived late"


def test_a_body_that_falls_silent_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that breaks off: a router that forgets a connection tells neither end."""
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.3)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    held: list[socket.socket] = []

    def answer(server: socket.socket, stalls: int) -> None:
        for number in range(s3.BODY_ATTEMPTS):
            held.append(server.accept()[0])
            held[-1].recv(65536)
            sent = b"x" * (500 if number < stalls else 1000)
            held[-1].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + sent)

    for stalls, read in ((s3.BODY_ATTEMPTS - 1, True), (s3.BODY_ATTEMPTS, False)):
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=answer, args=(server, stalls), daemon=True).start()
            address = f"http://127.0.0.1:{server.getsockname()[1]}"
            store = open_store(f"s3://farm-test/p?endpoint_url={address}", attempts=1)
            if read:
                assert store.get("key") == b"x" * 1000
            else:
                with pytest.raises(StoreError, match="fell silent"):
                    store.get("key")
    for connection in held:
        connection.close()


def test_a_body_whose_connection_is_reset_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a server does that is killed, or a proxy that is restarted."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    def answer(server: socket.socket, resets: int) -> None:
        for number in range(s3.BODY_ATTEMPTS):
            with server.accept()[0] as line:
                line.recv(65536)
                sent = b"x" * (500 if number < resets else 1000)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + sent)
                if number < resets:  # an end with RST and not with FIN
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for resets in (s3.BODY_ATTEMPTS - 1, s3.BODY_ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=answer, args=(server, resets), daemon=True).start()
            address = f"http://127.0.0.1:{server.getsockname()[1]}"
            store = open_store(f"s3://farm-test/p?endpoint_url={address}", attempts=1)
            if resets < s3.BODY_ATTEMPTS:
                assert store.get("key") == b"x" * 1000
            else:
                with pytest.raises(StoreError, match="broke off"):
                    store.get("key")


def test_a_slow_line_is_only_slow(far: Store, proxy: FaultProxy) -> None:
    data = os.urandom(100_000)
    proxy.throttle(400_000)
    assert far.put("key", data)
    proxy.delay(0.05, jitter=0.1)
    assert far.get("key") == data


def test_many_writers_on_a_bad_line_leave_one_whole_object_a_key(
    near: Store, far: Store, proxy: FaultProxy
) -> None:
    generator = random.Random(3)
    objects = {f"key-{number:02d}": os.urandom(20_000) for number in range(60)}
    stopped = threading.Event()

    def spoil() -> None:
        for number in range(12):
            if stopped.wait(0.05):
                return
            match number % 3:
                case 0:
                    proxy.cut(to_client=generator.choice((0, 1, 25, 65, 150)))
                case 1:
                    proxy.cut(to_server=generator.randrange(30_000))
                case 2:
                    proxy.drop()

    spoiler = threading.Thread(target=spoil)
    spoiler.start()

    def write(name: str) -> None:
        while True:
            try:
                far.put(name, objects[name])
                return
            except StoreError:
                continue

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, objects))
    finally:
        stopped.set()
        spoiler.join()
    assert proxy.cuts >= 2
    assert {entry.key: near.get(entry.key) for entry in near.list("")} == objects


def test_a_publisher_on_a_line_that_loses_replies_tells_of_each_picture_once(
    near: Store, far: Store, proxy: FaultProxy
) -> None:
    publisher = Publisher(far.url, threads=1)
    bench = Bench(publisher, near)
    bench.task(pictures=3)
    try:
        proxy.cut(to_client=0, times=4)
        for render in range(3):
            bench.picture(render)
        receipt = bench.receipt()
    finally:
        publisher.close()
    assert proxy.cuts == 4, "for each picture and for the manifest"
    assert (receipt.done, receipt.failed) == (3, 0)
    rows = read_part(near.get(PART))
    assert [row.render for row in rows] == [0, 1, 2]
    assert sorted(entry.key for entry in near.list("")) == sorted(
        [PART, *(bench.key(render) for render in range(3))]
    )
