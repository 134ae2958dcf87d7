"""Requests become tasks: cut alike every time, stored before the queue is told."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from farm.checkpoints.registry import CheckpointRegistry
from farm.errors import (
    AllRejected,
    Conflict,
    FarmError,
    InvalidInput,
    QueueFull,
    TooLarge,
    Unavailable,
)
from farm.ingest.assets import Assets
from farm.ingest.chunks import TaskLimits, split
from farm.ingest.ingest import Feed, Ingest
from farm.ingest.ndjson import Entries, Entry, parse_line
from farm.job import MAX_TASK_PICTURES, Chunk, Format, JobOptions, JobState, TaskDraft
from farm.queue import MAX_ROWS, JobHeader, Submitted
from farm.renders import NumberedSpec, Renders
from farm.spec import CheckpointInfo, Lane, Mode, RenderRequest
from farm.store import Store, keys, open_store

INFO = CheckpointInfo(
    id="owner/tiny", revision="1", pixel_factor=8, size_multiple=8, native_height=64,
    native_width=64, default_guidance=4.0, vocab_size=72, codebook_size=64, mask_token_id=71,
    text_tokens=77, pooled_dim=8, hidden_dim=8,
)  # fmt: skip
OTHER = INFO.model_copy(update={"id": "owner/other"})
OPTIONS = JobOptions(seed=1)


class FakeQueue:
    """Remembers what it was told, and what the store held at that moment."""

    def note_lanes(self, job: str, lanes: Any, most: int) -> bool:
        return True

    def __init__(self, store: Store) -> None:
        self.store = store
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}
        self.tasks: dict[str, list[TaskDraft]] = {}
        self.pieces: dict[str, dict[int, str]] = {}
        self.rejected: dict[str, int] = {}
        self.closed: dict[str, int] = {}
        self.cancelled: list[str] = []
        self.away: FarmError | None = None

    def open(self, header: JobHeader) -> Submitted:
        if self.away:
            raise self.away
        assert self.store.size(keys.header(header.job)) is not None
        if key := header.options.idempotency_key:
            job, fingerprint = self.keys.setdefault(
                (header.tenant, key), (header.job, header.fingerprint)
            )
            if fingerprint != header.fingerprint:
                raise Conflict("the key stands for other content")
            if job != header.job:
                return Submitted(job, False)
        self.tasks[header.job] = []
        self.pieces[header.job] = {}
        self.rejected[header.job] = 0
        return Submitted(header.job, True)

    def find_submitted(self, header: JobHeader) -> str | None:
        job, _ = self.keys.get((header.tenant, header.options.idempotency_key or ""), (None, None))
        return job

    def append(
        self, job: str, piece: int, sha256: str, tasks: Sequence[TaskDraft], rejected: int = 0
    ) -> bool:
        assert len(tasks) <= MAX_ROWS
        for task in tasks:
            assert self.store.size(keys.chunk(job, task.number)) is not None
        if self.pieces[job].setdefault(piece, sha256) != sha256:
            raise Conflict("other content")
        self.tasks[job] += tasks
        self.rejected[job] += rejected
        return True

    def close(self, job: str, pieces: int) -> None:
        assert set(self.pieces[job]) == set(range(pieces))
        self.closed[job] = pieces

    def submit(self, header: JobHeader, tasks: Sequence[TaskDraft], rejected: int = 0) -> Submitted:
        opened = self.open(header)
        if opened.created:
            self.append(opened.job, 0, "x", tasks, rejected)
            self.close(opened.job, 1)
        return opened

    def cancel(self, job: str, tenant: str) -> None:
        self.cancelled.append(job)

    def status(self, job: str, tenant: str) -> SimpleNamespace:
        state = JobState.QUEUED if job in self.closed else JobState.OPEN
        images = SimpleNamespace(total=0)
        return SimpleNamespace(id=job, state=state, rejected=self.rejected[job], images=images)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


@pytest.fixture
def queue(store: Store) -> FakeQueue:
    return FakeQueue(store)


def make(queue: FakeQueue, store: Store, paces: Mapping[str, float] | None = None) -> Ingest:
    registry = CheckpointRegistry([INFO, OTHER])
    return Ingest(queue, store, registry, Assets(store), lambda: paces or {})  # type: ignore[arg-type]


@pytest.fixture
def ingest(queue: FakeQueue, store: Store) -> Ingest:
    return make(queue, store)


def entries(count: int, **given: Any) -> Entries:
    return Entries.of(Entry({"prompt": f"p{number}"} | given) for number in range(count))


def chunks(store: Store, job: str) -> list[Chunk]:
    found = store.list(keys.prefix(job) + "chunks/")
    return [Chunk.model_validate_json(store.get(entry.key)) for entry in found]


def test_a_small_job_travels_inline_and_lies_in_the_store(
    ingest: Ingest, queue: FakeQueue, store: Store
) -> None:
    submission = ingest.submit("t", OPTIONS, entries(2))
    (task,) = queue.tasks[submission.job]
    assert task.inline == store.get(keys.chunk(submission.job, 0)).decode()
    assert [one.spec.prompt for one in Chunk.model_validate_json(task.inline).renders] == [
        "p0",
        "p1",
    ]


def test_a_larger_job_leaves_its_chunks_in_the_store(ingest: Ingest, queue: FakeQueue) -> None:
    submission = ingest.submit("t", OPTIONS, entries(500))
    assert {task.inline for task in queue.tasks[submission.job]} == {""}


def test_renders_are_grouped_by_lane_and_keep_their_numbers(
    ingest: Ingest, queue: FakeQueue, store: Store
) -> None:
    mixed = [Entry({"prompt": str(n), "height": 64 if n % 2 else 32}) for n in range(10)]
    mixed[3] = Entry({"prompt": ""})
    submission = ingest.submit("t", OPTIONS, Entries.of(mixed))
    wide, low = sorted(chunks(store, submission.job), key=lambda chunk: "32x64" in chunk.lane)
    assert [one.render for one in low.renders] == [0, 2, 4, 6, 8]
    assert [one.render for one in wide.renders] == [1, 5, 7, 9]
    assert [rejected.render for rejected in submission.rejected] == [3]
    assert queue.rejected[submission.job] == 1


def numbered(count: int, **given: Any) -> Renders:
    request = RenderRequest.parse({"prompt": "x"} | given)
    return Renders.of(NumberedSpec(n, request.resolve(INFO, seed=0)) for n in range(count))


def test_a_task_holds_so_many_pictures_and_so_much_work() -> None:
    many = TaskLimits(MAX_TASK_PICTURES, 1e9)
    by_pictures = list(split(numbered(40, num_images=64, num_inference_steps=1), many))
    assert max(group.pictures for group in by_pictures) == 960
    assert 15 * 64 <= MAX_TASK_PICTURES < 16 * 64
    little = TaskLimits(MAX_TASK_PICTURES, 100)
    by_work = list(split(numbered(10, num_inference_steps=30), little))
    assert [len(group) for group in by_work] == [3, 3, 3, 1]
    one_by_one = split(numbered(2, num_inference_steps=500), little)
    assert [len(group) for group in one_by_one] == [1, 1]


def test_a_task_that_becomes_a_shard_is_cut_by_pictures_alone(
    queue: FakeQueue, store: Store
) -> None:
    lane = "owner/tiny@1/text2img/64x64"
    options = JobOptions(sink="webdataset", shard_size=40, seed=1)
    for pace in (6.0, 6000.0):
        job = make(queue, store, {lane: pace}).submit("t", options, entries(100)).job
        assert [chunk.pictures for chunk in chunks(store, job)] == [40, 40, 20]


def test_a_shard_of_large_pictures_holds_fewer() -> None:
    lane = Lane("owner/tiny@1", Mode.TEXT2IMG, 1024, 1024)
    assert TaskLimits.of_shard(1000, lane).pictures == 64
    assert TaskLimits.of_shard(1000, lane._replace(height=64, width=64)).pictures == 1000


def test_only_shards_have_a_size(queue: FakeQueue, store: Store) -> None:
    with pytest.raises(InvalidInput, match="stores each picture by itself"):
        make(queue, store).submit("t", JobOptions(shard_size=40), entries(2))


def test_the_sink_of_tokens_decides_the_format() -> None:
    assert JobOptions.parse({"sink": "tokens"}).format is Format.TOKENS
    with pytest.raises(InvalidInput, match="stores no pictures") as caught:
        JobOptions.parse({"sink": "tokens", "format": "png"})
    assert caught.value.field == "format"
    with pytest.raises(InvalidInput, match="what the sink tokens makes"):
        JobOptions.parse({"sink": "parquet", "format": "tokens"})


def test_a_measured_lane_makes_tasks_of_about_the_same_time(queue: FakeQueue, store: Store) -> None:
    lane = "owner/tiny@1/text2img/64x64"
    slow = make(queue, store, {lane: 6.0}).submit("t", OPTIONS, entries(100))
    fast = make(queue, store, {lane: 600.0}).submit("t", OPTIONS, entries(100))
    assert (len(queue.tasks[slow.job]), len(queue.tasks[fast.job])) == (10, 1)


def test_the_same_piece_is_cut_alike_whatever_was_measured_meanwhile(
    queue: FakeQueue, store: Store
) -> None:
    first = make(queue, store, {"owner/tiny@1/text2img/64x64": 6.0})
    record, _ = first.open("t", JobOptions(idempotency_key="k"))
    first.append(record, 0, 0, [entries(100)])
    before = {entry.key: store.get(entry.key) for entry in store.list(keys.prefix(record.job))}
    later = make(queue, store, {"owner/tiny@1/text2img/64x64": 6000.0})
    again, created = later.open("t", JobOptions(idempotency_key="k"))
    later.append(again, 0, 0, [entries(100)])
    assert (again, created) == (record, False)
    assert {entry.key: store.get(entry.key) for entry in store.list("")} == before


def test_a_piece_with_other_content_is_a_conflict_and_changes_nothing(
    ingest: Ingest, queue: FakeQueue
) -> None:
    record, _ = ingest.open("t", OPTIONS)
    ingest.append(record, 0, 0, [entries(3)])
    with pytest.raises(Conflict):
        ingest.append(record, 0, 0, [entries(4)])
    with pytest.raises(Conflict):
        ingest.append(record, 0, 7, [entries(3)])
    assert len(queue.tasks[record.job]) == 1


def test_who_wants_all_renders_or_none_is_told_of_a_job_that_was_made_without_some(
    ingest: Ingest, queue: FakeQueue, store: Store
) -> None:
    """Whichever of them would be refused by now."""
    sent = Entries.of(Entry({"prompt": text, "checkpoint": OTHER.id}) for text in ("x", ""))
    options = JobOptions(idempotency_key="k")
    job = ingest.submit("t", options, sent).job
    for infos in ([INFO, OTHER], [INFO]):
        now = Ingest(queue, store, CheckpointRegistry(infos), Assets(store))  # type: ignore[arg-type]
        with pytest.raises(AllRejected, match=f"{job} was made without 1 of its renders"):
            now.submit("t", options, sent, all_or_none=True)


def test_a_piece_that_came_in_before_an_upgrade_can_be_sent_again(
    ingest: Ingest, queue: FakeQueue, store: Store
) -> None:
    record, _ = ingest.open("t", OPTIONS)
    ingest.append(record, 0, 0, [entries(3)])
    key = keys.chunk(record.job, 0)
    older = json.loads(store.get(key)) | {"v": 1}
    renders = Chunk.model_validate(older).renders
    older["renders"] = [
        {"render": one.render, "spec": one.spec.model_dump(mode="json")} for one in renders
    ]
    store.delete(key)
    store.put(key, json.dumps(older).encode())
    ingest.append(record, 0, 0, [entries(3)])
    assert json.loads(store.get(key)) == older
    queue.pieces[record.job].clear()
    with pytest.raises(Conflict, match="came in before with other content"):
        ingest.append(record, 0, 0, [entries(3, num_images=2)])
    store.delete(key)
    store.put(key, b"damaged")
    with pytest.raises(Conflict, match="came in before with other content"):
        ingest.append(record, 0, 0, [entries(3)])


def test_pieces_of_one_call_are_what_each_is_alone(ingest: Ingest, queue: FakeQueue) -> None:
    options, lines = OPTIONS.model_copy(update={"seed": 5}), entries(4100)
    record, _ = ingest.open("t", options)
    taken = ingest.append(record, 3, 7, lines.pieces())
    assert [piece.renders for piece in taken] == [2000, 2000, 100]
    there = dict(queue.pieces[record.job])
    for number, first in ((3, 7), (4, 2007), (5, 4007)):
        ingest.append(record, number, first, [lines[first - 7 : first + 1993]])
    assert queue.pieces[record.job] == there
    assert list(there) == [3, 4, 5]


def test_of_several_pieces_none_comes_in_if_one_is_refused(
    ingest: Ingest, queue: FakeQueue, store: Store
) -> None:
    record, _ = ingest.open("t", OPTIONS)
    heavy = entries(201, num_images=64, num_inference_steps=100)
    with pytest.raises(TooLarge):
        ingest.append(record, 0, 0, [entries(5), heavy])
    assert (queue.pieces[record.job], chunks(store, record.job)) == ({}, [])


def test_too_large_pieces_are_refused(ingest: Ingest) -> None:
    record, _ = ingest.open("t", OPTIONS)
    for piece in (entries(2001), entries(201, num_images=64, num_inference_steps=100)):
        with pytest.raises(TooLarge) as error:
            ingest.append(record, 0, 0, [piece])
        assert error.value.field == "piece"


def test_a_long_job_is_appended_in_calls_that_do_not_hold_redis_up(
    ingest: Ingest, queue: FakeQueue
) -> None:
    heavy = entries(2100, num_images=64, num_inference_steps=100)
    submission = ingest.submit("t", OPTIONS, heavy)
    tasks = queue.tasks[submission.job]
    assert (submission.renders, len(tasks)) == (2100, 2100)
    assert len({task.number for task in tasks}) == 2100
    assert queue.closed[submission.job] == 11


def test_nothing_good_is_no_job(ingest: Ingest, queue: FakeQueue, store: Store) -> None:
    with pytest.raises(AllRejected) as error:
        ingest.submit("t", OPTIONS, Entries.of([Entry({"prompt": ""}), Entry(7)]))
    assert [one.render for one in error.value.rejected] == [0, 1]
    assert queue.tasks == {}
    assert list(store.list("")) == []
    record, _ = ingest.open("t", OPTIONS)
    feed = Feed(ingest, record)
    with pytest.raises(InvalidInput):
        feed.close()
    assert queue.cancelled == [record.job]


@pytest.mark.parametrize("count", [1, 500])
def test_what_the_queue_refuses_leaves_nothing_in_the_store(
    ingest: Ingest, queue: FakeQueue, store: Store, count: int
) -> None:
    queue.away = QueueFull("no memory")
    with pytest.raises(QueueFull):
        ingest.submit("t", OPTIONS, entries(count, num_images=64, num_inference_steps=100))
    assert list(store.list("")) == []


def test_what_the_queue_may_have_taken_stays_in_the_store(
    ingest: Ingest, queue: FakeQueue, store: Store
) -> None:
    queue.away = Unavailable("no answer")
    with pytest.raises(Unavailable):
        ingest.submit("t", OPTIONS, entries(1))
    assert len(list(store.list(""))) == 2


def test_a_store_that_is_away_for_a_moment_rejects_no_render(
    ingest: Ingest, queue: FakeQueue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "list", fails_at(store.list, 1))
    renders = Entries.joined([entries(1, adapters=[{"adapter": "mine", "scale": 1}]), entries(2)])
    with pytest.raises(Unavailable):
        ingest.submit("t", OPTIONS, renders)
    assert queue.tasks == {}
    [refused] = ingest.submit("t", OPTIONS, renders).rejected
    assert "mine" in str(refused.error), "the store answers: there is no such adapter"


def test_an_interrupted_long_job_goes_on_where_it_stopped(
    queue: FakeQueue, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = JobOptions(idempotency_key="k")
    heavy = entries(500, num_images=64, num_inference_steps=100)
    real = queue.append
    monkeypatch.setattr(queue, "append", fails_at(real, 2))
    with pytest.raises(Unavailable):
        make(queue, store).submit("t", options, heavy)
    assert queue.cancelled == []
    monkeypatch.setattr(queue, "append", real)
    lane = "owner/tiny@1/text2img/64x64"
    submission = make(queue, store, {lane: 1e6}).submit("t", options, heavy)  # now it looks short
    assert submission.created is False
    numbers = [task.number for task in queue.tasks[submission.job]]
    assert sorted(set(numbers)) == list(range(500))
    assert queue.closed == {submission.job: 3}
    again = make(queue, store, {lane: 1e6}).submit("t", options, heavy)
    assert (again.job, again.created) == (submission.job, False)


def fails_at(real: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = []

    def failing(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == call:
            raise Unavailable("lost")
        return real(*given)

    return failing


def test_a_seed_comes_from_the_job_and_the_place(ingest: Ingest, store: Store) -> None:
    seeds = []
    for _ in range(2):
        job = ingest.submit("t", OPTIONS, Entries.joined([entries(2), entries(1, seed=9)])).job
        (chunk,) = chunks(store, job)
        seeds.append([one.spec.seed for one in chunk.renders])
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 3
    assert seeds[0][2] == 9
    other = ingest.submit("t", JobOptions(), entries(2)).job
    assert [one.spec.seed for one in chunks(store, other)[0].renders] != seeds[0][:2]


def test_the_job_file_has_what_an_empty_queue_needs(ingest: Ingest, store: Store) -> None:
    options = JobOptions(name="bikes", max_failed=3, idempotency_key="k")
    job = ingest.submit("t", options, entries(1)).job
    record = json.loads(store.get(keys.header(job)))
    assert (record["tenant"], record["options"]["name"], record["options"]["max_failed"]) == (
        "t", "bikes", 3,
    )  # fmt: skip
    assert isinstance(record["seed"], int)


def test_a_checkpoint_is_found_by_any_clear_name() -> None:
    registry = CheckpointRegistry([INFO, OTHER])
    for name in (None, "owner/tiny", "owner/tiny@1", "tiny"):
        assert registry.find(name) is INFO
    assert registry.find("other") is OTHER
    with pytest.raises(InvalidInput) as error:
        registry.find("tinny")
    assert error.value.field == "checkpoint"
    with pytest.raises(InvalidInput, match="no checkpoint yet"):
        CheckpointRegistry().find(None)


def test_checkpoints_of_workers_are_asked_for_now_and_then() -> None:
    now, asked = [0.0], []

    def live() -> list[CheckpointInfo]:
        asked.append(now[0])
        return [INFO]

    registry = CheckpointRegistry(live=live, clock=lambda: now[0])
    for moment in (0.0, 1.0, 2.0, 10.0):
        now[0] = moment
        assert registry.all() == [INFO]
    assert asked == [0.0, 10.0]


def test_a_checkpoint_whose_worker_has_just_come_is_found() -> None:
    now, there, asked = [0.0], [INFO], []

    def live() -> list[CheckpointInfo]:
        asked.append(now[0])
        return list(there)

    registry = CheckpointRegistry(live=live, clock=lambda: now[0])
    assert registry.all() == [INFO]
    there.append(OTHER)
    now[0] = 0.6
    assert registry.find("other") is OTHER
    for _ in range(1000):
        with pytest.raises(InvalidInput, match="no checkpoint 'third'"):
            registry.find("third")
    assert asked == [0.0, 0.6], "names that do not exist do not keep the queue busy"


def test_a_line_that_is_no_text_is_placed() -> None:
    entry = parse_line(b'{"prompt": "\xff"}', 7)
    assert entry.error is not None
    assert (entry.error.line, entry.error.column) == (7, 13)
