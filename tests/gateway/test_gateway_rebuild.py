"""The queue's data are lost, and the store fills the queue again."""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import pytest
from fake_worker import BAD_PROMPT, LOST_PROMPT, FakeWorker
from harness import INFO, Gateway, Serve, ndjson, post, post_lines, until

from farm.errors import Conflict, JobFailed, StoreError, Unavailable
from farm.gateway.app import create_app
from farm.ingest.ndjson import Entries, Entry
from farm.ingest.rebuild import rebuild
from farm.job import MAX_PIECE_LINES, JobOptions, JobState
from farm.local.rebuild import rebuild_embedded
from farm.queue import JobStatus, Queue, connect, connection
from farm.settings import GatewaySettings
from farm.store import keys
from farm.stored_record import STORE_SCHEMA
from farm_client import Farm, Job


@pytest.fixture
def kept(start: Serve) -> Gateway:
    """A farm with a store of its own."""
    return start()


@pytest.fixture
def farm(kept: Gateway) -> Iterator[Farm]:
    with Farm(kept.url) as farm:
        yield farm


@pytest.fixture
def worker(kept: Gateway) -> Iterator[FakeWorker]:
    worker = FakeWorker(kept.queue, kept.store, INFO)
    yield worker
    worker.stop()


def lose(kept: Gateway) -> None:
    for key in kept.queue.client.scan_iter("{test}:*"):
        if key != "{test}:server":
            kept.queue.client.delete(key)


def ended(job: Job) -> None:
    with contextlib.suppress(JobFailed):
        job.wait(20)


def facts(status: JobStatus) -> dict[str, Any]:
    return status.model_dump(exclude={"started_at", "ended_at", "created_at", "reason"})


def snapshot(kept: Gateway) -> dict[str, dict[str, Any]]:
    return {status.id: facts(status) for status in kept.queue.jobs("local")}


def test_every_job_comes_back_with_its_state_and_its_counts(
    kept: Gateway, farm: Farm, worker: FakeWorker
) -> None:
    worker.start()
    done = farm.submit(["a boat", "a bird"], seed=1, name="é", num_images=2)
    failed = farm.submit(["a boat", BAD_PROMPT], seed=2)
    lost = farm.submit([LOST_PROMPT], seed=3)
    allowed = farm.submit(["a fish", BAD_PROMPT], seed=4, max_failed=1)
    retried = farm.submit([BAD_PROMPT, "a boat"], seed=5)
    for job in (done, failed, lost, allowed, retried):
        ended(job)
    worker.healed = True
    retried.retry()
    retried.wait(20)
    worker.stop()
    waiting = farm.submit(["a tree"], seed=6, priority="urgent", idempotency_key="tree")
    with kept.client() as http:
        cancelled = post(http, {"prompt": "a house"}, {"prompt": ""}).json()
        http.post(f"/v1/jobs/{cancelled['id']}/cancel")
    before = snapshot(kept)
    assert before[cancelled["id"]]["rejected"] == 1
    order = list(before)
    created = kept.queue.status(done.id, "local").created_at
    assert {str(one["state"]) for one in before.values()} == {
        "done", "failed", "queued", "cancelled",
    }  # fmt: skip

    lose(kept)
    assert snapshot(kept) == {}
    counts = rebuild(kept.queue, kept.store)
    assert (counts["done"], counts["failed"]) == (3, 2)
    assert (counts["queued"], counts["cancelled"], counts["unreadable"]) == (1, 1, 0)
    assert snapshot(kept) == before
    assert list(snapshot(kept)) == order
    later = kept.queue.status(done.id, "local").created_at
    assert abs((later - created).total_seconds()) < 5
    assert kept.queue.check(repair=False) == []
    assert rebuild(kept.queue, kept.store) == counts
    assert snapshot(kept) == before

    # And all of it works as before.
    assert (
        farm.submit(["a tree"], seed=6, priority="urgent", idempotency_key="tree").id == waiting.id
    )
    assert done.verify().differences == ()
    second = FakeWorker(kept.queue, kept.store, INFO)
    second.healed = True
    second.start()
    assert waiting.wait(20).images.done == 1
    failed.retry()
    assert (failed.wait(20).images.done, failed.verify().differences) == (2, ())
    lost.retry()
    assert lost.wait(20).images.done == 1
    second.stop()
    assert kept.queue.check(repair=False) == []


def test_a_job_that_came_by_pieces_comes_back_closed_or_open(kept: Gateway, farm: Farm) -> None:
    with kept.client() as http:
        headers = {"Content-Type": "application/x-ndjson"}

        def piece(job: str, number: int) -> httpx2.Response:
            body = ndjson([{"prompt": f"{number}-{line}"} for line in range(3)] + ["{"])
            return http.put(
                f"/v1/jobs/{job}/chunks/{number}", content=body, headers=headers,
                params={"first": 4 * number},
            )  # fmt: skip

        jobs = []
        for _ in range(2):
            opened = http.post(
                "/v1/jobs",
                params={"open": "true"},
                content=b"{}",
                headers={"Content-Type": "application/json"},
            )
            assert opened.status_code < 300, opened.text
            jobs.append(opened.json()["id"])
        whole, half = jobs
        for job in jobs:
            for number in range(2):
                assert piece(job, number).status_code < 300
        closed = http.post(f"/v1/jobs/{whole}/close", params={"pieces": 2})
        assert closed.status_code < 300, closed.text
        before = snapshot(kept)
        lose(kept)
        rebuild(kept.queue, kept.store)
        # What was refused of a job that is not whole is told again when its pieces come again.
        before[half]["rejected"] = 0
        assert snapshot(kept) == before
        # The client goes on where it was, or begins once more.
        assert piece(half, 1).status_code < 300
        assert piece(half, 2).status_code < 300
        assert http.post(f"/v1/jobs/{half}/close", params={"pieces": 3}).status_code < 300
        assert kept.queue.status(half, "local").images.total == 9
        assert kept.queue.check(repair=False) == []


def test_a_submission_of_many_small_shards_goes_on_after_the_loss(kept: Gateway) -> None:
    """A piece of its lines has more tasks than the queue takes in one call."""
    body = ndjson({"prompt": "x", "seed": seed} for seed in range(MAX_PIECE_LINES + 600))
    options = {"idempotency_key": "key", "sink": "webdataset", "shard_size": 2}
    with kept.client() as http:
        job = post_lines(http, body, **options).json()["id"]
        before = snapshot(kept)
        lose(kept)
        kept.store.delete(keys.closed(job))  # it was interrupted just before its end
        rebuild(kept.queue, kept.store)
        assert kept.queue.status(job, "local").state is JobState.OPEN
        assert post_lines(http, body, **options).json()["id"] == job
        assert snapshot(kept) == before
        lose(kept)
        rebuild(kept.queue, kept.store)  # this time it is whole
        assert post_lines(http, body, **options).json()["id"] == job
    assert snapshot(kept) == before
    assert kept.queue.check(repair=False) == []


def test_pieces_that_come_again_when_their_job_is_whole_find_it(kept: Gateway, farm: Farm) -> None:
    """The queue has forgotten what came in, as it does of jobs that have ended, too."""
    renders = [{"prompt": "x", "seed": seed} for seed in range(MAX_PIECE_LINES + 1)]
    first = farm.submit_many(renders, idempotency_key="whole")
    before = snapshot(kept)
    lose(kept)
    rebuild(kept.queue, kept.store)
    again = farm.submit_many(renders, idempotency_key="whole")
    assert (again.id, again.accepted, again.created) == (first.id, len(renders), False)
    others = (renders * 2, [*renders[:-1], renders[0]], [*renders, renders[0]], renders * 3)
    for other in others:
        with pytest.raises(Conflict):
            farm.submit_many(other, idempotency_key="whole")
    assert snapshot(kept) == before


def test_a_record_that_is_damaged_is_counted_and_stops_nothing(kept: Gateway, farm: Farm) -> None:
    with kept.client() as http:
        broken, whole = (post(http, {"prompt": name}).json()["id"] for name in ("a", "b"))
    kept.store.delete(keys.header(broken))
    kept.store.put(keys.header(broken), b"{")
    lose(kept)
    counts = rebuild(kept.queue, kept.store)
    assert (counts["unreadable"], counts["queued"]) == (1, 1)
    assert list(snapshot(kept)) == [whole]


@pytest.mark.parametrize("away", ["queue", "store", "object"])
def test_what_does_not_answer_is_not_taken_for_damage(
    kept: Gateway, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """Else its jobs would be left out of the new queue."""

    def fail(*_: object) -> NoReturn:
        raise StoreError("cannot read it")

    with kept.client() as http:
        post(http, {"prompt": "a"})
    queue = kept.queue
    if away == "queue":
        monkeypatch.setattr(connection, "RETRIES", 0)
        queue = Queue(connect(f"unix:///{kept.queue.farm}-is-not-there.sock"), farm="test")
    else:
        monkeypatch.setattr(kept.store, "get", fail)
    if away == "store":
        monkeypatch.setattr(kept.store, "size", fail)
    if away == "object":  # such as a part of a disk that cannot be read
        assert rebuild(queue, kept.store) == {"unreadable": 1}
    else:
        with pytest.raises(Unavailable):
            rebuild(queue, kept.store)


def test_a_queue_is_rebuilt_in_a_folder_whose_path_is_too_long_for_a_socket(
    kept: Gateway, tmp_path: Path
) -> None:
    with kept.client() as http:
        post(http, {"prompt": "a"})
    data = tmp_path / ("x" * 100)
    data.mkdir()
    counts, old = rebuild_embedded(data, kept.store, "test")
    assert (counts["queued"], old) == (1, None)
    assert (data / "valkey" / "appendonlydir").is_dir()


def test_a_store_of_a_newer_farm_is_not_rebuilt_by_an_older_one(kept: Gateway, farm: Farm) -> None:
    """Its jobs would be called damaged, and left out."""
    job = farm.submit("a boat")
    record = json.loads(kept.store.get(keys.header(job.id)))
    kept.store.delete(keys.header(job.id))
    kept.store.put(keys.header(job.id), json.dumps({**record, "v": STORE_SCHEMA + 1}).encode())
    lose(kept)
    with pytest.raises(Conflict, match="newer version of the farm"):
        rebuild(kept.queue, kept.store)


def test_a_job_that_was_left_open_stays_cancelled(kept: Gateway) -> None:
    """The queue ends it by itself; the gateway hears of it, and notes it in the store."""
    ingest = kept.app_deps.ingest
    record, _ = ingest.open("local", JobOptions())
    ingest.append(record, 0, 0, [Entries.of([Entry({"prompt": "a boat"})])])
    kept.queue.client.zadd(f"{{{kept.queue.farm}}}:opened", {record.job: 1})
    kept.queue.tick()
    until(lambda: kept.store.size(keys.cancelled(record.job)) is not None)
    lose(kept)
    assert rebuild(kept.queue, kept.store)["cancelled"] == 1
    assert kept.queue.status(record.job, "local").state is JobState.CANCELLED


def test_what_was_cancelled_while_no_gateway_listened_is_noted_by_the_next(
    redis_url: str, start: Serve, tmp_path: Path
) -> None:
    settings = {"data": tmp_path, "redis_url": redis_url, "name": "other", "open": True}
    unheard = create_app(GatewaySettings.model_validate(settings), infos=[INFO]).state.deps
    left_open, cancelled = (unheard.ingest.open("local", JobOptions())[0].job for _ in range(2))
    unheard.queue.client.zadd("{other}:opened", {left_open: 1})
    unheard.queue.tick()
    unheard.queue.cancel(cancelled, "local")
    assert sorted(unheard.queue.cancelled()) == sorted([left_open, cancelled])
    start(name="other")
    until(lambda: unheard.queue.cancelled() == [])
    for job in (left_open, cancelled):
        assert unheard.store.size(keys.cancelled(job)) is not None


def test_how_long_a_job_is_known_is_told_by_its_record(start: Serve) -> None:
    """Not by the environment of whoever rebuilds the queue."""
    kept = start(retention_days=2)
    with kept.client() as http:
        old, new, older_farm = (post(http, {"prompt": name}).json()["id"] for name in "abc")
    for job in (old, older_farm):
        record = json.loads(kept.store.get(keys.header(job)))
        assert record["retention_days"] == 2
        record["created_at"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
        if job == older_farm:
            del record["retention_days"]
        kept.store.delete(keys.header(job))
        kept.store.put(keys.header(job), json.dumps(record).encode())
        kept.store.put(keys.success(job, 0), b"{}")
    lose(kept)
    rebuild(kept.queue, kept.store)
    assert sorted(snapshot(kept)) == sorted([new, older_farm])
