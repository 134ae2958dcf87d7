"""Pictures of a shard are read together, and each is what was stored, whatever comes."""

import gzip
import hashlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import NotAllowed
from farm_client import runs as module
from farm_client.address import Address
from farm_client.connection import Connection
from farm_client.models import Page, Picture
from farm_client.runs import Run, map_ahead, read_run, runs
from farm_client.sync import drive
from farm_client.transport import BlockingWire

SHARD = "00000000.tar"
Handler = Callable[[httpx2.Request], httpx2.Response]


class Bucket:
    """A shard with pictures in it, served as stores do.

    Args:
        layout: a gap before each picture, and its size.
        ranges: whether it heeds them; then it compresses what it sends, for those who take that.
    """

    def __init__(self, layout: Sequence[tuple[int, int]], *, ranges: bool = True) -> None:
        rng = random.Random(repr(layout))
        self.shard = b""
        self.files: list[bytes] = []
        self.told: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.ranges = ranges
        for number, (gap, size) in enumerate(layout):
            file = rng.randbytes(size)
            self.shard += rng.randbytes(gap)
            self.told.append(picture(number, file, len(self.shard)))
            self.shard += file
            self.files.append(file)
        self.stored = self.shard

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        wanted = request.headers.get("range", "")
        self.asked.append(f"{request.url.path} {wanted}".strip())
        if request.url.path != f"/{SHARD}":
            return httpx2.Response(200, content=self.files[int(request.url.path[1:])])
        if not (wanted and self.ranges):
            return httpx2.Response(200, content=self._more_than_was_asked_for())
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        if "gzip" in request.headers.get("accept-encoding", ""):
            part = gzip.compress(self.shard)[first : last + 1]
            return httpx2.Response(206, content=part, headers={"Content-Encoding": "gzip"})
        return httpx2.Response(206, content=self.shard[first : last + 1])

    def _more_than_was_asked_for(self) -> Iterator[bytes]:
        yield self.shard
        raise AssertionError("it is not read to its end")

    def page(self, *, shards: bool = True) -> Page:
        shard = {
            "shard": SHARD, "generation": 0, "size": len(self.stored), "url": f"http://s3/{SHARD}",
            "gateway_url": f"/{SHARD}",
            "sha256": hashlib.sha256(self.stored).hexdigest(),
        }  # fmt: skip
        told = {"shards": [shard]} if shards else {}
        return Page.of(told, map(Picture.model_validate, self.told))

    def read(self, page: Page) -> list[bytes]:
        found = runs(page, page.pictures)
        return [file for run in found for file in drive(read_run(connection(self), run))]


def picture(number: int, file: bytes, offset: int) -> dict[str, Any]:
    return {
        "render": number, "image": 0, "file": f"{number}.png", "url": f"http://s3/{number}",
        "sha256": hashlib.sha256(file).hexdigest(), "size": len(file), "seed": 1, "spec": {},
        "shard": SHARD, "offset": offset,
    }  # fmt: skip


def connection(handler: Handler, patience: float = 0.0) -> Connection:
    wire = BlockingWire(httpx2.MockTransport(handler))
    return Connection(Address("http://farm", None), wire, patience=patience)


LAYOUTS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 90)), min_size=1, max_size=12)


@given(LAYOUTS, st.booleans(), st.randoms())
def test_any_pictures_of_a_shard_are_read_by_ranges(
    layout: list[tuple[int, int]], ranges: bool, rng: random.Random
) -> None:
    bucket = Bucket(layout, ranges=ranges)
    page = bucket.page()
    wanted = [number for number in range(len(layout)) if rng.random() < 0.7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RUN_BYTES", 100)
        patch.setattr(module, "GAP_BYTES", 10)
        found = list(runs(page, [page.pictures[number] for number in wanted]))
    assert [one.render for run in found for one in run.pictures] == wanted
    read = partial(read_run, connection(bucket))
    assert [file for run in found for file in drive(read(run))] == [
        bucket.files[number] for number in wanted
    ]
    assert len(bucket.asked) == len(found) + (0 if ranges else len(wanted))
    assert all(len(run.range) <= 100 for run in found)
    for run in found:
        places = [
            range(one.offset or 0, (one.offset or 0) + (one.size or 0)) for one in run.pictures
        ]
        assert all(later.start - one.stop <= 10 for one, later in itertools.pairwise(places))


def test_pictures_of_two_shards_are_not_read_together() -> None:
    """Even where one begins at the offset at which the other ends."""
    names = [SHARD, "00000001.tar"]
    shards = [
        {"shard": name, "generation": 0, "size": 100, "url": f"http://s3/{name}", "sha256": "0"}
        for name in names
    ]
    told = [picture(at, b"x" * 50, 50 * at) | {"shard": name} for at, name in enumerate(names)]
    page = Page.of({"shards": shards}, map(Picture.model_validate, told))
    found = [(run.shard and run.shard.file, run.range) for run in runs(page, page.pictures)]
    assert found == [(names[0], range(50)), (names[1], range(50, 100))]


def test_a_whole_shard_of_small_pictures_is_one_request() -> None:
    bucket = Bucket([(512, 700)] * 1000)
    assert bucket.read(bucket.page()) == bucket.files
    assert bucket.asked == [f"/{SHARD} bytes=512-{len(bucket.shard) - 1}"]


def test_a_picture_that_a_range_does_not_give_is_asked_for_by_itself() -> None:
    bucket = Bucket([(0, 50)] * 4)
    bucket.shard = bucket.shard[:70] + b"?" + bucket.shard[71:150]  # altered, and cut short
    assert bucket.read(bucket.page()) == bucket.files
    assert bucket.asked == [f"/{SHARD} bytes=0-199", "/1", "/3"]


def test_a_farm_that_tells_of_no_shards_gives_each_picture_by_itself() -> None:
    bucket = Bucket([(0, 50)] * 3)
    assert bucket.read(bucket.page(shards=False)) == bucket.files
    assert bucket.asked == ["/0", "/1", "/2"]


def test_failed_pictures_are_in_no_run() -> None:
    bucket = Bucket([(0, 50)] * 3)
    bucket.told[1] |= {"error": {"code": "render", "message": "no"}, "file": None, "offset": None}
    assert bucket.read(bucket.page()) == [bucket.files[0], bucket.files[2]]
    assert bucket.asked == [f"/{SHARD} bytes=0-149"]


def test_an_address_that_is_refused_is_an_error() -> None:
    bucket = Bucket([(0, 50)] * 3)
    (run,) = runs(bucket.page(), bucket.page().pictures)
    refusal = {"error": {"code": "not_allowed", "message": "the address has expired"}}
    refused = connection(lambda request: httpx2.Response(403, json=refusal), patience=5.0)
    with pytest.raises(NotAllowed):
        drive(read_run(refused, run))


def test_what_is_no_longer_wanted_is_not_begun() -> None:
    begun, hold = [], threading.Event()

    def call(number: int) -> int:
        begun.append(number)
        assert number == 0 or hold.wait(60)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, call, range(9), 4)
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]  # a generator
        hold.set()
    assert set(begun) <= {0, 1}


@pytest.mark.parametrize("status", [0, 403, 502], ids=["silent", "closed", "a proxy"])
def test_a_store_that_was_never_reached_is_read_through_the_gateway(status: int) -> None:
    bucket = Bucket([(0, 50)] * 4)

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "farm":
            return bucket(request)
        bucket.asked.append("s3")
        if not status:
            raise httpx2.ConnectError("no route to host")
        return httpx2.Response(status)

    page = bucket.page()
    (shard,) = page.shards.values()
    farm = connection(answer, patience=5.0)
    two = [Run(pictures, shard) for pictures in (page.pictures[:2], page.pictures[2:])]
    assert [file for run in two for file in drive(read_run(farm, run))] == bucket.files
    assert bucket.asked == ["s3", f"/{SHARD} bytes=0-99", f"/{SHARD} bytes=100-199"]


def test_a_store_that_was_reached_before_is_asked_again() -> None:
    bucket = Bucket([(0, 50)] * 4)
    failures = iter([False, True, True, False])

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.host == "s3"
        return httpx2.Response(503) if next(failures) else bucket(request)

    page = bucket.page()
    (shard,) = page.shards.values()
    farm = connection(answer, patience=5.0)
    for pictures in (page.pictures[:2], page.pictures[2:]):
        drive(read_run(farm, Run(pictures, shard)))
    assert bucket.asked == [f"/{SHARD} bytes=0-99", f"/{SHARD} bytes=100-199"]
