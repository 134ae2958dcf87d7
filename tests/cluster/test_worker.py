"""The worker against a real queue, a real store and its real publisher process."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fake_engine import BAD_PROMPT, INFO, FakeEngine
from waiting import until as until

from farm import stored_record
from farm.checkpoints.inspect import Checkpoint
from farm.errors import InvalidInput, StoreError
from farm.formats.manifest import ManifestRow, merge, read_part
from farm.formats.picture_file import read_facts
from farm.job import Chunk, JobOptions, JobState, Lease, Priority, Receipt, TaskDraft, job_id
from farm.queue import JobHeader, Queue, connect, previews
from farm.renders import NumberedSpec, Renders
from farm.scheduler.scheduler import Scheduler
from farm.spec import Lane, Mode, RenderRequest
from farm.store import Store, keys, open_store
from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.publisher import uploads
from farm_workers.publisher.publisher import Event, Publisher
from farm_workers.worker import engine_loop, queue_session
from farm_workers.worker import worker as worker_module
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.settings import WorkerSettings
from farm_workers.worker.worker import Worker

TENANT = "local"


class Farm:
    """A queue, a store and as many workers as a test starts."""

    def __init__(self, redis_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue = Queue(connect(redis_url))
        self.queue.client.flushall()
        self.store: Store = open_store(str(folder))
        self.settings = WorkerSettings(
            redis_url=redis_url, store=str(folder), checkpoints=("fake",), lease_ms=2000
        )
        monkeypatch.setattr(
            worker_module, "inspect_checkpoint", lambda _: Checkpoint(path=folder, info=INFO)
        )
        self.workers: list[tuple[Worker, FakeEngine, threading.Thread]] = []

    def start(self, name: str = "worker-0", engine: FakeEngine | None = None) -> FakeEngine:
        engine = engine or FakeEngine()
        worker = Worker(self.settings, name, load_engine=lambda *_: engine)
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        self.workers.append((worker, engine, thread))
        return engine

    def stop(self) -> None:
        for worker, engine, thread in self.workers:
            engine.gate.set()
            worker.stop()
            thread.join(20)
            assert not thread.is_alive()
        self.workers.clear()

    def submit(self, *prompts: str, inline: bool = True, **options: object) -> str:
        """One task with a render per prompt."""
        return self.submit_renders([{"prompt": one} for one in prompts], inline, **options)

    def submit_renders(
        self, renders: Sequence[Mapping[str, object]], inline: bool = True, **options: object
    ) -> str:
        job = job_id()
        specs = [
            RenderRequest.parse({"num_inference_steps": 3, **one}).resolve(INFO, seed=number)
            for number, one in enumerate(renders)
        ]
        chosen = JobOptions.parse(options)
        chunk = Chunk(
            job=job,
            number=0,
            tenant=TENANT,
            sink=chosen.sink,
            format=chosen.format,
            lane=str(specs[0].lane),
            renders=Renders.of(NumberedSpec(number, spec) for number, spec in enumerate(specs)),
        )
        text = chunk.model_dump_json()
        self.store.put(keys.chunk(job, 0), text.encode())
        draft = TaskDraft(
            0, Lane.parse(chunk.lane), chunk.pictures, chunk.cost, text if inline else ""
        )
        self.queue.submit(JobHeader(job, TENANT, chosen, job), [draft])
        return job

    def state(self, job: str) -> JobState:
        return self.queue.status(job, TENANT).state

    def wait(self, job: str, state: JobState = JobState.DONE) -> None:
        until(lambda: self.state(job) is state)

    def rows(self, job: str) -> list[ManifestRow]:
        return [
            row
            for finished in self.queue.finished(job)
            for row in read_part(self.store.get(finished.receipt.part))
        ]


@pytest.fixture
def farm(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    farm = Farm(redis_url, tmp_path / "store", monkeypatch)
    yield farm
    farm.stop()


def test_a_worker_leases_for_itself_when_no_scheduler_answers(farm: Farm) -> None:
    farm.start()
    job = farm.submit("a", "b", "c")
    farm.wait(job)
    rows = farm.rows(job)
    assert [(row.render, row.error) for row in rows] == [(0, None), (1, None), (2, None)]
    assert read_facts(farm.store.get(rows[0].file or "")).spec.prompt == "a"


def test_a_scheduler_grants_at_once(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_session, "HUNGRY_SECONDS", 600)
    farm.start()
    until(lambda: any(session.room for session in farm.queue.sessions()))
    scheduler = Scheduler(farm.queue, lease_ms=2000)
    job = farm.submit("a")
    assert scheduler.step() == 1
    farm.wait(job)


def test_a_finished_job_is_marked_in_the_store(farm: Farm) -> None:
    farm.start()
    job = farm.submit("a", "b")
    farm.wait(job)
    success = json.loads(farm.store.get(keys.success(job)))
    (finished,) = farm.queue.finished(job)
    assert success["parts"] == [
        {"key": finished.receipt.part, "sha256": finished.receipt.part_sha256}
    ]
    assert success["counts"] == {"parts": 1, "done": 2, "failed": 0, "expired": 0}


def test_a_chunk_that_is_not_inline_is_read_from_the_store(farm: Farm) -> None:
    farm.start()
    job = farm.submit("a", inline=False)
    farm.wait(job)


def test_a_worker_that_is_older_than_a_chunk_hands_it_back_unharmed_and_ends(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = farm.submit("a")
    monkeypatch.setattr(stored_record, "STORE_SCHEMA", stored_record.STORE_SCHEMA - 1)
    farm.start()
    until(lambda: not farm.workers[0][2].is_alive())
    monkeypatch.setattr(stored_record, "STORE_SCHEMA", stored_record.STORE_SCHEMA + 1)
    farm.start()
    farm.wait(job)
    assert farm.queue.tallies().returned["infra"] == 0


@pytest.mark.parametrize(
    "options",
    [{"sink": "tokens"}, {"format": "tokens"}, {"sink": "webdataset", "format": "tokens"}],
)
def test_a_job_of_tokens_has_no_picture_drawn(farm: Farm, options: dict[str, object]) -> None:
    engine = farm.start()
    job = farm.submit("a", "b", **options)
    farm.wait(job)
    assert len(engine.rendered) == 2
    assert engine.drawn == 0
    farm.wait(farm.submit("a", "b"))
    assert engine.drawn == 2


def test_a_bad_row_fails_alone(farm: Farm) -> None:
    farm.start()
    job = farm.submit("a", BAD_PROMPT, "c", max_failed=1)
    farm.wait(job)
    errors = [row.failure for row in farm.rows(job)]
    assert errors[0] is None
    assert errors[2] is None
    assert "not finite" in str(errors[1])


def test_a_job_with_too_many_failed_pictures_has_failed(farm: Farm) -> None:
    farm.start()
    job = farm.submit("a", BAD_PROMPT)
    farm.wait(job, JobState.FAILED)


def test_a_retry_renders_the_failed_rows_only_and_keeps_the_others(farm: Farm) -> None:
    engine = farm.start()
    job = farm.submit("a", BAD_PROMPT, "c")
    farm.wait(job, JobState.FAILED)
    engine.rendered.clear()
    engine.healed = True
    assert farm.queue.retry(job, TENANT) == 1
    farm.wait(job)
    assert [render for (_, render), _ in engine.rendered] == [1]  # type: ignore[misc]
    images = farm.queue.status(job, TENANT).images
    assert (images.total, images.done, images.failed) == (3, 3, 0)
    merged = merge(farm.rows(job))
    assert [merged[render, 0].generation for render in range(3)] == [0, 1, 0]
    assert all(farm.store.size(row.file or "") == row.size for row in merged.values())
    assert farm.queue.check() == []
    success = json.loads(farm.store.get(keys.success(job, 1)))
    assert success["counts"] == {"parts": 2, "done": 3, "failed": 0, "expired": 0}


def test_a_retry_waits_for_a_store_that_does_not_answer_for_a_while(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = farm.start()
    job = farm.submit("a boat", BAD_PROMPT)
    farm.wait(job, JobState.FAILED)
    engine.healed = True
    store = farm.workers[0][0]._loader._store
    size, failures = store.size, [StoreError("it is away")] * 3

    def size_later(key: str) -> int | None:
        if failures:
            raise failures.pop()
        return size(key)

    monkeypatch.setattr(store, "size", size_later)
    farm.queue.retry(job, TENANT)
    farm.wait(job)
    assert not failures
    assert farm.queue.tallies().returned["infra"] == 0


def test_urgent_rows_enter_the_engine_before_older_bulk_rows(farm: Farm) -> None:
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    farm.start(engine=engine)
    bulk = farm.submit(*"abcdef", priority="bulk")
    until(lambda: not engine.idle)
    urgent = farm.submit("u", priority=Priority.URGENT)
    until(lambda: farm.queue.status(urgent, TENANT).tasks.leased == 1)
    until(lambda: not farm.workers[0][0]._engine_loop._loaded.empty())
    engine.gate.set()
    farm.wait(bulk)
    farm.wait(urgent)
    jobs = [str(key[0]).split("/")[0] for key, _ in engine.rendered]  # type: ignore[index]
    assert jobs.index(urgent) <= 2


def test_a_cancelled_job_leaves_the_engine(farm: Farm) -> None:
    engine = FakeEngine(rows=2)
    engine.gate.clear()
    farm.start(engine=engine)
    job = farm.submit(*"abcdefgh")
    until(lambda: not engine.idle)
    assert farm.queue.cancel(job, TENANT) is JobState.CANCELLED
    until(lambda: not farm.workers[0][0]._leases.tasks)
    engine.gate.set()
    until(lambda: engine.idle)
    assert engine.cancelled
    assert len(engine.rendered) <= 4
    assert farm.state(job) is JobState.CANCELLED


def test_a_task_that_is_done_when_its_job_is_cancelled_is_listed(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker hears of the cancellation before it hears of the task's end."""
    monkeypatch.setattr(queue_session, "HEARTBEAT_SECONDS", 0.05)
    told, poll = threading.Event(), Publisher.poll

    def late(publisher: Publisher, timeout: float) -> list[Event]:
        events = poll(publisher, timeout)
        if any(event.kind == "finished" for event in events):
            told.wait(20)
        return events

    monkeypatch.setattr(Publisher, "poll", late)
    farm.start()
    job = farm.submit("a")
    leases = farm.workers[0][0]._leases
    until(lambda: any(task.closed for task in leases.tasks.values()))
    assert farm.queue.cancel(job, TENANT) is JobState.CANCELLED
    beat = farm.queue.sessions()[0].stats["beat"]
    until(lambda: farm.queue.sessions()[0].stats["beat"] >= beat + 3)
    told.set()
    until(lambda: not leases.tasks)
    assert farm.queue.status(job, TENANT).images.done == 1
    assert [row.render for row in farm.rows(job)] == [0]


def test_what_was_stored_of_a_task_when_its_job_is_cancelled_is_listed(farm: Farm) -> None:
    engine = FakeEngine(rows=1)
    engine.pause_after = 3
    farm.start(engine=engine)
    job = farm.submit(*"abcdefgh")
    leases = farm.workers[0][0]._leases
    until(lambda: [task.stored for task in leases.tasks.values()] == [3])
    farm.queue.cancel(job, TENANT)
    until(lambda: not leases.tasks)
    engine.gate.set()
    until(lambda: engine.idle)
    assert farm.queue.status(job, TENANT).images.done == 3
    assert [row.render for row in farm.rows(job)] == [0, 1, 2]


def test_progress_counts_pictures_inside_a_task(farm: Farm) -> None:
    engine = farm.start(engine=FakeEngine(rows=1, step_seconds=0.2))
    job = farm.submit(*(str(number) for number in range(60)))
    until(lambda: 0 < farm.queue.status(job, TENANT).images.running_done < 60)
    engine.step_seconds = 0
    farm.wait(job)
    images = farm.queue.status(job, TENANT).images
    assert (images.done, images.running_done) == (60, 0)


def test_a_stopped_worker_hands_its_tasks_back(farm: Farm) -> None:
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    farm.start(engine=engine)
    job = farm.submit("a", "b")
    until(lambda: not engine.idle)
    farm.workers[0][0].stop()
    engine.gate.set()
    until(lambda: not farm.queue.sessions())
    assert farm.queue.status(job, TENANT).tasks.leased == 0
    farm.workers.clear()
    farm.start("worker-1")
    farm.wait(job)


def test_a_beat_that_meets_the_workers_own_end_begins_nothing(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = threading.enumerate()
    farm.start()
    worker, _, thread = farm.workers[0]

    def controls() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "control" and one not in before]

    until(controls)
    [control] = controls()
    session = worker.session
    begun, ended, beat, end = threading.Event(), threading.Event(), Queue.heartbeat, Queue.end

    def late_beat(*arguments: Any) -> Any:
        begun.set()
        assert ended.wait(20)
        return beat(*arguments)

    def end_first(*arguments: Any) -> int:
        try:
            return end(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr(Queue, "heartbeat", late_beat)
    monkeypatch.setattr(Queue, "end", end_first)
    assert begun.wait(20)
    worker.stop()
    for one in (control, thread):
        one.join(20)
    farm.workers.clear()
    assert not thread.is_alive()
    assert worker.session == session
    assert "starting a new one" not in caplog.text


def test_a_worker_whose_session_was_ended_starts_another_and_stores_once(
    farm: Farm,
) -> None:
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    farm.start(engine=engine)
    job = farm.submit("a", "b", "c")
    until(lambda: not engine.idle)
    first = farm.workers[0][0].session
    farm.queue.end(first, "lost")
    engine.gate.set()
    until(lambda: farm.workers[0][0].session != first)
    farm.wait(job)
    assert len(list(farm.store.list(keys.prefix(job) + "data/"))) == 3


def test_a_killed_publisher_loses_no_picture(farm: Farm) -> None:
    engine = FakeEngine(rows=4)
    farm.start(engine=engine)
    publisher = farm.workers[0][0]._publisher
    until(lambda: publisher.pid)
    job = farm.submit(*(str(number) for number in range(40)))
    until(lambda: len(engine.rendered) > 10)
    pid = publisher.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    farm.wait(job)
    assert len(farm.rows(job)) == 40


def test_a_grant_whose_delivery_was_lost_is_found_again(farm: Farm) -> None:
    farm.start()
    session = farm.workers[0][0].session
    until(lambda: farm.queue.sessions())
    real = farm.workers[0][0]._queue_session._queue.inbox

    def deaf(session: str, seconds: float) -> list[Lease]:
        real(session, seconds)
        return []

    farm.workers[0][0]._queue_session._queue.inbox = deaf  # type: ignore[method-assign]
    job = farm.submit("a")
    farm.wait(job)
    assert farm.workers[0][0].session == session


def test_a_receipt_that_the_queue_refuses_harms_no_other_and_its_task_is_tried_again(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = farm.start()
    good, bad = farm.submit("a"), farm.submit("b")
    ended, complete_all = LeaseTable.ended.fget, Queue.complete_all
    refused = threading.Event()

    def both(leases: LeaseTable) -> list[tuple[LeasedTask, Outcome]]:
        assert ended is not None
        found: list[tuple[LeasedTask, Outcome]] = ended(leases)
        return found if len(found) == 2 or refused.is_set() else []

    def miscounted(queue: Queue, session: str, done: Sequence[tuple[Lease, Receipt]]) -> Any:
        if any(lease.job == bad and lease.attempt == 1 for lease, _ in done):
            refused.set()
            done = [
                (lease, receipt.model_copy(update={"done": 0}) if lease.job == bad else receipt)
                for lease, receipt in done
            ]
        return complete_all(queue, session, done)

    monkeypatch.setattr(LeaseTable, "ended", property(both))
    monkeypatch.setattr(Queue, "complete_all", miscounted)
    for job in (good, bad):
        farm.wait(job)
    assert refused.is_set()
    assert farm.queue.tallies().returned["infra"] == 1
    assert len(engine.rendered) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_a_thread_ends_the_worker_as_a_crash(farm: Farm) -> None:
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    farm.start(engine=engine)
    job = farm.submit("a")
    until(lambda: not engine.idle)
    worker, _, thread = farm.workers[0]

    def fail(_: float) -> list[object]:
        raise RuntimeError("a thread of the publisher has died")

    worker._publisher.poll = fail  # type: ignore[assignment,method-assign]
    engine.gate.set()
    thread.join(20)
    assert not thread.is_alive()
    farm.workers.clear()
    assert farm.queue.sessions() == []
    assert farm.queue.status(job, TENANT).tasks.leased == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_goes_wrong_with_previews_harms_no_task(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(*_: object) -> set[str]:
        failed.set()
        raise RuntimeError("planted")

    monkeypatch.setattr(previews, "asked", fail)
    farm.start()
    assert failed.wait(30)
    farm.wait(farm.submit("a"))
    assert farm.workers[0][2].is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_picture_that_crashes_its_worker_again_and_again_fails_its_job(farm: Farm) -> None:
    job = farm.submit("a")
    for life in range(3):  # the first in company, as far as the queue knows; then two alone
        engine = FakeEngine()
        engine.step = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        farm.start(f"worker-{life}", engine)
        _, _, thread = farm.workers.pop()
        until(lambda thread=thread: not thread.is_alive())  # type: ignore[misc]
    farm.start("healthy")  # it leaves the picture out, and finalises the job
    farm.wait(job, JobState.FAILED)
    (row,) = farm.rows(job)
    assert "crashed its worker twice" in str(row.failure)


def test_room_that_was_granted_and_is_free_again_is_told_at_once(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with the next heartbeat that is due."""
    monkeypatch.setattr("farm_workers.worker.queue_session.HEARTBEAT_SECONDS", 600.0)
    farm.settings = farm.settings.model_copy(update={"lease_ms": 300_000})
    farm.start(engine=FakeEngine(rows=1))  # three may be granted to it
    jobs = [farm.submit(str(number)) for number in range(12)]
    stopped = threading.Event()
    scheduler = Scheduler(Queue(connect(farm.settings.redis_url)), lease_ms=300_000)
    thread = threading.Thread(target=scheduler.run, args=[stopped])
    thread.start()
    try:
        for job in jobs:
            farm.wait(job)
    finally:
        stopped.set()
        thread.join()


def test_a_server_that_comes_back_empty_leaves_the_worker_at_work(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A thread that connects after the loss is refused, and leaves the others its dead connection.
    monkeypatch.setattr("farm_workers.worker.previews.ASK_SECONDS", 600.0)
    engine = FakeEngine(rows=1)
    engine.gate.clear()
    farm.start(engine=engine)
    pool = farm.workers[0][0]._queue_session._queue.client.connection_pool
    for connection in [pool.get_connection() for _ in range(8)]:  # one for each thread
        pool.release(connection)
    farm.submit("lost with the server")
    until(lambda: not engine.idle)
    farm.queue.client.flushall()
    engine.gate.set()
    until(lambda: farm.queue.sessions())
    job = farm.submit("b")
    farm.wait(job)
    assert farm.workers[0][2].is_alive()


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/mine", "rack1/gpu0", "a\n", "x" * 101])
def test_a_name_that_would_be_a_path_is_refused(name: str, tmp_path: Path) -> None:
    settings = WorkerSettings(
        redis_url="redis://127.0.0.1:1", data=tmp_path, store=str(tmp_path), checkpoints=("fake",)
    )
    with pytest.raises(InvalidInput, match="cannot be the name of a worker"):
        Worker(settings, name)


@pytest.mark.parametrize("others", [Priority.BULK, Priority.URGENT])
def test_the_engines_wait_for_a_store_that_is_away_also_beside_an_urgent_picture(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Priority
) -> None:
    """What is drawn and not stored lies in memory; what is urgent may take as much again."""
    picture = 32 * 32 * 3 + uploads.RECORD_BYTES
    monkeypatch.setattr(engine_loop, "PENDING_BYTES", 10 * picture)
    monkeypatch.setattr(engine_loop, "URGENT_PENDING_BYTES", 20 * picture)
    jobs = [
        farm.submit("a boat", priority=Priority.URGENT),
        farm.submit(*map(str, range(300)), priority=others),
    ]
    store, away = tmp_path / "store", tmp_path / "away"
    store.rename(away)
    store.touch()
    engine = farm.start()
    until(lambda: len(engine.rendered) >= 10)
    time.sleep(1)  # enough to draw all of them
    limit = 10 if others is Priority.BULK else 20
    assert len(engine.rendered) <= limit + 2 * 8, "the limit, and what was in the engine"
    store.unlink()
    away.rename(store)
    for job in jobs:
        farm.wait(job)


def test_heartbeats_do_not_grow_with_every_size_that_was_ever_drawn(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of users have any size, and a worker lives for months."""
    monkeypatch.setattr(engine_loop, "PACED_LANES", 4)
    farm.start()
    sizes = [(8 * number, 16) for number in range(1, 10)]
    for some in (sizes[:-4], sizes[-4:]):
        renders = [{"prompt": "a dot", "height": height, "width": width} for height, width in some]
        for job in [farm.submit_renders([render]) for render in renders]:
            farm.wait(job)
    newest = {str(Lane(INFO.name, Mode.TEXT2IMG, *size)) for size in sizes[-4:]}
    until(lambda: farm.queue.sessions()[0].stats["row_steps"].keys() >= newest)
    stats = farm.queue.sessions()[0].stats
    assert stats["row_steps"].keys() == newest
    assert stats["paces"].keys() <= newest


def test_a_lane_that_is_worked_for_is_told_of_at_every_moment() -> None:
    """Heartbeats look from another thread: here between any two lines."""
    stand_in: Any = mock.MagicMock()
    loop = engine_loop.EngineLoop({}, {}, stand_in, stand_in, stand_in, stand_in)
    lanes = [Lane("a", Mode.TEXT2IMG, 8 * side, 8) for side in range(1, 4)]
    for lane in lanes:
        loop._pace(lane).pictures = 1
    told = []

    def look(*_: object) -> Any:
        told.append(set(loop.stats()["row_steps"]))
        return look

    for lane in lanes:
        sys.settrace(look)
        try:
            loop._pace(lane)
        finally:
            sys.settrace(None)
    assert told
    assert all(seen == set(map(str, lanes)) for seen in told)
