"""What every store promises."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm.errors import InvalidInput, NotFound, StoreError
from farm.store import ListedObject, Store, open_store, s3, s3_client
from farm.store.probing import probe
from farm.store.protocol import MAX_KEY, STREAM_BYTES


def test_what_is_put_is_read(store: Store) -> None:
    assert store.put("ab/job/data/0/00000000-00.png", b"bytes", content_type="image/png")
    assert store.get("ab/job/data/0/00000000-00.png") == b"bytes"
    assert store.size("ab/job/data/0/00000000-00.png") == 5


def test_a_range_is_read_whole_or_refused(store: Store) -> None:
    store.put("shard", bytes(range(100)))
    assert store.read("shard", 0, 100) == bytes(range(100))
    assert store.read("shard", 40, 7) == bytes(range(40, 47))
    for offset, size in ((95, 6), (100, 1)):
        with pytest.raises(StoreError):
            store.read("shard", offset, size)
    with pytest.raises(NotFound):
        store.read("no/such/key", 0, 1)


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.put("empty", b"")
    assert (store.get("empty"), store.size("empty"), list(store.stream("empty"))) == (b"", 0, [])


def test_a_key_is_written_once(store: Store) -> None:
    assert store.put("a/key", b"first")
    assert not store.put("a/key", b"second")
    assert not store.put("a/key", b"first")
    assert store.get("a/key") == b"first"


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_one_of_sixteen_writers_wins(store: Store, size: int) -> None:
    stores = [store, open_store(store.url)]
    for race in range(3):
        start = threading.Barrier(16)

        def write(number: int, race: int = race, start: threading.Barrier = start) -> bool:
            start.wait()
            return stores[number % 2].put(f"race/{race}", bytes([number]) * size)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(write, range(16)))
        assert won.count(True) == 1
        assert store.get(f"race/{race}") == bytes([won.index(True)]) * size


def test_a_large_object_is_written_once_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, where the server lets one of several such uploads win."""
    monkeypatch.setattr(s3, "LARGE_BYTES", 6 * 2**20)
    data = [bytes([number]) * 12 * 2**20 for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(lambda one: store.put("large", one), data))
    assert won.count(True) == 1
    assert store.get("large") == data[won.index(True)]
    assert not store.put("large", data[0])
    assert [entry.key for entry in store.list("")] == ["large"]


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for call in (store.get, lambda key: list(store.stream(key))):
        with pytest.raises(NotFound):
            call("no/such/key")
    assert store.size("no/such/key") is None
    store.delete("no/such/key")
    assert list(store.list("no/")) == []


def test_what_lies_below_an_object_is_not_found(store: Store) -> None:
    store.put("object", b"x")
    assert store.size("object/below") is None
    assert list(store.list("object/")) == []
    store.delete("object/below")
    with pytest.raises(NotFound):
        store.get("object/below")


def test_a_deleted_object_is_gone_and_its_key_is_free(store: Store) -> None:
    store.put("key", b"first")
    store.delete("key")
    assert store.size("key") is None
    assert store.put("key", b"second")


def test_many_objects_are_deleted_at_once_and_no_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "BULK_KEYS", 10)
    keys = [f"many/{number:02d}" for number in range(25)]
    for key in [*keys, "many/object", "much"]:
        store.put(key, b"x")
    store.delete_many([])
    store.delete_many([*keys[:15], "no/such/key", *keys[20:], "many/object/below"])
    assert [one.key for one in store.list("")] == [*keys[15:20], "many/object", "much"]
    store.delete_many(keys)
    assert [one.key for one in store.list("")] == ["many/object", "much"]
    assert store.put(keys[0], b"again")


def test_a_large_object_streams_in_pieces(store: Store) -> None:
    data = os.urandom(5 * STREAM_BYTES // 2)
    store.put("large", data)
    pieces = list(store.stream("large"))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= STREAM_BYTES


def test_a_list_is_in_the_order_of_the_keys_bytes(store: Store) -> None:
    keys = ["a-b", "a/b", "a/b-c", "a/bc/d", "a/z", "a0", "a_", "b/a", "B", "a.b", "a/b.c/d"]
    for key in keys:
        store.put(key, key.encode())
    assert list(store.list("")) == [ListedObject(key, len(key)) for key in sorted(keys)]
    assert [entry.key for entry in store.list("a/b")] == ["a/b", "a/b-c", "a/b.c/d", "a/bc/d"]
    assert [entry.key for entry in store.list("a/")][-1] == "a/z"
    assert [entry.key for entry in store.list("a/bc/d")] == ["a/bc/d"]


def test_a_list_has_no_end_at_the_first_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "PAGE_KEYS", 10)
    keys = [f"many/{number:05d}" for number in range(35)]
    for key in keys:
        assert store.put(key, b"")
    assert [entry.key for entry in store.list("many/")] == keys


def test_folders_are_named_each_once_without_what_lies_in_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_client, "PAGE_KEYS", 3)
    for key in ("a/1", "a/b/1", "a/b/2", "a-b/1", "a/c/d/1", "a/bc/1", "e", "f/1"):
        store.put(key, b"")
    assert list(store.folders("")) == ["a-b/", "a/", "f/"]
    assert list(store.folders("a/")) == ["a/b/", "a/bc/", "a/c/"]
    assert list(store.folders("a/b/")) == []
    assert list(store.folders("none/")) == []


@pytest.mark.parametrize(
    "key",
    [
        "", ".", "..", "/", "/etc/passwd", "../up", "a/../../up", "a/..", "a/./b", "a//b", "a/",
        "a\\..\\b", "a\0b", "a\nb", "a b", "a%2e%2e", "~/a", ".hidden", "a/.writing-0", "ключ",
        "a:b", "a?b", "a#b", "-a", "x" * 201, "x/" * (MAX_KEY // 2) + "x",
    ],
)  # fmt: skip
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    for call in (
        store.get,
        store.size,
        store.delete,
        lambda key: store.delete_many(["good", key]),
        lambda key: store.put(key, b""),
    ):
        with pytest.raises(InvalidInput):
            call(key)
    with pytest.raises(InvalidInput):
        list(store.stream(key))


def test_a_list_cannot_leave_the_store(store: Store) -> None:
    for prefix in ("..", "../", "/", "a/../", "a//"):
        for names in (store.list, store.folders):
            with pytest.raises(InvalidInput):
                list(names(prefix))


def test_the_longest_key_is_taken(store: Store) -> None:
    key = "/".join(["x" * 170] * 3)
    assert len(key) == MAX_KEY
    assert store.put(key, b"1")
    assert [entry.key for entry in store.list("x")] == [key]


def test_many_threads_share_one_store(store: Store) -> None:
    def use(number: int) -> bool:
        key, data = f"thread/{number}", bytes([number]) * 10_000
        return store.put(key, data) and store.get(key) == data and store.size(key) == 10_000

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(use, range(100)))


def test_a_good_store_passes_the_probe_and_is_left_clean(store: Store) -> None:
    probe(store)
    assert list(store.list("")) == []


def test_its_url_opens_the_same_store(store: Store) -> None:
    store.put("key", b"x")
    again = open_store(store.url)
    assert (again.url, again.get("key")) == (store.url, b"x")


_ENDLESS_WRITER = """
import sys
from farm.store import open_store
store, size = open_store(sys.argv[1]), int(sys.argv[2])
for number in range(1000):
    store.put(f"killed/{sys.argv[3]}/{number:04d}", bytes([number % 251]) * size)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_no_half_object(store: Store) -> None:
    size = 3_000_000
    for attempt in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS_WRITER, store.url, str(size), str(attempt)],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.003 * (attempt + 1))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        said = len(writer.stdout.read().splitlines()) + 1
        writer.stdout.close()
        found = list(store.list(f"killed/{attempt}/"))
        assert len(found) >= said
        for number, entry in enumerate(found):
            assert entry.size == size
            expected = hashlib.sha256(bytes([number % 251]) * size)
            assert hashlib.sha256(store.get(entry.key)).digest() == expected.digest()


def test_a_signed_link_reads_without_credentials(store: Store) -> None:
    store.put("some/picture.png", b"png", content_type="image/png")
    url = store.signed_url("some/picture.png", seconds=60, filename='ein "Rad" 🚲.png')
    if url is None:
        assert store.url.startswith("file:")
        return
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"png"
        assert answer.headers["Content-Type"] == "image/png"
        disposition = answer.headers["Content-Disposition"]
    assert disposition == (
        'attachment; filename="ein _Rad_ _.png"; '
        "filename*=UTF-8''ein%20%22Rad%22%20%F0%9F%9A%B2.png"
    )
    if os.environ.get("FARM_TEST_S3"):  # ministack takes any signature
        for wrong in (url.replace("picture.png", "other.png"), url[:-4] + "0000"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(wrong)
