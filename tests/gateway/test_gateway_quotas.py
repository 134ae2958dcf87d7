"""What one tenant may take of a farm."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NoReturn

import httpx2
import pytest
from fake_worker import FakeWorker
from harness import INFO, Gateway, Serve, emptied, ndjson, png, post, post_lines, until

from farm.errors import OverQuota, StoreError
from farm.gateway import quotas
from farm.gateway.quotas import QuotaLimits, Quotas


def test_requests_come_at_a_rate_and_in_bursts(gateway: Gateway) -> None:
    now = [0.0]
    limited = Quotas(gateway.queue, QuotaLimits(2, 1, 1, 1), lambda _: 0, lambda: now[0])
    for _ in range(20):
        limited.take_request("alice")
    with pytest.raises(OverQuota, match="2 requests a second"):
        limited.take_request("alice")
    limited.take_request("bob")
    now[0] += 1
    limited.take_request("alice")
    limited.take_request("alice")
    with pytest.raises(OverQuota):
        limited.take_request("alice")


def test_too_many_requests_are_told_when_to_come_again(start: Serve) -> None:
    with start(quota_requests=1).client() as http:
        answers = [http.get("/v1/jobs") for _ in range(14)]
    assert [answer.status_code for answer in answers][:10] == [200] * 10
    last = answers[-1]
    assert last.status_code == 429
    assert last.headers["retry-after"].isdigit()
    assert last.json()["error"]["code"] == "over_quota"
    assert last.json()["error"]["retryable"]


@pytest.fixture
def small(start: Serve) -> Gateway:
    return start(quota_pictures=100, quota_bytes=1000)


def test_pictures_that_wait_are_counted_however_they_come(small: Gateway) -> None:
    with small.client() as http:
        assert post(http, {"prompt": "x", "num_images": 60}).status_code == 201
        for answer in (
            post(http, {"prompt": "x", "num_images": 41}),
            post(http, {"prompt": "x", "num_images_per_prompt": 41}),
            post_lines(http, ndjson([{"prompt": "x"}] * 41)),
        ):
            assert answer.status_code == 429
            assert "60 pictures" in answer.json()["error"]["message"]
            assert "100" in answer.json()["error"]["message"]
        job = http.post("/v1/jobs?open").json()["id"]
        piece = http.put(
            f"/v1/jobs/{job}/chunks/0?first=0",
            content=ndjson([{"prompt": "x"}] * 41),
            headers={"Content-Type": "application/x-ndjson"},
        )
        assert piece.status_code == 429
        assert post(http, {"prompt": "x", "num_images": 40}).status_code == 201


def test_what_is_sent_again_asks_for_nothing_more(small: Gateway) -> None:
    keyed = {"idempotency_key": "k"}
    lines = ndjson([{"prompt": "x"}] * 30)
    ndjson_type = {"Content-Type": "application/x-ndjson"}
    with small.client() as http:

        def submit(count: int) -> httpx2.Response:
            return post(http, {"prompt": "x", "num_images": count}, **keyed)

        def put(number: int, body: bytes = lines) -> httpx2.Response:
            address = f"/v1/jobs/{opened}/chunks/{number}?first={30 * number}"
            return http.put(address, content=body, headers=ndjson_type)

        first = submit(40)
        whole = post_lines(http, lines, idempotency_key="lines")
        opened = http.post("/v1/jobs?open", headers={"Idempotency-Key": "pieces"}).json()["id"]
        assert put(0).status_code == 200
        for _ in range(3):
            assert submit(40).json() == {**first.json(), "created": False}
            again = post_lines(http, lines, idempotency_key="lines")
            assert (again.status_code, again.json()["id"]) == (200, whole.json()["id"])
            assert put(0).status_code == 200
        assert submit(41).status_code == 409
        assert put(0, lines + lines).status_code == 409
        assert put(1).status_code == 429
        assert post(http, {"prompt": "x"}).status_code == 429


def test_row_steps_that_wait_are_counted(start: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(quota_row_steps=1000).client() as http:
        first = post(http, {"prompt": "x", "num_images": 8, "num_inference_steps": 100})
        assert first.status_code == 201
        for render in (
            {"prompt": "x", "num_inference_steps": 201},
            {"prompt": "x", "num_images": 17},  # of 12 steps each
        ):
            refused = post(http, render)
            assert (refused.status_code, refused.headers["retry-after"].isdigit()) == (429, True)
            message = refused.json()["error"]["message"]
            assert "800 row-steps" in message
            assert "1,000" in message
        assert post(http, {"prompt": "x", "num_inference_steps": 100}).status_code == 201
        monkeypatch.setattr(quotas, "COUNT_SECONDS", 0)
        assert post(http, {"prompt": "x", "num_inference_steps": 101}).status_code == 429
        http.post(f"/v1/jobs/{first.json()['id']}/cancel")
        assert post(http, {"prompt": "x", "num_inference_steps": 101}).status_code == 201


def test_a_tenant_works_in_a_bounded_number_of_lanes(gateway: Gateway, http: httpx2.Client) -> None:
    sizes = [(8 * rows, 8 * columns) for rows in range(1, 36) for columns in range(1, 36)]
    before = len(list(gateway.store.list("")))
    answers = [
        post(
            http,
            *({"prompt": "x", "height": h, "width": w} for h, w in sizes[start : start + 200]),
        )
        for start in range(0, 1200, 200)
    ]
    assert [answer.status_code for answer in answers] == [201] * 5 + [429]
    assert "1024" in answers[-1].json()["error"]["message"]
    assert len(list(gateway.store.list(""))) - before == 5 * 201, (
        "of what is refused nothing is kept"
    )


def test_pieces_of_a_job_that_is_done_ask_for_nothing_more(
    small: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue has forgotten by then that it had them."""
    monkeypatch.setattr(quotas, "COUNT_SECONDS", 0)
    worker = FakeWorker(small.queue, small.store, INFO)
    with small.client() as http:
        job = http.post("/v1/jobs?open").json()["id"]

        def put() -> httpx2.Response:
            return http.put(
                f"/v1/jobs/{job}/chunks/0?first=0",
                content=ndjson([{"prompt": "x"}] * 60),
                headers={"Content-Type": "application/x-ndjson"},
            )

        assert put().status_code == 200
        http.post(f"/v1/jobs/{job}/close?pieces=1")
        worker.start()
        until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "done")
        worker.stop()
        assert post(http, {"prompt": "x", "num_images": 41}).status_code == 201
        assert put().json()["accepted"] == 60


def test_pictures_that_are_made_or_cancelled_wait_no_longer(
    small: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "COUNT_SECONDS", 0)
    with small.client() as http:
        job = post(http, {"prompt": "x", "num_images": 64}).json()["id"]
        assert post(http, {"prompt": "x", "num_images": 64}).status_code == 429
        http.post(f"/v1/jobs/{job}/cancel")
        assert post(http, {"prompt": "x", "num_images": 64}).status_code == 201


def test_another_gateway_counts_what_came_to_this_one(small: Gateway, start: Serve) -> None:
    with small.client() as http, start(quota_pictures=100).client() as other:
        assert post(http, {"prompt": "x", "num_images": 64}).status_code == 201
        assert post(other, {"prompt": "x", "num_images": 64}).status_code == 429


def test_a_piece_that_is_sent_again_is_taken_by_a_gateway_with_a_smaller_quota(
    small: Gateway, start: Serve
) -> None:
    """As after a restart with other settings, between the piece and its lost answer."""
    with small.client() as http, start(quota_pictures=10).client() as stricter:
        job = http.post("/v1/jobs?open").json()["id"]

        def put(client: httpx2.Client, number: int) -> int:
            return client.put(
                f"/v1/jobs/{job}/chunks/{number}?first={60 * number}",
                content=ndjson([{"prompt": "x"}] * 60),
                headers={"Content-Type": "application/x-ndjson"},
            ).status_code

        assert put(http, 0) == 200
        assert put(stricter, 0) == 200
        assert put(stricter, 1) == 429


def test_the_bytes_of_files_are_counted_once(small: Gateway) -> None:
    pictures = [png(8, 8, colour=(number, 0, 0)) for number in range(40)]
    with small.client() as http:
        for _ in range(30):
            assert http.put("/v1/assets", content=pictures[0]).status_code == 201
        answers = [http.put("/v1/assets", content=data) for data in pictures]
        kept = [answer for answer in answers if answer.status_code == 201]
        assert sum(answer.json()["size"] for answer in kept) <= 1000
        refused = answers[-1]
        assert refused.status_code == 429
        assert "1,000" in refused.json()["error"]["message"]
        assert http.put("/v1/assets", content=pictures[0]).status_code == 201
        used = sum(answer.json()["size"] for answer in kept)
        assert small.app_deps.quotas.bytes_kept([]) == {"local": used}


def test_the_bytes_of_files_are_known_after_the_queue_was_lost(small: Gateway) -> None:
    pictures = [png(8, 8, colour=(number, 0, 0)) for number in range(40)]
    quotas = small.app_deps.quotas
    with small.client() as http:
        before = [http.put("/v1/assets", content=data).status_code for data in pictures]
        kept = quotas.bytes_kept([])
        emptied(small)
        assert quotas.bytes_kept([]) == {}
        after = [http.put("/v1/assets", content=data).status_code for data in pictures]
    assert before == after
    assert 429 in after
    assert quotas.bytes_kept([]) == kept
    emptied(small)
    assert quotas.bytes_kept(["local", "ann"]) == {**kept, "ann": 0}


def test_files_that_come_together_after_the_queue_was_lost_are_counted_once(
    gateway: Gateway,
) -> None:
    counts, together = [], threading.Barrier(2)

    def count(tenant: str) -> int:
        counts.append(tenant)
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)
        return 5

    limited = Quotas(gateway.queue, QuotaLimits(1, 1, 1, 100), count)
    with ThreadPoolExecutor(2) as pool:
        for taken in [pool.submit(limited.take_bytes, "ann", 10) for _ in range(2)]:
            taken.result()
    assert counts == ["ann"]
    assert limited.bytes_kept([])["ann"] == 25


def test_what_tenants_use_is_shown_while_the_store_is_away(
    small: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(prefix: str) -> NoReturn:
        raise StoreError(f"cannot list {prefix}")

    with small.client() as http:
        post(http, {"prompt": "x"})
        monkeypatch.setattr(small.store, "list", away)
        shown = http.get("/page/tenants")
    assert shown.status_code == 200
    assert "local" in shown.text


def test_what_is_refused_takes_nothing(small: Gateway, http: httpx2.Client) -> None:
    with small.client() as limited:
        for _ in range(30):
            assert limited.put("/v1/assets", content=b"<svg>" + b" " * 100).status_code == 422
        assert limited.put("/v1/assets", content=png(8, 8)).status_code == 201
