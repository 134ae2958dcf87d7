"""The farm's figures at /metrics: from heartbeats and the queue's own counts."""

import secrets
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx2
import pytest
from harness import INFO, Gateway, Serve, post, write_keys
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from farm.gateway.farm_metrics import FarmMetrics
from farm.gateway.metrics import Metrics
from farm.job import Priority
from farm.measures import MAX_LANES, MEASURES, OTHERS
from farm.queue import LaneBacklog, Queue, Session, connect
from farm.spec import Lane, Mode
from farm_workers.render_engine import Usage
from farm_workers.worker.metrics import WorkerMetrics

LANE = Lane("shapes-64@r1", Mode.TEXT2IMG, 64, 64)


class Engine:
    """What of an engine is looked at."""

    def __init__(self, **facts: object) -> None:
        self.usage = Usage(**facts)  # type: ignore[arg-type]


def connect_worker(queue: Queue, worker: str, measured: object) -> str:
    session = secrets.token_hex(16)
    info = {"host": "rack1", "version": "1.2.3", "checkpoints": [INFO.model_dump(mode="json")]}
    queue.register(session, worker, [INFO.name], info)
    queue.heartbeat(session, 7, {}, {"measures": measured}, 10_000)
    return session


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Name → labels' values → number; a series that is there twice fails."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            assert labels not in series, (sample.name, labels)
            series[labels] = sample.value
    return found


def read(gateway: Gateway) -> dict[str, dict[tuple[str, ...], float]]:
    """As a gateway that has just been started shows them."""
    return samples(Metrics(gateway.queue, gateway.queue.sessions).text().decode())


def test_what_a_worker_measures_arrives_at_prometheus(gateway: Gateway) -> None:
    usage = {"steps": 10, "busy": 30, "computed": 40, "memory": {"used": 5, "total": 80}}
    metrics = WorkerMetrics([Engine(**usage)], lambda: 1000)  # type: ignore[list-item]
    metrics.stepped(2.0, {LANE: 3}, {"ann": 2, "bob": 1})
    metrics.rows_ended(LANE, 12, [0.5])
    metrics.rows_ended(LANE, 4, [40.0], failed=1)
    metrics.stored(0.02, 0.2)
    metrics.looked_up("adapters", True)
    connect_worker(gateway.queue, "worker-0", metrics.snapshot())
    found = read(gateway)
    lane, worker = str(LANE), "worker-0"
    assert found["farm_worker_pictures_total"] == {
        (lane, "done", worker): 1, (lane, "failed", worker): 1,
    }  # fmt: skip
    assert found["farm_worker_row_steps_total"] == {(lane, worker): 16}
    assert found["farm_worker_engine_seconds_total"] == {(lane, worker): 2}
    shares = found["farm_worker_tenant_seconds_total"]
    assert shares["ann", worker] == pytest.approx(4 / 3)
    assert shares["bob", worker] == pytest.approx(2 / 3)
    assert found["farm_worker_slots_busy_total"] == {(worker,): 30}
    assert found["farm_worker_slots_computed_total"] == {(worker,): 40}
    assert found["farm_worker_gpu_memory_bytes"] == {("used", worker): 5, ("total", worker): 80}
    assert found["farm_worker_cache_total"] == {("adapters", "hit", worker): 1}
    assert found["farm_worker_pending_bytes"] == {(worker,): 1000}
    assert found["farm_worker_render_seconds_bucket"]["1.0", worker] == 1
    assert found["farm_worker_render_seconds_bucket"]["+Inf", worker] == 2
    assert found["farm_worker_upload_seconds_count"] == {(worker,): 1}
    assert found["farm_worker_info"] == {("rack1", "1.2.3", worker): 1}
    assert found["farm_worker_room"] == {(worker,): 7}
    assert found["farm_workers"] == {(): 1}


def test_what_was_measured_before_is_not_counted_twice() -> None:
    engine = Engine(steps=10, busy=30, computed=40)
    metrics = WorkerMetrics([engine])  # type: ignore[list-item]
    metrics.snapshot()
    engine.usage = Usage(15, 45, 60)
    [[_, _, steps]] = metrics.snapshot()["farm_worker_steps"]
    assert steps == 15


def test_a_worker_that_came_back_is_there_once(gateway: Gateway) -> None:
    lost = WorkerMetrics()
    lost.rows_ended(LANE, 12, [0.5])
    connect_worker(gateway.queue, "worker-0", lost.snapshot())
    back = WorkerMetrics()
    session = connect_worker(gateway.queue, "worker-0", back.snapshot())
    sessions = {one.session: one for one in gateway.queue.sessions()}
    assert len(sessions) == 2
    old = next(key for key in sessions if key != session)
    gateway.queue.client.hincrby(f"{{{gateway.queue.farm}}}:session:{old}", "seen", -5000)
    found = read(gateway)
    assert found["farm_workers"] == {(): 1}
    assert "farm_worker_pictures_total" not in found


def test_a_worker_of_another_version_spoils_nothing(gateway: Gateway) -> None:
    for number, told in enumerate(
        ({"farm_worker_steps": [["_total", ["a", "label"], 1]]}, {"farm_worker_steps": 3}, [], None)
    ):
        connect_worker(gateway.queue, f"odd-{number}", told)
    connect_worker(gateway.queue, "worker-0", {"farm_worker_steps": [["_total", [], 5]]})
    found = read(gateway)
    assert found["farm_worker_steps_total"] == {("worker-0",): 5}
    assert found["farm_workers"] == {(): 5}


def test_the_number_of_lanes_and_tenants_of_a_worker_is_bounded() -> None:
    metrics = WorkerMetrics()
    for side in range(1, 200):
        lane = LANE._replace(width=8 * side)
        metrics.rows_ended(lane, 1, [0.1])
        metrics.stepped(1.0, {lane: 1}, {f"tenant-{side}": 1})
    told = metrics.snapshot()
    lanes = {labels[0]: value for _, labels, value in told["farm_worker_row_steps"]}
    assert len(lanes) == MAX_LANES + 1
    assert lanes[OTHERS] == 199 - MAX_LANES
    assert len(told["farm_worker_tenant_seconds"]) <= MAX_LANES + 1


def test_prompts_and_names_of_jobs_are_not_in_any_label(
    gateway: Gateway, http: httpx2.Client
) -> None:
    assert post(http, {"prompt": "a secret prompt"}, name="a secret name").status_code == 201
    text = Metrics(gateway.queue, gateway.queue.sessions).text().decode()
    assert "secret" not in text
    found = samples(text)
    assert found["farm_queued_tasks"] == {(str(LANE), "normal"): 1}
    assert found["farm_queue_oldest_seconds"].keys() == {("normal",)}
    assert found["farm_queue_up"] == {(): 1}


def test_tenants_are_named_to_an_admin_and_counted_together_for_others(
    serve: Serve, tmp_path: Path
) -> None:
    keys = {
        "reads": {"tenant": "ann", "scopes": ["read"]},
        "admin": {"tenant": "ops", "scopes": ["admin"]},
    }
    kept = write_keys(tmp_path / "keys.json", keys)
    gateway = serve(tmp_path, keys=kept, open=False, name="named-tenants")
    metrics = WorkerMetrics()
    metrics.stepped(3.0, {LANE: 3}, {"ann": 2, "bob": 1})
    connect_worker(gateway.queue, "worker-0", metrics.snapshot())
    found = {}
    for key in (None, "unknown", "reads", "admin"):
        with gateway.client(key) as http:
            found[key] = samples(http.get("/metrics").text)["farm_worker_tenant_seconds_total"]
    assert found["admin"] == {("ann", "worker-0"): 2, ("bob", "worker-0"): 1}
    assert found[None] == found["unknown"] == found["reads"] == {(OTHERS, "worker-0"): 3}


def test_those_who_ask_at_once_are_told_the_same(redis_url: str) -> None:
    asking, answer = threading.Event(), threading.Event()

    class Slow(Queue):
        def backlog(self) -> list[LaneBacklog]:
            asking.set()
            assert answer.wait(30)
            return super().backlog()

    metrics = FarmMetrics(Slow(connect(redis_url)), list)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: list(metrics.collect()))
        assert asking.wait(30)
        second = pool.submit(lambda: next(iter(metrics.collect())))
        wait([second], timeout=0.2)  # it has come to the figures, in most runs
        answer.set()
        assert first.result()[0].samples == second.result().samples


def test_the_queue_is_not_asked_again_at_once(redis_url: str) -> None:
    now = [0.0]
    asked: list[float] = []

    class Counting(Queue):
        def backlog(self) -> list[LaneBacklog]:
            asked.append(now[0])
            return super().backlog()

    metrics = FarmMetrics(Counting(connect(redis_url)), list, lambda: now[0])
    for now[0] in (0.0, 0.5, 0.9, 1.5):
        list(metrics.collect())
    assert asked == [0.0, 1.5]


def test_of_many_workers_the_queue_is_asked_less_often(redis_url: str) -> None:
    now = [0.0]
    asked: list[float] = []
    one = Session("0" * 32, "w", (), 0, 0, 0, {}, {}, None)

    def many() -> list[Session]:
        asked.append(now[0])
        return [one] * 1000

    metrics = FarmMetrics(Queue(connect(redis_url)), many, lambda: now[0])
    for now[0] in (0.0, 2.0, 4.9, 5.0):
        metrics.read()
    assert asked == [0.0, 5.0]


def test_the_farms_part_is_written_once_of_the_same_figures(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics(gateway.queue, gateway.queue.sessions)
    made: list[int] = []
    collect = FarmMetrics.collect

    def counted(self: FarmMetrics) -> Iterator[Metric]:
        made.append(1)
        return collect(self)

    monkeypatch.setattr(FarmMetrics, "collect", counted)
    monkeypatch.setattr("farm.gateway.farm_metrics.FRESH_SECONDS", 1000.0)
    first = metrics.text()
    metrics.jobs.labels("whole").inc()
    second = metrics.text()
    metrics.text(tenants=False)
    assert made == [1, 1]  # with names, and without
    assert b'farm_jobs_total{kind="whole"} 1.0' in second
    assert first != second


class StubQueue(Queue):
    """The queue with a backlog of our choice."""

    def __init__(self, redis_url: str, work: Iterable[LaneBacklog]) -> None:
        super().__init__(connect(redis_url))
        self._work = list(work)

    def backlog(self) -> list[LaneBacklog]:
        return self._work


def test_many_sizes_do_not_become_many_numbers(redis_url: str) -> None:
    work = [
        LaneBacklog(LANE._replace(width=8 * side), Priority.NORMAL, 1, side)
        for side in range(1, 301)
    ]
    text = Metrics(StubQueue(redis_url, work), list).text().decode()
    assert text.count("farm_queued_tasks{") == 101
    assert 'farm_queued_tasks{lane="others",priority="normal"} 200.0' in text


def test_every_measure_says_what_it_counts() -> None:
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names)
    assert all(name.startswith("farm_worker_") for name in names)
    assert all(measure.help for measure in MEASURES)
