"""What a worker shows of itself: in Ray's timeline and lists, and in its log."""

import logging
import threading
import time

import pytest
from test_lease_table import add
from waiting import until

from farm.job import Receipt
from farm_workers.leased_task import Outcome
from farm_workers.worker.lease_table import LeaseTable
from farm_workers.worker.throughput import TELL_SECONDS, Throughput
from farm_workers.worker.timeline import Facts, Timeline
from farm_workers.worker.worker import describe

RECEIPT = Receipt(done=4, failed=0, size=1, part="part", part_sha256="", numerics="")


class NotedSpan:
    """Stands in for Ray's: when it was open, and the facts that it had in the end."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.began = time.monotonic()
        self.ended = 0.0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.ended = time.monotonic()


class Calls:
    """The calls of an actor, one after another as a scheduler makes them."""

    def __init__(self, timeline: Timeline) -> None:
        self.spans: list[NotedSpan] = []
        self._timeline = timeline
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._timeline.follow(0.05, self._open):
            pass

    def _open(self, facts: Facts) -> NotedSpan:
        self.spans.append(NotedSpan(facts))
        return self.spans[-1]

    def names(self) -> list[str]:
        return [span.facts.get("name", "") for span in list(self.spans)]

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_each_task_has_a_span_and_no_two_are_open_at_once() -> None:
    table = LeaseTable(capacity=20)
    calls = Calls(table.timeline)
    first, second, third = (add(table, number=number) for number in range(3))
    until(lambda: f"at work on {first.key} and 2 more" in calls.names())
    for task, outcome in ((second, Outcome(RECEIPT)), (first, Outcome(None, "crash", "no memory"))):
        table.end(task, outcome)
        table.remove(task)
    table.remove(third)
    keys = [task.key for task in (first, second, third)]
    until(
        lambda: all(any(name.startswith(f"task {key}: ") for name in calls.names()) for key in keys)
    )
    table.timeline.close()
    calls.join()
    ended = [span.facts for span in calls.spans if "task" in span.facts]
    outcomes = {facts["task"]: facts["outcome"] for facts in ended}
    assert outcomes == {
        second.key: "done", first.key: "crash: no memory", third.key: "dropped",
    }  # fmt: skip
    for before, after in zip(calls.spans, calls.spans[1:], strict=False):
        assert before.ended <= after.began


def test_a_worker_without_work_has_no_spans_and_its_end_is_told_at_once() -> None:
    timeline = Timeline()
    calls = [Calls(timeline), Calls(timeline)]
    timeline.close()
    for one in calls:
        one.join()
        assert one.spans == []


def test_spans_that_no_call_records_are_not_kept_for_ever() -> None:
    table = LeaseTable(capacity=20)
    for number in range(3000):
        table.remove(add(table, number=number))
    calls = Calls(table.timeline)
    until(lambda: any("/2999: " in name for name in calls.names()))
    table.timeline.close()
    calls.join()
    assert len(calls.spans) <= 1001


class Engine:
    """What of an engine is told to people."""

    def __init__(self, device: str, numerics: str) -> None:
        self.device = device
        self.numerics = numerics


def test_a_worker_says_its_device_first_and_what_its_checkpoints_share_once() -> None:
    engines = {
        "a@1": Engine("GPU 3, H200", "a@1; bfloat16; H200; tile 32"),
        "b@2": Engine("GPU 3, H200", "b@2; bfloat16; H200; tile 32"),
        "c@3": Engine("GPU 3, H200", "c@3; float32; H200; tile 8"),
    }
    assert describe(engines) == (  # type: ignore[arg-type]
        "GPU 3, H200: a@1, b@2; bfloat16; H200; tile 32 | GPU 3, H200: c@3; float32; H200; tile 8"
    )


def test_the_log_says_how_fast_a_worker_is_while_it_draws(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [100.0]
    throughput = Throughput(clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for _ in range(45):
            throughput.stored()
            throughput.tell()
        assert caplog.messages == []
        now[0] += TELL_SECONDS
        throughput.tell()
        now[0] += TELL_SECONDS
        throughput.tell()
    assert caplog.messages == ["stored 45 pictures in the last 30 s (1.5/s)"]
