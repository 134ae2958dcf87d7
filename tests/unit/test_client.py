"""The SDK without a farm: retries, errors in plain words, lines and inputs."""

import gc
import hashlib
import io
import json
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from farm import strict_json
from farm.errors import (
    FarmError,
    InvalidInput,
    NotAllowed,
    OverQuota,
    RejectedRender,
    TooLarge,
    Unavailable,
)
from farm.job import MAX_LINE_BYTES
from farm_client import Farm
from farm_client.address import find_address
from farm_client.inputs import read_input
from farm_client.ndjson import Line, completed, never_waits, parsed, pieces, read_lines, together
from farm_client.output_folder import MARK
from farm_client.streams import read_events
from farm_client.submission import at_their_lines
from farm_client.sweep import Sweep
from farm_client.sync import drive, iterate
from farm_client.transport import BlockingWire

Handler = Callable[[httpx2.Request], httpx2.Response]
JOB = "j0-01m848b6zxgnjbpp0f506dqmht"
ENDED = {
    "id": JOB, "name": None, "state": "done", "paused": False, "priority": "normal",
    "sink": "images", "format": "png", "created_at": "2026-11-27T10:00:00Z", "started_at": None,
    "ended_at": None, "deadline": None, "generation": 0, "rejected": 0, "max_failed": 0,
    "reason": None, "row_steps": 12,
    "images": {"total": 1, "done": 1, "failed": 0, "expired": 0, "running_done": 0},
    "tasks": {
        "total": 1, "queued": 0, "leased": 0, "waiting": 0, "done": 1, "failed": 0, "cancelled": 0,
        "expired": 0,
    },
}  # fmt: skip
DONE = {"id": JOB, "created": True, "accepted": 1, "rejected": 0, "errors": [], "state": "queued"}


class QuietWire(BlockingWire):
    """Counts the seconds it was asked to sleep."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(httpx2.MockTransport(handler))
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def farm_with(handler: Handler, url: str = "http://farm:8400", **given: Any) -> Farm:
    return Farm(url, "key", wire=QuietWire(handler), **given)


def reply(status: int, error: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
    content = {"error": error} if error else DONE
    return httpx2.Response(status, json=content, headers=headers)


def test_a_lost_answer_is_asked_for_again_with_the_same_key() -> None:
    seen = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append((request.headers["idempotency-key"], request.content))
        if len(seen) < 3:
            raise httpx2.ReadError("connection reset")
        return reply(201)

    farm = farm_with(handler)
    farm._connection._answered = True
    assert farm.submit("x").id == JOB
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert farm.submit("x").id == JOB
    assert seen[3][0] != seen[0][0]


BUSY = {"code": "unavailable", "message": "busy"}


@pytest.mark.parametrize(
    "answer",
    [
        *(reply(status, BUSY, **{"Retry-After": "3"}) for status in (429, 502, 503, 504)),
        httpx2.Response(503, text="<html>of a proxy", headers={"Retry-After": "3"}),
    ],
)
def test_a_farm_that_is_busy_is_asked_later(answer: httpx2.Response) -> None:
    answers = [answer]

    def handler(_: httpx2.Request) -> httpx2.Response:
        return answers.pop() if answers else reply(201)

    farm = farm_with(handler)
    assert farm.submit("x").id == JOB
    wire = farm._connection.wire
    assert isinstance(wire, QuietWire)
    assert wire.slept == [3.0]


def test_a_name_that_begins_like_this_machines_address_is_another_machine() -> None:
    assert find_address("http://127.0.0.1:8400").local
    assert find_address("http://[::1]:8400").local
    assert not find_address("http://127.farm.example:8400").local


def test_a_night_of_patience_has_no_last_attempt() -> None:
    connection = farm_with(lambda _: reply(201), patience=1e9)._connection
    connection._answered = True
    drive(connection.pause(2000, Unavailable("away"), time.monotonic()))


def test_a_store_on_another_port_of_the_farms_machine_is_not_the_farm() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.port == 9000:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, content=request.url.path.encode())

    async def read() -> bytes:
        async with connection.object("http://farm:9000/bucket/x", gateway_url="/v1/x") as opened:
            return b"".join([part async for part in opened.parts])

    connection = farm_with(handler, url="http://farm")._connection
    with pytest.raises(Unavailable, match="the farm's store at farm:9000"):
        drive(read())
    assert drive(read()) == b"/v1/x"


def test_previews_of_pictures_that_are_done_take_no_memory() -> None:
    pages = iter(range(50))

    def handler(_: httpx2.Request) -> httpx2.Response:
        now = next(pages)
        preview = {
            "render": now // 2, "image": 0, "step": 3, "steps": 12, "confidence": 0.5,
            "picture": "data:image/jpeg;base64,",
        }  # fmt: skip
        state = "done" if now == 49 else "running"
        return httpx2.Response(200, json={"previews": [preview], "state": state})

    seen = [weakref.ref(one) for one in farm_with(handler).job(JOB).previews()]
    assert len(seen) == 25
    follow = farm_with(handler).job(JOB).previews()
    pages = iter(range(50))
    seen = [weakref.ref(next(follow)) for _ in range(20)]
    gc.collect()
    assert sum(one() is not None for one in seen) <= 2
    follow.close()


def test_what_cannot_help_is_not_repeated() -> None:
    asked = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return reply(422, {"code": "invalid", "message": "no", "field": "prompt"})

    with pytest.raises(InvalidInput) as error:
        farm_with(handler).submit("x")
    assert (len(asked), error.value.field) == (1, "prompt")


def test_patience_ends_with_the_last_error() -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        return reply(429, {"code": "over_quota", "message": "too much"}, **{"Retry-After": "30"})

    with pytest.raises(OverQuota):
        farm_with(handler, patience=10).submit("x")


@pytest.mark.parametrize(
    ("failure", "url", "words"),
    [
        (httpx2.ConnectError("refused"), "http://127.0.0.1:1", "start one with: farm up"),
        (httpx2.ConnectError("refused"), "http://farm:1", "is FARM_URL right"),
        (httpx2.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong"), "https://farm:1", "http://farm:1"),
        (httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "https://farm:1",
         "not trusted"),
        (httpx2.RemoteProtocolError("illegal status line"), "http://farm:1", "https://farm:1"),
        (httpx2.ReadTimeout("slow"), "http://farm:1", "in time"),
    ],
)  # fmt: skip
def test_a_broken_connection_is_said_in_plain_words(
    failure: Exception, url: str, words: str
) -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise failure

    with pytest.raises(Unavailable) as error:
        farm_with(handler, url, patience=0).submit("x")
    assert words in str(error.value)
    assert error.value.exit_code == 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx2.Response(404, text="<html>nginx</html>"), "but is not a farm"),
        (httpx2.Response(200, text="<html>hello</html>"), "but is not a farm"),
        (httpx2.Response(400, text="sent to HTTPS port"), "https://farm:8400"),
        (
            httpx2.Response(302, headers={"location": "https://x/login?token=1"}),
            "but is not a farm (it redirects to https://x/login; is FARM_URL right?)",
        ),
        (httpx2.Response(503, text="nginx"), "does not answer"),
    ],
)
def test_what_is_no_farm_is_told(answer: httpx2.Response, words: str) -> None:
    with pytest.raises(Unavailable) as error:
        farm_with(lambda _: answer, patience=0).submit("x")
    assert words in str(error.value)


def test_a_proxy_that_takes_no_large_bodies_is_named_and_not_asked_again() -> None:
    asked = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(413, text="<html>nginx</html>")

    with pytest.raises(TooLarge, match="a proxy at http://farm:8400 takes no body of this size"):
        farm_with(handler).submit("x")
    assert len(asked) == 1


def test_a_farm_of_another_version_is_named_in_its_errors() -> None:
    answer = reply(401, {"code": "not_allowed", "message": "no"}, **{"farm-version": "9.9.9"})
    with pytest.raises(NotAllowed, match=r"9\.9\.9"):
        farm_with(lambda _: answer).submit("x")
    strange = reply(400, {"code": "from_the_future", "message": "new"})
    with pytest.raises(InvalidInput, match="new"):
        farm_with(lambda _: strange).submit("x")


def test_the_key_goes_to_the_farm_and_not_to_the_store() -> None:
    seen = {}

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen[request.url.host] = request.headers.get("authorization")
        if request.url.host == "bucket":
            return httpx2.Response(200, content=b"bytes")
        picture = {
            "render": 0, "image": 0, "file": "a.png", "url": "http://bucket/a.png", "seed": 1,
            "sha256": None, "spec": {},
        }  # fmt: skip
        return httpx2.Response(200, json={"images": [picture], "next": "1.0.0", "state": "done"})

    image = next(farm_with(handler).job(JOB).images())
    assert image.bytes() == b"bytes"
    assert seen == {"farm": "Bearer key", "bucket": None}


@pytest.mark.parametrize("status", [403, 503])
def test_a_store_that_refuses_is_not_taken_for_the_farm(status: int) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "bucket":
            return httpx2.Response(status, content=b"<?xml version='1.0'?><Error/>")
        picture = {
            "render": 0, "image": 0, "file": "a.png", "url": "http://bucket/a.png", "seed": 1,
            "sha256": None, "spec": {},
        }  # fmt: skip
        return httpx2.Response(200, json={"images": [picture], "next": "1.0.0", "state": "done"})

    image = next(farm_with(handler, patience=0.0).job(JOB).images())
    with pytest.raises(Unavailable, match=f"store at bucket answers HTTP {status}") as caught:
        image.bytes()
    assert caught.value.retryable is (status == 503)


@pytest.mark.parametrize(
    ("status", "headers", "place", "needs"),
    [
        (301, {"x-amz-bucket-region": "eu-west-1"}, "the region eu-west-1", "AWS_DEFAULT_REGION"),
        (307, {"location": "https://s3.test/a.png?X-Amz-Signature=1"}, "https://s3.test/a.png",
         "FARM_STORE_PUBLIC_URL"),
        (302, {}, "another address", "FARM_STORE_PUBLIC_URL"),
    ],
)  # fmt: skip
def test_a_store_that_redirects_is_named_with_what_to_set(
    status: int, headers: dict[str, str], place: str, needs: str
) -> None:
    async def read() -> None:
        async with connection.object("http://bucket/a.png?X-Amz-Signature=1"):
            pass

    answer = httpx2.Response(status, headers=headers, text="<html>moved")
    connection = farm_with(lambda _: answer)._connection
    with pytest.raises(Unavailable, match=f"redirects to {place} ") as caught:
        drive(read())
    assert needs in str(caught.value.hint)
    assert not caught.value.retryable


def test_a_stream_is_not_read_from_a_place_that_redirects() -> None:
    answer = httpx2.Response(301, headers={"location": "https://farm/"}, text="<html>moved")
    with pytest.raises(Unavailable, match="but is not a farm"):
        farm_with(lambda _: answer).job(JOB).verify()


@pytest.mark.parametrize("shards", [False, True])
def test_a_server_cannot_name_a_file_outside_the_folder(tmp_path: Path, shards: bool) -> None:
    data = b"a shard"
    shard = {
        "shard": "00000000.tar", "generation": 0, "size": len(data), "url": "/x",
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    for name in ("../evil", "/etc/passwd", ".hidden", "a/b", "a\\b", ""):
        picture = {
            "render": 0, "image": 0, "file": name, "url": "/x", "seed": 1, "sha256": None,
            "spec": {}, "shard": shard["shard"], "offset": 0, "size": 1,
        }  # fmt: skip
        page = {"images": [picture], "shards": [shard], "next": "0.0.0", "state": "done"}

        def answer(request: httpx2.Request, page: Any = page) -> httpx2.Response:
            if request.url.path == "/x":
                return httpx2.Response(200, content=data)
            listed = request.url.path.endswith("/images")
            return httpx2.Response(200, json=page if listed else ENDED)

        with pytest.raises(FarmError, match="not a file name"):
            farm_with(answer).job(JOB).fetch(tmp_path / "out", shards=shards)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]


def test_an_address_is_looked_for_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FARM_DATA", str(tmp_path))
    monkeypatch.delenv("FARM_URL", raising=False)
    monkeypatch.delenv("FARM_API_KEY", raising=False)
    assert find_address() == ("http://127.0.0.1:8400", None)
    (tmp_path / "client.json").write_text('{"url": "http://file:1", "api_key": "a"}')
    assert find_address() == ("http://file:1", "a")
    monkeypatch.setenv("FARM_URL", "http://env:2/")
    assert find_address() == ("http://env:2", None)
    monkeypatch.setenv("FARM_API_KEY", "b")
    assert find_address("https://given:3", "c") == ("https://given:3", "c")
    wrong_ones = (
        "nonsense", "http://", "ftp://x", "http://x:99999", "http://x:y", "http://a b", "http://a..b",
        "http://" + "a" * 300, "http://[::1", "http://user:password@x", "http://x:0",
    )  # fmt: skip
    for wrong in wrong_ones:
        with pytest.raises(InvalidInput):
            find_address(wrong)


def read(source: Any, **defaults: Any) -> list[Line]:
    return list(completed(read_lines(source), defaults))


def test_lines_are_passed_on_as_they_stand() -> None:
    text = '\n{"prompt": "a"}\r\n  \n{"broken\n'
    assert [(line.number, line.text) for line in read(io.StringIO(text))] == [
        (2, '{"prompt": "a"}'), (4, '{"broken'),
    ]  # fmt: skip


def test_a_text_file_is_read_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "\xff"}\n{"prompt": "c"}')
    with path.open() as file:
        first, wrong, last = read(file)
    assert (first.text, last.number) == ('{"prompt": "a"}', 3)
    assert wrong.error is not None
    assert (wrong.error.line, wrong.error.column) == (2, 13)


def test_a_long_line_is_counted_and_not_held() -> None:
    class Endless(io.RawIOBase):
        """100 MB in one line, then a good one; never more than asked for at a time."""

        def __init__(self) -> None:
            self.left = 100 * 2**20

        def readline(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert 0 < size <= MAX_LINE_BYTES + 2
            if self.left > 0:
                part = min(size, self.left)
                self.left -= part
                return b"x" * part
            if self.left == 0:
                self.left = -1
                return b"\n"
            self.left -= 1
            return b'{"prompt": "a"}\n' if self.left == -2 else b""

    long, good = read(Endless())
    assert isinstance(long.error, TooLarge)
    assert "104,857,600" in long.error.message
    assert (good.number, good.text) == (2, '{"prompt": "a"}')


def test_an_array_is_read_element_by_element() -> None:
    text = '[\n  {"prompt": "a"},\n  7,\n  {"prompt": "b", "image": "c.png"}\n]\n'
    first, wrong, files = read(io.StringIO(text))
    assert (first.number, first.place("prompt")) == (2, 3)
    assert wrong.error is not None
    assert wrong.number == 3
    assert (files.number, files.data) == (4, {"prompt": "b", "image": "c.png"})
    for bad in ('[{"prompt": "a"},]', '[{"prompt": "a"}', "[1 2]", "[] x", "["):
        with pytest.raises(InvalidInput):
            read(io.StringIO(bad))


def test_an_array_may_stand_in_one_line() -> None:
    array = [{"prompt": "a" * 1000} for _ in range(1200)]
    found = read(io.BytesIO(json.dumps(array).encode()))
    assert [json.loads(line.text) for line in found] == array


LINES = st.lists(
    st.sampled_from(
        [
            *('{"prompt": "a"}', ' {"prompt":"b","seed":7} ', '{"prompt": "\\u00e9", "prompt": 1}'),
            *(
                '{"prompt": "é {", "width": 16}',
                '{"seed": {"a": 1}, "prompt": "x"}',
                "{}",
                "7",
                "{",
                '{"prompt": "a" "height": 8',
                '{"heigh\\u0074": 8, "prompt": "a"}',
            ),
            *(
                '{"prompt": "height"}',
                '{"prompt":"a","seed":1,}',
                '{"prompt": "x", "height": 8}',
                '{"prompt": "x", "image": "a.png"}',
                '{"a": NaN}',
            ),
            *('{"prompt": "\\"height\\": 1", "id": [1, 2]}', '{"p" : "prompt", "prompt":"y"}'),
        ]
    ),
    max_size=8,
)


def refusal(line: Line, sent: str) -> list[str]:
    """What the user is told of a line that the farm refuses as it was sent."""
    try:
        value = strict_json.loads(sent, line=1)
    except InvalidInput as error:
        told = at_their_lines([RejectedRender(0, error)], [line], 0)
        return [str(one.error.to_dict()) for one in told]
    return [repr(value)]


@given(LINES, st.booleans())
def test_a_line_with_defaults_says_what_its_row_and_they_say(texts: list[str], alone: bool) -> None:
    defaults = {"height": 128, "checkpoint": "a"}
    body = "\n".join(texts).encode()
    if alone:
        found = [line for text in texts for line in read(io.BytesIO(text.encode()), **defaults)]
    else:
        found = read(io.BytesIO(body), **defaults)
    assert len(found) == len(texts)
    for line, text in zip(found, texts, strict=True):
        row = parsed(Line(line.number, text))
        for field in (*defaults, "prompt", "seed", "width", "id", "p", "image", None):
            assert line.place(field) == row.place(field)
        if row.data is None:
            assert refusal(line, line.text) == refusal(Line(line.number, text), text)
        else:
            sent = line.data or json.loads(line.text)
            assert list(sent.items()) == list({**defaults, **row.data}.items())
            assert (line.data is not None) == ("image" in row.data)


def test_items_of_any_kind_become_lines() -> None:
    found = read(["a", {"prompt": "b", "seed": 1}, 7, {"prompt": {1, 2}}], num_images=2)
    assert json.loads(found[0].text) == {"prompt": "a", "num_images": 2}
    assert json.loads(found[1].text) == {"prompt": "b", "seed": 1, "num_images": 2}
    assert [line.number for line in found if line.error] == [3, 4]


def test_pieces_have_a_bounded_size() -> None:
    groups = list(pieces(iter([Line(n, "x" * 100) for n in range(4500)])))
    assert [len(group) for group in groups] == [2000, 2000, 500]
    large = list(pieces(iter([Line(n, "x" * 2**20) for n in range(9)])))
    assert [len(group) for group in large] == [4, 4, 1]


def test_whole_pieces_go_together() -> None:
    def sizes(counts: list[int], width: int = 10) -> list[int]:
        groups = [[Line(n, "x" * width) for n in range(count)] for count in counts]
        return [len(group) for group in together(groups)]

    assert sizes([2000] * 8 + [3]) == [2000, 10_000, 4003]
    assert sizes([2000, 2000, 5, 2000]) == [2000, 2005, 2000]  # one that is cut short ends a call
    assert sizes([2000] * 3, 2000) == [2000] * 3  # together they would be too long
    assert sizes([]) == []


def test_lines_that_the_farm_finds_too_many_go_in_smaller_calls() -> None:
    sent: list[tuple[str, int, int]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        count = request.content.count(b"\n")
        if "chunks" not in request.url.path:
            return httpx2.Response(200, json=DONE)
        # As a farm that knows only single pieces, of which the second makes too many tasks.
        first = int(request.url.params["first"])
        if count > 2000 or (count > 200 and 2000 <= first < 4000):
            error = {"code": "too_large", "message": "no", "field": "piece", "retryable": False}
            return httpx2.Response(413, json={"error": error})
        sent.append((request.url.path.rpartition("/")[2], first, count))
        return httpx2.Response(
            200, json={"accepted": count, "rejected": 0, "errors": [], "pictures": count}
        )

    job = farm_with(answer).submit_many([{"prompt": "x"}] * 6100)
    assert job.accepted == 6100
    small = [(str(1 + n), 2000 + 200 * n, 200) for n in range(10)]
    assert sent == [("0", 0, 2000), *small, ("11", 4000, 2000), ("12", 6000, 100)]


def test_pieces_of_a_source_that_may_wait_go_as_they_come(tmp_path: Path) -> None:
    given: list[int] = []
    sent: list[tuple[int, int]] = []  # how many were given when a call was made, and its lines

    def answer(request: httpx2.Request) -> httpx2.Response:
        count = request.content.count(b"\n")
        if "chunks" in request.url.path:
            sent.append((len(given), count))
        return httpx2.Response(200, json={**DONE, "accepted": count})

    def rows(count: int) -> Iterator[dict[str, str]]:
        for number in range(count):
            given.append(number)
            yield {"prompt": "x"}

    farm_with(answer).submit_many(rows(8100))
    assert sent == [(4000, 2000), (4000, 2000), (6000, 2000), (8000, 2000), (8100, 100)]
    sent.clear()
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n' * 8100)
    with path.open() as file:
        farm_with(answer).submit_many(file)
    assert [count for _, count in sent] == [2000, 6100]
    assert never_waits([1])
    assert not never_waits(io.StringIO("x"))


def test_inputs_are_read_from_whatever_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    assert read_input("a.png", "image", tmp_path) == b"bytes"
    assert read_input(io.BytesIO(b"bytes"), "image") == b"bytes"
    assert read_input(bytearray(b"bytes"), "image") == b"bytes"
    for wrong in (tmp_path, tmp_path / "none", "a\0b", 7, b"", io.StringIO("x")):
        with pytest.raises(InvalidInput) as error:
            read_input(wrong, "mask_image", tmp_path)
        assert error.value.field == "mask_image"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(101 << 20)
    with pytest.raises(TooLarge):
        read_input(tmp_path / "large", "image")


def test_a_picture_or_file_that_cannot_be_read_is_bad_input() -> None:
    """Another error would end a submission of many for the sake of one."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "JPEG")
    cut_short = Image.open(io.BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    closed = Image.new("RGB", (4, 4))
    closed.close()
    file.close()
    for wrong, words in (
        (Image.new("CMYK", (4, 4)), 'picture.convert("RGB")'),
        (cut_short, "truncated"),
        (closed, "closed image"),
        (file, "closed file"),
    ):
        with pytest.raises(InvalidInput) as error:
            read_input(wrong, "image")
        assert error.value.field == "image"
        assert words in str(error.value)


def test_a_file_object_is_the_same_for_each_render_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"bytes")
    with (tmp_path / "a.png").open("rb") as file:
        file.read(1)
        swept = completed(
            read_lines([{"prompt": "a", "image": file}] * 2),
            {},
            Sweep.parse({"seed": [1, 2]}, None),
        )
        found = [read_input(line.data["image"], "image") for line in swept if line.data]
    assert found == [b"ytes"] * 4
    read, write = os.pipe()
    os.write(write, b"bytes")
    os.close(write)
    with open(read, "rb") as pipe:
        assert read_input(pipe, "image") == b"bytes"


def test_events_are_read_however_they_are_cut() -> None:
    text = b': hello\n\nevent: status\ndata: {}\n\nevent: end\r\ndata: {"a": 1}\r\n\r\n'

    for size in (1, 7, 1000):

        async def parts(size: int = size) -> Any:
            for start in range(0, len(text), size):
                yield text[start : start + size]

        assert list(iterate(read_events(parts()))) == [("status", b"{}"), ("end", b'{"a": 1}')]


def test_a_coroutine_that_would_need_a_loop_is_a_mistake() -> None:
    import asyncio

    with pytest.raises(AssertionError):
        drive(asyncio.sleep(0))


def asked_to_pause(after: str) -> httpx2.Response:
    content = json.dumps({"error": {"code": "over_quota", "message": "too much"}}).encode()
    headers = [(b"retry-after", after.encode("latin-1"))]
    return httpx2.Response(429, content=content, headers=headers)


def test_a_stream_over_a_quota_is_opened_later_and_no_other_is_repeated() -> None:
    verified = {"pictures": 3, "left": 0, "generation": 0}
    answers = [
        reply(503, {"code": "unavailable", "message": "busy"}),
        httpx2.Response(200, text=json.dumps({"verified": verified}) + "\n"),
        asked_to_pause("3"),
    ]
    farm = farm_with(lambda _: answers.pop())
    wire = farm._connection.wire
    assert isinstance(wire, QuietWire)
    assert farm.job(JOB).verify().pictures == 3
    assert wire.slept == [3.0]
    with pytest.raises(Unavailable, match="busy"):
        farm.job(JOB).verify()
    assert wire.slept == [3.0]


@pytest.mark.parametrize("after", ["61", "999999999", "9" * 5000])
def test_a_farm_that_asks_for_a_very_long_pause_is_told_of_at_once(after: str) -> None:
    farm = farm_with(lambda _: asked_to_pause(after), patience=50)
    with pytest.raises(OverQuota):
        farm.submit("x")
    wire = farm._connection.wire
    assert isinstance(wire, QuietWire)
    assert wire.slept == []


@pytest.mark.parametrize("after", ["-1", "\u00b2", "soon", "", "Fri, 27 Nov 2026 09:00:00 GMT"])
def test_an_odd_pause_is_not_believed(after: str) -> None:
    answers = [asked_to_pause(after)]

    def handler(_: httpx2.Request) -> httpx2.Response:
        return answers.pop() if answers else reply(201)

    assert farm_with(handler).submit("x").id == JOB


def test_waiting_prints_a_line_only_when_something_has_changed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = [0] * 50 + [7] * 50 + [8] * 50

    def handler(_: httpx2.Request) -> httpx2.Response:
        images = {"total": 1000, "done": done.pop(0) if done else 1000}
        state = "running" if done else "done"
        return httpx2.Response(200, json={"id": JOB, "state": state, "images": images})

    farm_with(handler).job(JOB).wait(progress=True, check=False)
    assert capsys.readouterr().err.splitlines() == [f"{JOB} running 0/1000", f"{JOB} done 8/1000"]


def test_a_farm_with_tls_on_this_machine_counts_certificates_of_the_environment_but_no_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(InvalidInput, match="SSL_CERT_FILE"):
        Farm("https://127.0.0.1:1")
    with Farm("http://127.0.0.1:1"):  # nothing to trust
        pass
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "missing.pem"))
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with Farm("https://127.0.0.1:1", patience=0) as farm, pytest.raises(Unavailable):
            list(farm.jobs())
        with pytest.raises(BlockingIOError):
            proxy.accept()
