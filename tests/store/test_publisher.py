"""The publisher's real process: what it stores, and that nothing is lost or doubled."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from fake_engine import INFO
from picture_key import picture_key
from s3_servers import Answer, StubS3

from farm.errors import Conflict, RenderError, StoreError
from farm.formats.encoding import encode
from farm.formats.manifest import read_part
from farm.formats.picture_file import read_facts, token_bytes
from farm.formats.picture_record import PictureRecord
from farm.job import Format, Lease, Priority, Receipt
from farm.sinks.protocol import TaskPlace
from farm.spec import RenderRequest
from farm.store import Store, keys, open_store
from farm_workers.leased_task import LeasedTask
from farm_workers.publisher import pipe, process, publisher, uploads
from farm_workers.publisher.messages import Alive, Begin, NotStored, Ready
from farm_workers.publisher.pipe import ProcessPipe
from farm_workers.publisher.process import PublisherProcess
from farm_workers.publisher.publisher import Event, Publisher
from farm_workers.publisher.uploads import UploadQueue, picture_upload

JOB = "j0-01arz3ndektsv4rrffq69g5fav"


def place(number: int = 0, file_format: Format = Format.PNG, sink: str = "images") -> TaskPlace:
    data, part = keys.data(JOB, 0), keys.part(JOB, 0, number)
    return TaskPlace(sink, JOB, 0, number, file_format, data, part)


PLACE = place()
PART = keys.part(JOB, 0, 0)


def encode_picture(record: PictureRecord, pixels: np.ndarray, tokens: np.ndarray) -> bytes:
    return encode(pixels, record.facts(tokens), record.format)


class Bench:
    """A publisher under test, and pictures to give it."""

    def __init__(self, publisher: Publisher, store: Store) -> None:
        self.publisher = publisher
        self.store = store
        self.tasks: dict[str, LeasedTask] = {}

    def record(self, render: int, **changes: object) -> PictureRecord:
        request = RenderRequest(prompt=f"bicycle {render}", seed=render, width=48)
        spec = request.resolve(INFO, seed=0)
        record = PictureRecord(JOB, 0, render, 0, spec, "class-a", Format.PNG, ("a note",))
        return record._replace(**changes)  # type: ignore[arg-type]

    def arrays(self, render: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(render)
        pixels = random.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        return pixels, random.integers(0, 8192, (4, 6), dtype=np.int64)

    def key(self, render: int) -> str:
        return picture_key(JOB, 0, render, 0, Format.PNG)

    def task(
        self,
        name: str = "task",
        *,
        pictures: int = 1000,
        place: TaskPlace = PLACE,
        priority: Priority = Priority.NORMAL,
    ) -> LeasedTask:
        """A new lease; from now on the one of that name."""
        lease = Lease(
            job=JOB, generation=0, number=place.number, attempt=1, lane="a lane",
            pictures=pictures, cost=0, priority=priority, alone=False, inline="",
        )  # fmt: skip
        task = self.tasks[name] = LeasedTask(lease)
        task.place = place
        return task

    def picture(self, render: int, task: str = "task") -> None:
        pixels, tokens = self.arrays(render)
        leased = self.tasks.get(task) or self.task(task)
        self.publisher.picture(leased, self.record(render), pixels, tokens)

    def wait(self, kind: str = "finished", seconds: float = 20.0) -> list[Event]:
        """Every event up to the first of that kind."""
        seen: list[Event] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen += self.publisher.poll(0.1)
            if any(event.kind == kind for event in seen):
                return seen
        raise AssertionError(f"no {kind} event in {seen}")

    def receipt(self) -> Receipt:
        receipt = self.wait()[-1].receipt
        assert receipt is not None
        return receipt

    def kill(self) -> None:
        pid = self.publisher.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def rows(self) -> dict[int, tuple[str | None, str | None]]:
        rows = read_part(self.store.get(PART))
        return {row.render: (row.sha256, row.tokens_sha256) for row in rows}


@pytest.fixture
def open_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    opened: list[Publisher] = []

    def make(url: str = str(tmp_path / "store"), **options: object) -> Bench:
        opened.append(Publisher(url, **options))  # type: ignore[arg-type]
        return Bench(opened[-1], open_store(url))

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    return open_bench()


def test_a_task_is_stored_with_its_manifest(bench: Bench) -> None:
    task = bench.task(pictures=6)
    for render in range(5):
        bench.picture(render)
    failed = bench.record(5)
    bench.publisher.failed_picture(task, failed, RenderError("not finite", hint="try again"))
    events = bench.wait()
    assert [event.kind for event in events] == ["picture"] * 5 + ["finished"]
    assert (task.handed_over, task.stored, task.failed) == (6, 5, 1)
    receipt = events[-1].receipt
    assert receipt is not None
    part = bench.store.get(PART)
    files = [bench.store.get(bench.key(render)) for render in range(5)]
    assert receipt == Receipt(
        done=5, failed=1, size=sum(map(len, files)), part=PART,
        part_sha256=hashlib.sha256(part).hexdigest(), numerics="class-a",
    )  # fmt: skip
    rows = read_part(part)
    assert [row.render for row in rows] == list(range(6))
    for row, data in zip(rows[:5], files, strict=True):
        pixels, tokens = bench.arrays(row.render)
        assert data == encode_picture(bench.record(row.render), pixels, tokens)
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert row.tokens == token_bytes(tokens)
        assert row.tokens_sha256 == hashlib.sha256(token_bytes(tokens)).hexdigest()
        assert (row.file, row.notes) == (bench.key(row.render), ("a note",))
        assert read_facts(data).spec == bench.record(row.render).spec
    assert rows[5].file is None
    assert isinstance(rows[5].failure, RenderError)


def test_the_manifest_waits_for_the_last_picture(bench: Bench) -> None:
    bench.task(pictures=2)
    bench.picture(0)
    assert [event.kind for event in bench.wait("picture")] == ["picture"]
    assert bench.store.size(PART) is None
    bench.picture(1)
    assert bench.receipt().done == 2


def test_tasks_do_not_mix(bench: Bench) -> None:
    for number in range(2):
        bench.task(f"task-{number}", pictures=3, place=place(number))
    for render in range(6):
        bench.picture(render, task=f"task-{render % 2}")
    finished = 0
    while finished < 2:
        finished += sum(event.kind == "finished" for event in bench.wait())
    for number in range(2):
        rows = read_part(bench.store.get(keys.part(JOB, 0, number)))
        assert [row.render % 2 for row in rows] == [number] * 3


@pytest.mark.parametrize("kind", list(Format))
def test_every_format_is_stored(bench: Bench, kind: Format) -> None:
    pixels, tokens = bench.arrays(0)
    key = picture_key(JOB, 0, 0, 0, kind)
    record = bench.record(0, format=kind)
    shown = None if kind is Format.TOKENS else pixels
    task = bench.task(pictures=1, place=place(0, kind))
    bench.publisher.picture(task, record, shown, tokens)
    bench.receipt()
    assert (read_facts(bench.store.get(key)).tokens == tokens).all()


def test_a_killed_process_loses_and_doubles_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it count as one that did not start, or what it had as still on its way."""
    monkeypatch.setattr(publisher, "MAX_FAILED_STARTS", 1)
    monkeypatch.setattr(uploads, "SENT_BYTES", 5 * 32 * 48 * 3)
    bench.task(pictures=40)
    pictures = 0
    for kills in range(2):
        for render in range(20 * kills, 20 * kills + 20):
            bench.picture(render)
        pictures += len(bench.wait("picture"))
        bench.kill()
    events = bench.wait()
    assert pictures + [event.kind for event in events].count("picture") == 40
    assert bench.publisher.pending_bytes == 0
    assert sorted(bench.rows()) == list(range(40))
    stored = [entry.key for entry in bench.store.list(f"{keys.prefix(JOB)}data/")]
    assert stored == [bench.key(render) for render in range(40)]


def test_work_on_which_the_process_dies_again_and_again_is_given_up(bench: Bench) -> None:
    bench.task("other", pictures=3)
    bench.publisher.lease_until(bench.task(), time.monotonic())  # held back until every death
    bench.picture(0)
    for deaths in range(3):
        bench.picture(deaths + 1, task="other")  # stored: the process is up and has both
        bench.wait("picture")
        bench.kill()
    failed = bench.wait("failed")[-1]
    assert failed.task is bench.tasks["task"]
    assert isinstance(failed.error, StoreError)
    assert "died 3 times" in failed.error.message
    assert bench.receipt().done == 3


def test_what_the_process_may_have_died_of_is_sent_to_the_next_one_alone(bench: Bench) -> None:
    """Work without pixels is done and answered together, so its neighbours would be blamed."""
    queue, task = UploadQueue(), bench.task()
    for number in range(6):
        record, tokens = bench.record(number), bench.arrays(number)[1]
        queue.add(picture_upload(number, task, record, None, tokens))
    assert len(queue.next()) == 6
    queue.count_death(threads=4)
    queue.send_again([])
    assert [len(queue.next()) for _ in range(7)] == [1] * 6 + [0]


def test_a_process_that_does_not_start_fails_what_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.picture(0)
    bench.wait("picture")
    monkeypatch.setattr(publisher, "MAX_FAILED_STARTS", 2)
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    bench.kill()
    bench.picture(1)
    assert "does not start" in str(bench.wait("failed")[-1].error)
    monkeypatch.delenv("PYTHONHOME")
    bench.picture(2, task="other")
    bench.wait("picture")


def test_a_process_that_did_not_start_for_hours_is_started_in_the_end(
    open_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()
    failures = iter(range(1100))

    class EndedPipe:
        def receive(self) -> None:
            return None

        def kill(self) -> None:
            pass

    def start(begin: Begin) -> EndedPipe | ProcessPipe:
        if next(failures, None) is not None:
            return EndedPipe()
        started.set()
        return ProcessPipe(begin)

    monkeypatch.setattr(publisher, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(publisher, "ProcessPipe", start)
    bench = open_bench()
    assert started.wait(60)
    bench.picture(0)
    bench.wait("picture")


def test_an_object_that_exists_is_taken_over_with_its_own_facts(bench: Bench) -> None:
    """Another worker, of another numerics class, won the race for this picture."""
    pixels, tokens = bench.arrays(99)
    winner = encode_picture(bench.record(0, numerics="class-b"), pixels, tokens)
    bench.store.put(bench.key(0), winner)
    bench.task(pictures=2)
    bench.picture(0)
    bench.picture(1)
    receipt = bench.receipt()
    row = read_part(bench.store.get(PART))[0]
    assert bench.store.get(bench.key(0)) == winner
    assert (row.sha256, row.size) == (hashlib.sha256(winner).hexdigest(), len(winner))
    assert (row.tokens, row.numerics) == (token_bytes(tokens), "class-b")
    assert receipt.numerics == "class-a + class-b"


@pytest.mark.parametrize("other", ["another render", "another image", "not a picture"])
def test_an_object_of_something_else_fails_the_task(bench: Bench, other: str) -> None:
    pixels, tokens = bench.arrays(0)
    changes = {"spec": bench.record(7).spec} if other == "another render" else {"image": 1}
    stranger = encode_picture(bench.record(0, **changes), pixels, tokens)
    bench.store.put(bench.key(0), b"stranger" if other == "not a picture" else stranger)
    bench.picture(0)
    failed = bench.wait("failed")[-1]
    assert isinstance(failed.error, Conflict)
    assert bench.key(0) in failed.error.message


def test_a_part_that_exists_is_reported_as_it_is(bench: Bench) -> None:
    bench.task(pictures=1)
    bench.picture(0)
    first = bench.receipt()
    again = bench.task(pictures=1)
    bench.publisher.failed_picture(again, bench.record(0), RenderError("this one failed"))
    assert bench.receipt() == first


def test_two_workers_with_the_same_task_agree_on_what_is_stored(
    open_bench: Callable[..., Bench],
) -> None:
    """One of them lost its lease without knowing; their pictures differ by numerics class."""
    benches = [open_bench(), open_bench()]
    tasks = [bench.task(pictures=30) for bench in benches]
    for render in range(30):
        for number, bench in enumerate(benches):
            pixels, tokens = bench.arrays(render + 100 * number)
            record = bench.record(render, numerics=f"class-{number}")
            bench.publisher.picture(tasks[number], record, pixels, tokens)
    first, second = (bench.receipt() for bench in benches)
    assert first == second
    for row in read_part(benches[0].store.get(PART)):
        assert row.file is not None
        data = benches[0].store.get(row.file)
        facts = read_facts(data)
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert (row.numerics, row.tokens) == (facts.numerics, token_bytes(facts.tokens))


def test_a_store_that_fails_for_a_while_costs_only_time(
    open_bench: Callable[..., Bench], stub: StubS3
) -> None:
    stub.rule = lambda method, path: Answer(403, "AccessDenied")
    bench = open_bench(f"s3://bucket?endpoint_url={stub.address}")
    bench.task(pictures=3)
    for render in range(3):
        bench.picture(render)
    while len(stub.requests) < 9:
        assert bench.publisher.poll(0.05) == []
    stub.rule = lambda method, path: None
    assert bench.receipt().done == 3
    assert len(bench.rows()) == 3


def test_a_store_that_fails_for_good_fails_the_task(
    open_bench: Callable[..., Bench], stub: StubS3
) -> None:
    stub.rule = lambda method, path: Answer(403, "AccessDenied")
    bench = open_bench(f"s3://bucket?endpoint_url={stub.address}", patience_seconds=0.2)
    bench.picture(0)
    failed = bench.wait("failed")[-1]
    assert isinstance(failed.error, StoreError)
    assert "do not allow it" in failed.error.message
    assert failed.error.hint


def test_a_scratch_disk_that_fails_for_a_while_costs_only_time(
    open_bench: Callable[..., Bench], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.touch()  # no folder can be made there
    bench = open_bench(scratch=disk / "worker")
    bench.task(pictures=2, place=place(sink="webdataset"))
    bench.picture(0)
    said = ""
    while "cannot wait" not in said:
        assert bench.publisher.poll(0.05) == []
        said += capfd.readouterr().err
    disk.unlink()
    bench.picture(1)
    assert bench.receipt().done == 2


def test_a_lost_reply_does_not_double_a_picture(
    open_bench: Callable[..., Bench], stub: StubS3
) -> None:
    """The store has written the object, but the answer did not arrive."""
    bench = open_bench(f"s3://bucket?endpoint_url={stub.address}")
    lost: list[str] = []

    def rule(method: str, path: str) -> Answer | None:
        if method == "PUT" and not lost:
            lost.append(path)
            pixels, tokens = bench.arrays(0)
            stub.objects[path] = encode_picture(bench.record(0), pixels, tokens)
            return Answer(500, "InternalError")
        return None

    stub.rule = rule
    bench.task(pictures=1)
    bench.picture(0)
    assert bench.receipt().done == 1


def test_nothing_is_written_after_the_lease(bench: Bench) -> None:
    task = bench.task()
    bench.publisher.lease_until(task, time.monotonic() - 0.001)
    bench.picture(0)
    bench.picture(1, task="other")
    assert bench.wait("picture")[-1].task is bench.tasks["other"]
    assert bench.publisher.poll(0.3) == []
    assert bench.store.size(bench.key(0)) is None
    bench.publisher.lease_until(task, time.monotonic() + 60)
    assert bench.wait("picture")[-1].task is task
    assert bench.store.size(bench.key(0)) is not None


def test_a_new_process_knows_the_leases(bench: Bench) -> None:
    bench.publisher.lease_until(bench.task(), time.monotonic() - 0.001)
    bench.picture(0)
    bench.picture(1, task="other")
    bench.wait("picture")
    bench.kill()
    bench.picture(2, task="other")
    bench.wait("picture")
    assert bench.publisher.poll(0.3) == []
    assert bench.store.size(bench.key(0)) is None


def test_a_dropped_task_is_forgotten(bench: Bench) -> None:
    task = bench.task()
    bench.publisher.lease_until(task, time.monotonic() - 0.001)
    for render in range(4):
        bench.picture(render)
    assert bench.publisher.pending_bytes >= 4 * 32 * 48 * 3
    bench.publisher.drop(task)
    bench.publisher.drop(task)
    bench.publisher.lease_until(task, time.monotonic() + 60)
    bench.picture(4)  # the engine had it already
    assert bench.publisher.pending_bytes == 0
    bench.picture(9, task="other")
    assert [event.task for event in bench.wait("picture")] == [bench.tasks["other"]]
    assert bench.publisher.poll(0.3) == []
    assert [bench.store.size(bench.key(render)) for render in range(5)] == [None] * 5


def test_what_waits_for_its_lease_is_not_stored_when_its_task_is_dropped(bench: Bench) -> None:
    bench.publisher.lease_until(bench.task(), time.monotonic())
    bench.picture(0)
    bench.picture(1, task="other")  # when it is stored, the process has both
    bench.wait("picture")
    bench.publisher.drop(bench.tasks["task"])
    for render in range(2, 6):
        bench.picture(render, task="other")
        bench.wait("picture")
    assert bench.store.size(bench.key(0)) is None


def test_files_of_tokens_come_into_their_shard_without_pixels(bench: Bench) -> None:
    tokens = place(file_format=Format.TOKENS, sink="webdataset")
    task = bench.task(pictures=3, place=tokens)
    for render in range(3):
        record = bench.record(render, format=Format.TOKENS)
        bench.publisher.picture(task, record, None, bench.arrays(render)[1])
    assert bench.receipt().done == 3
    assert {sha256 is not None for sha256, _ in bench.rows().values()} == {True}


def test_a_new_process_removes_what_waits_of_a_dropped_task(
    open_bench: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = open_bench(scratch=tmp_path / "scratch")
    tasks = [bench.task(str(one), place=place(one, sink="webdataset")) for one in range(2)]
    for number in range(2):
        bench.picture(number, task=str(number))
    while sum(task.stored for task in tasks) < 2:
        bench.publisher.poll(0.05)
    waiting = tmp_path / "scratch" / "webdataset"
    assert len(list(waiting.iterdir())) == 2
    killed = bench.publisher.pid
    bench.kill()
    while bench.publisher.pid == killed:
        time.sleep(0.01)
    bench.publisher.drop(tasks[0])  # there is no process
    while bench.publisher.pid is None or list(waiting.glob("*.0")):
        assert bench.publisher.poll(0.05) == []
    bench.publisher.drop(tasks[1])  # there is one, which has never heard of it
    while list(waiting.iterdir()):
        assert bench.publisher.poll(0.05) == []


def test_urgent_pictures_do_not_wait_behind_the_others(
    open_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "SENT_BYTES", 1)  # so that one picture is on its way at a time
    bench = open_bench()
    for render in range(20):
        bench.picture(render)
    urgent = bench.task("now", pictures=1, place=place(1), priority=Priority.URGENT)
    bench.picture(20, task="now")
    events = bench.wait()
    assert events[-1].task is urgent
    assert len(events) < 10


def test_what_waits_longest_to_be_stored_says_for_how_long(bench: Bench) -> None:
    task, queue = bench.task(), uploads.UploadQueue()
    for number in range(2):
        queue.add(picture_upload(number, task, bench.record(number), *bench.arrays(number)))
    queue._pending[0].since -= 97
    assert queue.waited_seconds >= 97
    queue.answered(0)
    queue.answered(1)
    assert queue.waited_seconds == 0


def test_a_task_can_come_back_after_a_drop(bench: Bench) -> None:
    bench.publisher.lease_until(bench.task(), time.monotonic() - 0.001)
    bench.picture(0)
    bench.publisher.drop(bench.tasks["task"])
    bench.publisher.lease_until(bench.task(pictures=1), time.monotonic() + 60)
    bench.picture(1)
    assert bench.receipt().done == 1
    assert list(bench.rows()) == [1]


def test_the_end_of_a_job_is_written_once(bench: Bench) -> None:
    parts = [("b", "2"), ("a", "1")]
    bench.publisher.finalise(bench.task(), parts, {"done": 7})
    first = bench.receipt()
    assert json.loads(bench.store.get(keys.success(JOB))) == {
        "v": 1, "job": JOB, "generation": 0, "counts": {"done": 7, "parts": 2},
        "parts": [{"key": "a", "sha256": "1"}, {"key": "b", "sha256": "2"}],
    }  # fmt: skip
    bench.publisher.finalise(bench.task(), [("other", "3")], {})
    assert bench.receipt() == first


def test_the_process_ends_with_its_publisher(bench: Bench) -> None:
    bench.picture(0)
    bench.wait("picture")
    pid = bench.publisher.pid
    bench.publisher.close()
    assert pid is not None
    assert not _alive(pid)


def test_the_process_ends_with_its_worker(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from farm_workers.publisher.publisher import Publisher\n"
        "publisher = Publisher(sys.argv[1])\n"
        "while not publisher.pid: time.sleep(0.01)\n"
        "print(publisher.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    pid = int(worker.stdout.readline())
    assert _alive(pid)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has asked about yet."""
    shown = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip()[:1] not in {"", "Z"}


def test_a_bad_store_is_refused_at_once() -> None:
    with pytest.raises(Exception, match="no store for gs://"):
        Publisher("gs://bucket")


@contextlib.contextmanager
def serving(store_url: str, scratch: Path) -> Iterator[Connection]:
    """A publisher's process, in a thread: the worker's end of the connection to it."""
    ours, theirs = multiprocessing.Pipe()
    served = PublisherProcess(theirs, Begin(store_url, scratch, 1, 60.0))

    def serve() -> None:
        with contextlib.suppress(EOFError, OSError):  # its worker has gone
            served.run()

    threading.Thread(target=serve, daemon=True).start()
    with ours:
        yield ours


def test_a_process_that_has_nothing_to_do_says_that_it_lives(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ALIVE_SECONDS", 0.01)
    with serving(bench.store.url, tmp_path / "scratch") as ours:
        for told in (Ready(), Alive(), Alive(), Alive()):
            assert ours.poll(60)
            assert ours.recv() == [told]


def test_a_process_that_was_stopped_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.picture(0)
    bench.wait("picture")
    monkeypatch.setattr(pipe, "SILENT_SECONDS", 2)
    stopped = bench.publisher.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    bench.picture(1)
    bench.wait("picture", 60)
    assert bench.publisher.pid != stopped
    assert bench.store.size(bench.key(1)) is not None


def test_a_picture_for_which_memory_is_short_may_succeed_elsewhere(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no fault of the picture's, so its task must not fail for good."""

    def fail(*_: object) -> NoReturn:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(process, "encode", fail)
    pixels, tokens = bench.arrays(0)
    work = picture_upload(0, bench.task(), bench.record(0), pixels, tokens).work
    with serving(bench.store.url, tmp_path / "scratch") as ours:
        assert ours.recv() == [Ready()]
        ours.send([work])
        ours.send_bytes(pixels.data.cast("B"))
        [answer] = next(told for told in iter(ours.recv, None) if not isinstance(told[0], Alive))
    assert isinstance(answer, NotStored)
    assert answer.error["retryable"]
