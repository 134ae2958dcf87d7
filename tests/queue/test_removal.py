"""Jobs that leave the farm: removed by their tenant, or when their time to be kept is over."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from queue_bench import Bench
from s3_servers import ministack

from farm.errors import Conflict, InvalidInput, NotFound, StoreError
from farm.ingest import removal
from farm.ingest.job_record import JobRecord
from farm.ingest.rebuild import rebuild
from farm.ingest.removal import Deleted, Remover
from farm.ingest.usage import usage_of
from farm.job import SETTLED_HOURS, JobOptions, JobState, job_id
from farm.local.valkey import ServerProcess
from farm.queue import Queue, Removal, connect
from farm.queue import queue as queue_module
from farm.scheduler import sweeper
from farm.store import Store, keys, open_store

OBJECTS = 12  # that a job has in the store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def complete(bench: Bench, failed: int = 0) -> None:
    """The one task there is, and the one that finalises its job."""
    session = bench.session()
    [lease] = bench.lease(session)
    bench.complete(session, lease, failed)
    [final] = bench.queue.held(session)
    bench.complete(session, final)


def ended(bench: Bench, **options: object) -> str:
    """A job that is done."""
    job = bench.submit(1, **options)
    complete(bench)
    assert bench.queue.status(job, "ann").state is JobState.DONE
    return job


def fill(store: Store, job: str) -> None:
    """What a job leaves in the store, by kind; the bytes are of no interest here."""
    record = JobRecord(
        job=job, tenant="ann", options={}, seed=1, sink="images", format="png",
        fingerprint="f" * 64, created_at=datetime.now(UTC), paces={}, whole=True,
    )  # fmt: skip
    store.put(keys.header(job), record.model_dump_json().encode())
    store.put(keys.chunk(job, 0), b"chunk")
    store.put(keys.part(job, 0, 0), b"part")
    store.put(keys.success(job), b"{}")
    for number in range(OBJECTS - 4):
        store.put(f"{keys.data(job, 0)}{number:08d}-00.png", b"picture")


def stored(store: Store, job: str) -> set[str]:
    return {one.key for one in store.list(keys.prefix(job))}


def test_a_removed_job_is_nowhere(bench: Bench, queue: Queue, store: Store, tmp_path: Path) -> None:
    job = ended(bench, idempotency_key="k")
    fill(store, job)
    assert list(Remover(queue, store).remove(job, "ann"))[-1].objects == OBJECTS
    with pytest.raises(NotFound):
        queue.status(job, "ann")
    assert stored(store, job) == set()
    assert not list((tmp_path / "store").glob(f"*/{job}")), "not even an empty folder"
    assert queue.removals() == []
    assert {key for key in queue.client.scan_iter() if job in key} == set()
    assert queue.submit(bench.header(idempotency_key="k"), bench.tasks(1)).created
    with pytest.raises(NotFound):
        Remover(queue, store).remove(job, "ann")


def test_a_removal_tells_after_every_block_what_has_gone(
    bench: Bench, queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "BLOCK", 5)
    job = ended(bench)
    fill(store, job)
    sizes = {one.key: one.size for one in store.list(keys.prefix(job))}
    told = list(Remover(queue, store).remove(job, "ann"))
    assert [one.objects for one in told] == [1, 6, 11, OBJECTS]
    assert told[0].bytes == sizes[keys.success(job)]
    assert told[-1].bytes == sum(sizes.values())


def test_a_job_that_has_not_ended_is_refused_with_a_hint(
    bench: Bench, queue: Queue, store: Store
) -> None:
    job = bench.submit(1)
    fill(store, job)
    with pytest.raises(Conflict, match="has not ended") as refused:
        Remover(queue, store).remove(job, "ann")
    assert f"farm cancel {job}" in str(refused.value.hint)
    assert len(stored(store, job)) == OBJECTS
    assert queue.status(job, "ann").state is JobState.QUEUED


def test_another_tenants_job_is_not_there(bench: Bench, queue: Queue, store: Store) -> None:
    job = ended(bench)
    fill(store, job)
    bench.submit(1, tenant="bob")
    for tenant in ("bob", "eve"):
        with pytest.raises(NotFound):
            Remover(queue, store).remove(job, tenant)
    assert len(stored(store, job)) == OBJECTS
    with pytest.raises(NotFound):  # whatever the store says
        queue.remove(job, "bob", stored=True)


def test_what_workers_still_store_of_a_cancelled_job_goes_as_well(
    bench: Bench, queue: Queue, store: Store
) -> None:
    job = bench.submit(1)
    fill(store, job)
    queue.cancel(job, "ann")
    assert queue.cancelled() == [job]
    remover = Remover(queue, store)
    list(remover.remove(job, "ann"))
    assert queue.cancelled() == [], "there is nothing left to note"
    assert stored(store, job) == {keys.removed(job)}
    store.put(f"{keys.data(job, 0)}late.png", b"late")
    assert remover.sweep() == 0, "its workers may store more"
    bench.advance(SETTLED_HOURS * 3600 + 1)
    assert remover.sweep() == 1
    assert stored(store, job) == set()
    assert remover.sweep() == 0


def test_a_job_that_the_queue_has_forgotten_is_removed_by_what_the_store_says(
    bench: Bench, queue: Queue, store: Store
) -> None:
    job = ended(bench)
    fill(store, job)
    bench.advance(31 * 86400)
    queue.tick()
    with pytest.raises(NotFound):
        Remover(queue, store).remove(job, "bob")
    assert list(Remover(queue, store).remove(job, "ann"))[-1].objects == OBJECTS
    assert stored(store, job) == set()


def test_the_mark_that_a_removal_left_at_its_very_end_goes_when_it_is_called_again(
    bench: Bench, queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ended(bench)
    fill(store, job)

    def die(self: Queue, removal: Removal) -> None:
        told(self, removal)
        raise KeyboardInterrupt

    told = Queue.removed
    monkeypatch.setattr(Queue, "removed", die)
    with pytest.raises(KeyboardInterrupt):
        list(Remover(queue, store).remove(job, "ann"))
    monkeypatch.undo()
    assert (stored(store, job), queue.removals()) == ({keys.removed(job)}, [])
    named = [one.name for one in usage_of(queue, store, "ann", everything=True) if one]
    assert job in named
    assert list(Remover(queue, store).remove(job, "ann"))[-1] == (0, 0)
    assert (stored(store, job), queue.removals()) == (set(), [])


def test_a_job_is_kept_for_as_long_as_it_says(bench: Bench, queue: Queue, store: Store) -> None:
    short, long = ended(bench, keep="1h"), ended(bench, keep="60d")
    fill(store, short)
    fill(store, long)
    remover = Remover(queue, store)
    bench.advance(3599)
    queue.tick()
    assert remover.sweep() == 0
    assert queue.status(short, "ann").keep == 3600
    bench.advance(2)
    queue.tick()
    with pytest.raises(NotFound):
        queue.status(short, "ann")
    assert remover.sweep() == 1
    assert stored(store, short) == set()
    bench.advance(40 * 86400)  # past the queue's own retention
    queue.tick()
    assert remover.sweep() == 0
    assert len(stored(store, long)) == OBJECTS
    bench.advance(20 * 86400)
    queue.tick()
    assert remover.sweep() == 1
    assert stored(store, long) == set()
    assert not queue.client.exists("{farm}:keeping", "{farm}:removals")


def test_a_cancelled_job_is_kept_until_its_workers_have_stored_the_last_of_it(
    bench: Bench, queue: Queue, store: Store
) -> None:
    job = bench.submit(1, keep="60s")
    fill(store, job)
    queue.cancel(job, "ann")
    bench.advance(61)
    queue.tick()
    with pytest.raises(NotFound):
        queue.status(job, "ann")
    assert Remover(queue, store).sweep() == 0
    store.put(f"{keys.data(job, 0)}late.png", b"late")
    bench.advance(SETTLED_HOURS * 3600)
    assert Remover(queue, store).sweep() == 1
    assert stored(store, job) == set()


def test_a_retry_starts_the_time_to_be_kept_again(bench: Bench, queue: Queue) -> None:
    job = bench.submit(1, keep="1h", max_failed=4)
    complete(bench, failed=1)
    bench.advance(3000)
    queue.retry(job, "ann")
    bench.advance(3000)
    queue.tick()
    assert queue.status(job, "ann").generation == 1


@pytest.mark.parametrize("text", ["30", "d", "1y", "59s", "-1d", "100000000d", "", "1d1h"])
def test_a_time_to_be_kept_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        JobOptions.parse({"keep": text})
    assert refused.value.field == "keep"


def test_a_scheduler_with_another_store_deletes_nothing_and_forgets_nothing(
    bench: Bench, queue: Queue, store: Store, tmp_path: Path
) -> None:
    job = ended(bench, keep="1h")
    fill(store, job)
    bench.advance(3601)
    queue.tick()
    assert Remover(queue, open_store(str(tmp_path / "other"))).sweep() == 0
    assert Remover(queue, store).sweep() == 1
    assert stored(store, job) == set()


def test_a_job_that_cannot_be_removed_keeps_none_of_the_others(
    bench: Bench, queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store may refuse to delete an object; and a bucket's own rule may have been faster."""
    monkeypatch.setattr(queue_module, "MAX_ROWS", 2)
    jobs = [ended(bench, keep=f"{number}h") for number in range(1, 6)]
    held, expired = jobs[0], jobs[1:3]
    for job in {*jobs} - {*expired}:
        fill(store, job)
    delete = type(store).delete

    def refuse(self: Store, key: str) -> None:
        if key.startswith(keys.prefix(held)):
            raise StoreError("the object is locked")
        delete(self, key)

    monkeypatch.setattr(type(store), "delete", refuse)
    bench.advance(6 * 3600)
    queue.tick()
    assert Remover(queue, store).sweep() == 2
    assert [stored(store, job) for job in jobs[3:]] == [set(), set()]
    assert len(stored(store, held)) == OBJECTS + 1, "and the mark"
    monkeypatch.setattr(type(store), "delete", delete)
    assert Remover(queue, store).sweep() == 1
    assert stored(store, held) == set()


def test_the_scheduler_deletes_what_an_interrupted_call_has_left(
    bench: Bench, queue: Queue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "PAUSE_SECONDS", 0.02)
    job = ended(bench)
    fill(store, job)
    Remover(queue, store).remove(job, "ann")  # and nothing asks it to go on
    assert len(stored(store, job)) == OBJECTS
    delete_many, failures = store.delete_many, [RuntimeError("can't start new thread")]

    def delete_many_later(keys: Sequence[str]) -> None:
        if failures:
            raise failures.pop()
        delete_many(keys)

    monkeypatch.setattr(store, "delete_many", delete_many_later)
    stopped = threading.Event()
    sweeper.Sweeper(queue, store).start(stopped)
    try:
        deadline = time.monotonic() + 60
        while queue.removals() or stored(store, job):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        stopped.set()


@pytest.mark.parametrize("keep", [0, 1, 7])
def test_a_list_of_jobs_goes_on_behind_a_job_that_was_removed_meanwhile(
    bench: Bench, queue: Queue, keep: int
) -> None:
    """Whoever removes what a list names does so page by page; three jobs share each millisecond."""
    made = []
    for number in range(230):
        header = bench.header()._replace(job=job_id(1_700_000_000 + number // 3 / 1000))
        made.append(queue.submit(header, bench.tasks(1)).job)
        queue.cancel(made[-1], "ann")
    seen, before = [], None
    while page := [status.id for status in queue.jobs("ann", 30, before)]:
        seen += page
        for place, job in enumerate(page):
            if keep == 0 or place % keep or place == len(page) - 1:
                queue.remove(job, "ann")
        before = page[-1]
    assert sorted(set(seen)) == sorted(made)
    assert len(seen) - len(made) <= 2 * len(made) / 30, "some of one millisecond may come again"


KILLED = """
import os, signal, sys
from botocore.httpsession import URLLib3Session
from farm.ingest.removal import Remover
from farm.queue import Queue, Removal, connect
from farm.store import local, open_store

redis, url, job, left = *sys.argv[1:4], int(sys.argv[4])

def deadly(call, deletes):
    def counted(self, given):
        global left
        if deletes(given):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return call(self, given)
    return counted

local.LocalStore.delete = deadly(local.LocalStore.delete, lambda key: True)
URLLib3Session.send = deadly(
    URLLib3Session.send, lambda asked: asked.method == "DELETE" or asked.url.endswith("?delete")
)
list(Remover(Queue(connect(redis)), open_store(url)).remove(job, "ann"))
"""


@pytest.fixture(params=["folder", "s3"])
def kills(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Sequence[int]]]:
    """The address of a store, and after how many deletes a removal is killed."""
    if request.param == "folder":
        yield str(tmp_path / "store"), random.Random(7).sample(range(OBJECTS + 1), 4)
        return
    # ministack takes its own environment's secret for the one that signs.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with ministack(tmp_path) as address:
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="farm")
        yield f"s3://farm/prefix?endpoint_url={address}", range(4)


def test_a_removal_that_was_killed_between_any_two_deletes_shows_nothing_whole_and_goes_on(
    bench: Bench, queue: Queue, kills: tuple[str, Sequence[int]], own: ServerProcess,
    server: ServerProcess,
) -> None:  # fmt: skip
    url, places = kills
    store = open_store(url)
    for round_, deletes in enumerate(places):
        job = ended(bench)
        fill(store, job)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, server.url, url, job, str(deletes)], timeout=120
        )
        assert killed.returncode == -9
        with pytest.raises(NotFound):
            queue.status(job, "ann")
        left = stored(store, job)
        assert keys.header(job) in left or left == {keys.removed(job)}
        assert keys.success(job) not in left or deletes == 0
        assert keys.removed(job) in left
        # Where the queue is lost as well, its successor does not bring the job back.
        successor = Queue(connect(own.url), farm=f"again-{round_}")
        assert sum(rebuild(successor, store).values()) == 0
        assert [one.job for one in successor.removals()] == [job]
        finished = Remover(queue, store)
        if round_ % 2:
            last = list(finished.remove(job, "ann"))[-1]
            assert isinstance(last, Deleted)
        else:
            assert finished.sweep() == 1
        assert stored(store, job) == set()
        assert queue.removals() == []
