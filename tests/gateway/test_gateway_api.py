"""Jobs, pictures and events over HTTP, from the first call to the last."""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any

import httpx2
import pytest
from fake_worker import BAD_PROMPT, LOST_PROMPT, FakeWorker
from harness import INFO, Gateway, Serve, ndjson, png, post, post_lines, until

from farm.errors import InvalidInput, StoreError
from farm.gateway.dependencies import STORE_CALLS
from farm.job import MAX_PIECE_LINES, JobOptions, job_id
from farm.queue import JobHeader
from farm.store import keys
from farm.store.protocol import STREAM_BYTES
from farm_client import Farm


def wait(http: httpx2.Client, job: str, *states: str) -> dict[str, Any]:
    for _ in range(600):
        status: dict[str, Any] = http.get(f"/v1/jobs/{job}").json()
        if status["state"] in (states or ("done", "failed", "cancelled")):
            return status
        time.sleep(0.02)
    raise AssertionError(status)


def all_images(http: httpx2.Client, job: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = "0"
    while True:
        page = http.get(f"/v1/jobs/{job}/images", params={"after": after, **query}).json()
        if not page["images"]:
            return found
        found += page["images"]
        after = page["next"]


def test_a_job_is_in_the_store_before_it_is_acknowledged(gateway: Gateway) -> None:
    with gateway.client() as http:
        told = post(http, {"prompt": "x", "num_images": 3}, name="mine").json()
    record = json.loads(gateway.store.get(keys.header(told["id"])))
    chunk = json.loads(gateway.store.get(keys.chunk(told["id"], 0)))
    assert (record["tenant"], record["options"]["name"]) == ("local", "mine")
    assert chunk["renders"]["prompts"] == ["x"]
    assert told["images"] == {
        "total": 3, "done": 0, "failed": 0, "expired": 0, "running_done": 0,
    }  # fmt: skip


def test_a_second_submission_with_a_key_leaves_no_files(gateway: Gateway) -> None:
    with gateway.client() as http:
        post(http, {"prompt": "only once"}, idempotency_key="k1")
        before = [entry.key for entry in gateway.store.list("") if "job" in entry.key]
        post(http, {"prompt": "only once"}, idempotency_key="k1")
        assert [entry.key for entry in gateway.store.list("") if "job" in entry.key] == before
        opened = http.post("/v1/jobs", params={"open": "true"}, json={"idempotency_key": "k1"})
        assert opened.status_code == 409
        assert [entry.key for entry in gateway.store.list("") if "job" in entry.key] == before


def test_pictures_come_with_addresses_that_need_no_key(
    http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    job = post(http, {"prompt": "a boat", "num_images": 3, "seed": 5}, format="png").json()["id"]
    wait(http, job)
    images = all_images(http, job)
    assert [(one["render"], one["image"], one["seed"]) for one in images] == [
        (0, 0, 5), (0, 1, 6), (0, 2, 7),
    ]  # fmt: skip
    for one in images:
        answer = http.get(one["url"])
        assert answer.headers["content-type"] == "image/png"
        assert hashlib.sha256(answer.content).hexdigest() == one["sha256"]
        assert one["spec"]["prompt"] == "a boat"


def test_failed_pictures_are_listed_with_their_reason(
    http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    told = post_lines(
        http,
        ndjson([{"prompt": "good"}, {"prompt": BAD_PROMPT}, {"prompt": LOST_PROMPT, "width": 32}]),
    ).json()
    status = wait(http, told["id"])
    assert status["state"] == "failed"
    images = sorted(all_images(http, told["id"]), key=lambda one: one["render"])
    assert [one["error"] is None for one in images] == [True, False, False]
    assert "drawn" in images[2]["error"]["message"]
    assert images[2]["spec"]["width"] == 32


def test_a_job_that_comes_by_pieces_can_be_sent_again_from_the_start(
    http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    bodies = [
        ndjson([{"prompt": f"{piece}-{line}"} for line in range(50)] + ["{"]) for piece in range(3)
    ]
    for attempt in range(2):
        told = http.post("/v1/jobs?open", json={"idempotency_key": "pieces", "seed": 3}).json()
        job = told["id"]
        assert told["created"] is (attempt == 0)
        for piece, body in enumerate(bodies):
            url = f"/v1/jobs/{job}/chunks/{piece}"
            answer = http.put(url, content=body, headers=headers, params={"first": 51 * piece})
            assert answer.status_code == 200, answer.text
            assert answer.json()["accepted"] == 50
            assert answer.json()["errors"][0]["render"] == 51 * piece + 50
        missing = http.post(f"/v1/jobs/{job}/close", params={"pieces": 4})
        assert missing.status_code == 409
        closed = http.post(f"/v1/jobs/{job}/close", params={"pieces": 3})
        assert closed.status_code == 200, closed.text
    other = http.put(
        f"/v1/jobs/{job}/chunks/0", content=bodies[1], headers=headers, params={"first": 0}
    )
    assert other.status_code == 409
    status = wait(http, job)
    assert (status["state"], status["images"]["done"], status["rejected"]) == ("done", 150, 3)
    renders = sorted(one["render"] for one in all_images(http, job))
    assert renders == [n for n in range(153) if n % 51 != 50]


def test_lines_that_come_again_when_their_job_has_ended_find_it(
    gateway: Gateway, http: httpx2.Client
) -> None:
    lines = [{"prompt": "x", "seed": seed} for seed in range(MAX_PIECE_LINES + 1)]
    first = post_lines(http, ndjson([*lines, "{"]), idempotency_key="lines").json()
    stopped = post_lines(http, ndjson([*lines, "{"]), idempotency_key="lines", on_error="stop")
    assert stopped.status_code == 422
    assert http.get(f"/v1/jobs/{first['id']}").json()["state"] == "queued", "it is whole"
    http.post(f"/v1/jobs/{first['id']}/cancel")
    stored = list(gateway.store.list(keys.prefix(first["id"])))
    again = post_lines(http, ndjson([*lines, "{"]), idempotency_key="lines")
    assert again.status_code == 200
    told = again.json()
    assert (told["id"], told["state"], told["created"]) == (first["id"], "cancelled", False)
    assert (told["accepted"], told["rejected"]) == (len(lines), 1)
    for others in ([*lines, *lines], [*lines[:-1], "{"], [*lines, "{", "{"], [*lines[::-1], "{"]):
        assert post_lines(http, ndjson(others), idempotency_key="lines").status_code == 409
    assert list(gateway.store.list(keys.prefix(first["id"]))) == stored


def test_what_is_sent_again_when_its_deadline_has_passed_finds_its_job(
    gateway: Gateway, http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "datetime":  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=2)

    deadline = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    line = {"prompt": "x"}
    bad = [line, {"prompt": ""}]

    def answers(name: str) -> Iterator[httpx2.Response]:
        given = {"deadline": deadline}
        yield post(http, *bad, **given, idempotency_key=f"{name} json")
        yield post_lines(http, ndjson(bad), **given, idempotency_key=f"{name} lines")
        long = ndjson([line] * (MAX_PIECE_LINES + 1))
        yield post_lines(http, long, **given, idempotency_key=f"{name} long")
        yield http.post("/v1/jobs?open", json={**given, "idempotency_key": f"{name} pieces"})

    def send() -> str:
        return farm.submit("x", deadline=deadline, idempotency_key="sdk").id

    with Farm(gateway.url) as farm:
        first, job = [answer.json() for answer in answers("first")], send()
        monkeypatch.setattr("farm.job.datetime", Later)
        again = list(answers("first"))
        assert {answer.status_code for answer in again} == {200}
        assert [answer.json() for answer in again] == [{**one, "created": False} for one in first]
        assert send() == job
        assert {answer.status_code for answer in answers("second")} == {422}
        other = post(http, line, deadline=deadline, idempotency_key="first json")
        assert other.status_code == 409
        with pytest.raises(InvalidInput, match="has passed"):
            farm.submit("x", deadline=deadline)


def test_calls_that_need_no_store_do_not_wait_with_those_that_do(
    start: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def silent(*_: object) -> None:
        answers.wait()
        raise StoreError("it does not answer")

    gateway = start()
    turns = gateway.app_deps.store_calls
    for call in ("put", "get", "list", "size"):
        monkeypatch.setattr(gateway.store, call, silent)
    with gateway.client() as http, ThreadPoolExecutor(60) as pool:
        calls = [partial(http.get, path) for path in ("/v1/adapters", "/page/new")]
        calls.append(partial(post, http, {"prompt": "x"}))
        waiting = [pool.submit(call) for call in calls * 20]
        try:
            until(lambda: turns.statistics().tasks_waiting == len(waiting) - STORE_CALLS)
            assert http.get("/v1/jobs").json()["jobs"] == []
        finally:
            answers.set()
        assert {one.result().status_code for one in waiting} == {503}


def test_lines_of_a_job_that_was_cancelled_half_way_are_told_so(http: httpx2.Client) -> None:
    lines = [{"prompt": "x", "seed": seed} for seed in range(2 * MAX_PIECE_LINES)]
    for sent in ([*lines[:-1], "{"], lines):
        answer = post_lines(http, ndjson(sent), idempotency_key="stopped", on_error="stop")
        assert not answer.is_success
    assert answer.json()["error"]["code"] == "job_cancelled"


def test_lines_that_are_all_refused_are_so_when_they_come_again(http: httpx2.Client) -> None:
    lines = ndjson([{"prompt": ""}] * (MAX_PIECE_LINES + 1))
    first, again = (post_lines(http, lines, idempotency_key="bad") for _ in range(2))
    assert first.status_code == again.status_code == 422
    assert first.json() == again.json()


def test_pieces_may_come_together_and_again_alone(http: httpx2.Client) -> None:
    def put(number: int, first: int, rows: list[dict[str, Any]]) -> httpx2.Response:
        return http.put(
            f"/v1/jobs/{job}/chunks/{number}",
            content=ndjson(rows),
            params={"first": first},
            headers={"Content-Type": "application/x-ndjson"},
        )

    job = http.post("/v1/jobs?open", json={"sink": "tokens", "seed": 1}).json()["id"]
    rows = [{"prompt": f"{line}"} for line in range(4005)]
    rows[3000] = {"prompt": ""}
    told = put(0, 0, rows).json()
    assert (told["pieces"], told["accepted"], told["rejected"]) == (3, 4004, 1)
    assert (told["errors"][0]["render"], told["errors"][0]["line"]) == (3000, 3001)
    for number, first in enumerate(range(0, 4005, 2000)):
        again = put(number, first, rows[first : first + 2000])
        assert again.status_code == 200, again.text
    assert put(1, 2000, rows[:2000]).status_code == 409
    assert put(3, 4005, rows * 3).status_code == 413
    assert http.post(f"/v1/jobs/{job}/close", params={"pieces": 3}).status_code == 200
    assert http.get(f"/v1/jobs/{job}").json()["images"]["total"] == 4004


def test_a_piece_with_too_many_tasks_says_how_many_lines_are_safe(http: httpx2.Client) -> None:
    job = http.post("/v1/jobs?open", json={}).json()["id"]
    heavy = ndjson([{"prompt": "x", "num_images": 64, "num_inference_steps": 100}] * 201)
    answer = http.put(
        f"/v1/jobs/{job}/chunks/0",
        content=heavy,
        params={"first": 0},
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["field"] == "piece"
    assert "200" in answer.json()["error"]["hint"]


def test_a_long_stream_becomes_one_job(http: httpx2.Client) -> None:
    def body() -> Any:
        for number in range(4100):
            yield json.dumps({"prompt": f"picture {number}", "num_inference_steps": 1}).encode()
            yield b"\n"

    headers = {"Content-Type": "application/x-ndjson"}
    answer = http.post(
        "/v1/jobs", content=body(), headers=headers, params={"name": "long", "seed": 1}
    )
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["accepted"], told["images"]["total"], told["name"]) == (4100, 4100, "long")


def test_many_heavy_renders_in_one_call_become_one_job(http: httpx2.Client) -> None:
    heavy = [{"prompt": "x", "num_images": 64, "num_inference_steps": 100}] * 201
    for _ in range(2):
        told = post_lines(http, ndjson(heavy), idempotency_key="heavy").json()
        assert (told["accepted"], told["tasks"]["total"]) == (201, 201)
    assert told["created"] is False


def test_a_stream_that_breaks_off_is_cancelled_unless_it_can_be_sent_again(
    gateway: Gateway, http: httpx2.Client
) -> None:
    def broken() -> Any:
        for _ in range(4500):
            yield b'{"prompt": "x"}\n'
        raise ConnectionError

    def listed(state: str) -> bool:
        return state in [job["state"] for job in http.get("/v1/jobs").json()["jobs"]]

    headers = {"Content-Type": "application/x-ndjson"}
    for key, state in (({}, "cancelled"), ({"idempotency_key": "again"}, "open")):
        with gateway.client() as other, contextlib.suppress(ConnectionError):
            other.post("/v1/jobs", content=broken(), headers=headers, params=key)
        until(partial(listed, state))
    whole = ndjson([{"prompt": "x"}] * 4500)
    told = http.post(
        "/v1/jobs", content=whole, headers=headers, params={"idempotency_key": "again"}
    ).json()
    assert (told["created"], told["images"]["total"]) == (False, 4500)


def test_events_begin_with_the_state_and_end_with_the_job(
    http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    job = post(http, {"prompt": "x", "num_images": 2}).json()["id"]
    names, states = [], []
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                names.append(line[7:])
            elif line.startswith("data: "):
                states.append(json.loads(line[6:])["state"])
    assert names[0] == "status"
    assert names[-1] == "end"
    assert states[-1] == "done"


def test_listeners_are_woken_by_the_one_reader_and_not_by_the_clock(
    http: httpx2.Client, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.gateway.events.POLL_SECONDS", 600.0)  # longer than http waits
    job = post(http, {"prompt": "x"}).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        lines = answer.iter_lines()
        assert '"queued"' in next(line for line in lines if line.startswith("data: "))
        gateway.queue.cancel(job, "local")
        assert '"cancelled"' in "".join(lines)


def test_jobs_are_paged_newest_first(http: httpx2.Client) -> None:
    made = [post(http, {"prompt": "x"}, name=str(n)).json()["id"] for n in range(5)]
    seen, before = [], None
    while True:
        query = {"limit": 2} | ({"before": before} if before else {})
        page = http.get("/v1/jobs", params=query).json()
        seen += [job["id"] for job in page["jobs"]]
        before = page["next"]
        if before is None:
            break
    assert seen == made[::-1]


def test_a_cancelled_job_stays_cancelled(http: httpx2.Client) -> None:
    job = post(http, {"prompt": "x"}).json()["id"]
    for _ in range(2):
        answer = http.post(f"/v1/jobs/{job}/cancel")
        assert answer.json()["state"] == "cancelled"


def test_an_asset_is_known_by_its_content(http: httpx2.Client) -> None:
    data = png(40, 24, "RGBA", (9, 9, 9, 0))
    first = http.put("/v1/assets", content=data)
    assert first.status_code == 201
    told = first.json()
    assert told["id"] == hashlib.sha256(data).hexdigest()
    assert (told["kind"], told["width"], told["height"]) == ("image", 40, 24)
    assert told["notes"]
    assert http.post("/v1/assets", content=data).json()["id"] == told["id"]
    assert http.get(f"/v1/assets/{told['id']}").json() == told
    mask = http.put("/v1/assets", content=png(8, 8, "RGB"), params={"kind": "mask"})
    assert mask.json()["notes"]
    wrong = http.put("/v1/assets", content=data, params={"kind": "latents"})
    assert wrong.status_code == 422


def test_a_picture_gives_a_render_its_size(http: httpx2.Client, gateway: Gateway) -> None:
    asset = http.put("/v1/assets", content=png(41, 24)).json()["id"]
    job = post(http, {"prompt": "x", "image": asset}).json()["id"]
    spec = json.loads(gateway.store.get(keys.chunk(job, 0)))["renders"]["specs"][0]
    assert (spec["mode"], spec["width"], spec["height"]) == ("img2img", 40, 24)


def test_ready_means_that_a_job_would_run(http: httpx2.Client, gateway: Gateway) -> None:
    assert http.get("/readyz").status_code == 503
    assert http.get("/readyz", params={"workers": 0}).status_code == 200
    told = http.get("/v1/checkpoints").json()["checkpoints"]
    assert (told[0]["id"], told[0]["default"]) == (INFO.id, True)
    fake_worker = FakeWorker(gateway.queue, gateway.store, INFO)
    fake_worker.start()
    try:
        assert http.get("/readyz").json() == {
            "ready": True, "queue": "ok", "store": "ok", "workers": 1,
        }  # fmt: skip
    finally:
        fake_worker.stop()


def test_a_monitor_may_ask_for_the_head_alone(http: httpx2.Client) -> None:
    for path, status in (("/healthz", 200), ("/readyz", 503), ("/readyz?workers=0", 200)):
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (status, b"")


def test_jobs_pictures_and_refused_renders_are_counted_and_what_is_sent_again_is_not(
    http: httpx2.Client,
) -> None:
    def counted() -> list[int]:
        found = dict(line.rsplit(" ", 1) for line in http.get("/metrics").text.splitlines())
        names = (
            'farm_jobs_total{kind="whole"}', 'farm_jobs_total{kind="open"}',
            "farm_pictures_total", "farm_rejected_total",
        )  # fmt: skip
        return [int(float(found.get(name, 0))) for name in names]

    before = counted()
    for _ in range(2):
        renders = {"prompt": "x", "num_images": 3}, {"prompt": ""}
        assert post(http, *renders, idempotency_key="whole", max_failed=1).is_success
        job = http.post("/v1/jobs?open&idempotency_key=open").json()["id"]
    lines = ndjson([{"prompt": "x", "num_images": 2}, {"prompt": ""}])
    headers = {"Content-Type": "application/x-ndjson"}
    path = f"/v1/jobs/{job}/chunks/0?first=0"
    for _ in range(2):
        answer = http.put(path, content=lines, headers=headers).json()
        assert (answer["pictures"], answer["rejected"]) == (2, 1)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 5, 2]


def test_metrics_count_by_route_and_not_by_path(http: httpx2.Client) -> None:
    post(http, {"prompt": "x"})
    http.get("/v1/jobs/j0-01m848b6zxgnjbpp0f506dqmht")
    text = http.get("/metrics").text
    assert 'route="/v1/jobs/{job}",status="404"' in text
    assert "j0-01m848b6zxgnjbpp0f506dqmht" not in text
    assert "farm_queue_up 1.0" in text


def test_the_documentation_names_every_address(http: httpx2.Client) -> None:
    assert http.get("/docs").status_code == 200
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/jobs", "/v1/jobs/{job}/chunks/{piece}", "/v1/assets", "/readyz"} <= paths.keys()


def test_a_farm_without_its_queue_says_so(start: Serve, gateway: Gateway) -> None:
    away = start(redis_url="unix:///nowhere/valkey.sock")
    with away.client() as http:
        answer = http.get("/v1/jobs")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["retryable"]
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 503


def test_invented_methods_do_not_become_labels(http: httpx2.Client) -> None:
    for number in range(50):
        assert http.request(f"INVENTED{number}", "/healthz").status_code == 405
        assert http.request(f"INVENTED{number}", f"/nothing/{number}").status_code == 404
    text = http.get("/metrics").text
    assert "INVENTED" not in text
    assert 'method="other",route="/healthz",status="405"} 50' in text


def test_a_page_may_be_longer_than_what_the_queue_gives_at_a_time(gateway: Gateway) -> None:
    for number in range(405):
        gateway.queue.open(JobHeader(job_id(number), "local", JobOptions(), str(number)))
    with gateway.client() as http:
        for limit in (199, 200, 201, 399, 400, 404, 405, 1000):
            seen, before = [], None
            while True:
                query = {"limit": limit} | ({"before": before} if before else {})
                page = http.get("/v1/jobs", params=query).json()
                seen += [job["id"] for job in page["jobs"]]
                before = page["next"]
                if before is None:
                    break
            assert len(seen) == len(set(seen)) == 405, limit
            assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    ("asked", "status", "got", "told"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=3-", 206, b"3456789", "bytes 3-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-2", 200, b"0123456789", None),
        ("bytes=0-1,4-5", 200, b"0123456789", None),
        ("lines=0-3", 200, b"0123456789", None),
        ("bytes=-", 200, b"0123456789", None),
        ("bytes=10-", 416, None, None),
        ("bytes=-0", 416, None, None),
    ],
)
def test_a_picture_is_sent_in_the_range_that_is_asked_for(
    http: httpx2.Client, gateway: Gateway, asked: str, status: int, got: bytes, told: str | None
) -> None:
    gateway.store.put("a/ten.png", b"0123456789")
    path = gateway.app_deps.signer.path("a/ten.png", seconds=60, filename="ten.png")
    answer = http.get(path, headers={"Range": asked})
    assert answer.status_code == status
    if got is not None:
        assert answer.content == got
        assert answer.headers.get("content-range") == told
        assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("size", [0, STREAM_BYTES, STREAM_BYTES + 1])
def test_objects_of_all_sizes_are_sent_whole(
    http: httpx2.Client, gateway: Gateway, size: int
) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    gateway.store.put(f"a/{size}.png", data[:size])
    path = gateway.app_deps.signer.path(f"a/{size}.png", seconds=60, filename="picture.png")
    answer = http.get(path)
    assert (answer.status_code, answer.content) == (200, data[:size])
    assert answer.headers["content-length"] == str(size)


def test_an_object_that_cannot_be_read_is_an_error_and_no_answer_that_breaks_off(
    http: httpx2.Client, gateway: Gateway
) -> None:
    gateway.store.put("a/folder.png/inside", b"")
    answer = http.get(gateway.app_deps.signer.path("a/folder.png", seconds=60, filename="x.png"))
    assert answer.status_code == 503
    assert "cannot read" in answer.json()["error"]["message"]


def test_the_head_of_a_picture_tells_its_length(http: httpx2.Client, gateway: Gateway) -> None:
    gateway.store.put("a/ten.png", b"0123456789")
    answer = http.head(gateway.app_deps.signer.path("a/ten.png", seconds=60, filename="ten.png"))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "10"
    assert answer.headers["content-type"] == "image/png"


@pytest.fixture
def own(start: Serve) -> Iterator[tuple[Gateway, httpx2.Client]]:
    """A gateway of the test's own: what it has found wrong is kept for a while."""
    gateway = start()
    with gateway.client() as client:
        yield gateway, client


def test_a_store_that_takes_no_files_is_not_ready_and_why_says_so(
    own: tuple[Gateway, httpx2.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, http = own
    job = post(http, {"prompt": "x"}).json()["id"]
    monkeypatch.setattr("farm.gateway.readiness.CHECK_SECONDS", 0)
    assert http.get("/readyz", params={"workers": 0}).status_code == 200
    assert http.get(f"/v1/jobs/{job}/why").json()["waits_for"] == "worker"

    def full(*_: object, **__: object) -> bool:
        raise StoreError("cannot write: No space left on device")

    monkeypatch.setattr(gateway.store, "put", full)
    told = http.get("/readyz", params={"workers": 0})
    assert told.status_code == 503
    assert "No space left" in told.json()["store"]
    assert http.get(f"/v1/jobs/{job}/why").json()["waits_for"] == "store"


def test_a_store_that_says_nothing_is_told_while_the_first_look_at_it_goes_on(
    own: tuple[Gateway, httpx2.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, http = own
    answered = threading.Event()
    monkeypatch.setattr("farm.gateway.readiness.PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(gateway.store, "put", lambda *_, **__: answered.wait())
    told = http.get("/readyz", params={"workers": 0})
    answered.set()
    assert told.status_code == 503
    assert "has not answered for" in told.json()["store"]


def test_a_queue_that_takes_no_writes_is_not_ready(
    own: tuple[Gateway, httpx2.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, http = own
    monkeypatch.setattr("farm.gateway.readiness.CHECK_SECONDS", 0)
    gateway.queue.client.config_set("maxmemory", "1mb")
    try:
        told = http.get("/readyz", params={"workers": 0})
    finally:
        gateway.queue.client.config_set("maxmemory", "0")
    assert told.status_code == 503
    assert "no memory" in told.json()["queue"]


def test_the_documentation_runs_nothing_and_loads_nothing(http: httpx2.Client) -> None:
    answer = http.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert not re.search(r"<script|src=|https?://|<link|@import", answer.text)
    for path in http.get("/openapi.json").json()["paths"]:
        assert f" {path}</code>" in answer.text
    assert http.get("/redoc").status_code == 404


def test_long_answers_are_compressed_and_streams_and_pictures_are_not(
    http: httpx2.Client, fake_worker: FakeWorker
) -> None:
    job = post(http, {"prompt": "a boat", "num_images": 64}).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job}/events") as events:
        assert "event: end" in events.read().decode()
    listed = http.get(f"/v1/jobs/{job}/images")
    picture = http.get(listed.json()["images"][0]["url"])
    verified = http.get(f"/v1/jobs/{job}/verify")
    for answer in (events, picture, verified, http.get("/v1/jobs")):
        assert "content-encoding" not in answer.headers
    assert int(picture.headers["content-length"]) == len(picture.content)
    assert listed.headers["content-encoding"] == "gzip"
    assert int(listed.headers["content-length"]) < len(listed.content) / 5
    plain = http.get(f"/v1/jobs/{job}/images", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert len(plain.json()["images"]) == 64
