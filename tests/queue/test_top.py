"""What ``farm top`` shows."""

import io
import json

import pytest
from queue_bench import CHECKPOINT, LANE, MS, Bench
from rich.console import Console

from farm.cli.app import run
from farm.cli.top import LaneRow, Look, TenantRow, View, WorkerRow, drawn, look
from farm.local.valkey import ServerProcess
from farm.queue import Queue


def measured(pictures: int, row_steps: int, seconds: float) -> dict[str, object]:
    lane = str(LANE)
    return {
        "farm_worker_pictures": [["_total", [lane, "done"], pictures]],
        "farm_worker_row_steps": [["_total", [lane], row_steps]],
        "farm_worker_engine_seconds": [["_total", [lane], seconds]],
    }


def beat(queue: Queue, session: str, measures: object) -> None:
    queue.heartbeat(session, 16, {}, {"measures": measures, "lanes": [str(LANE)]}, MS)


def text(view: View, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(drawn(view))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rates_are_differences_between_two_looks(bench: Bench, queue: Queue) -> None:
    bench.submit(3, pictures=4, cost=48)
    session = bench.session()
    beat(queue, session, measured(100, 1000, 50.0))
    before = look(queue, clock=lambda: 10.0)
    [lease] = bench.lease(session, limit=1)
    bench.complete(session, lease, failed=1)
    beat(queue, session, measured(120, 1240, 51.5))
    view = View.between(before, look(queue, clock=lambda: 12.0))
    assert view.lanes == (LaneRow(str(LANE), 8, 10.0, 160.0),)
    assert view.tenants == (TenantRow("ann", 1.5, 18.0, 3),)
    [worker] = view.workers
    assert (worker.busy, worker.pictures, worker.room) == (0.75, 10.0, 16)
    assert worker.doing == str(LANE)
    assert view.failed == {"row": 1}
    assert view.failing == 0.5
    told = text(view)
    assert "1 worker, 10.0 pictures/s, 8 pictures queued" in told
    assert "failed pictures: 1 row (0.5/s)" in told
    assert "75%" in told


def test_a_worker_that_was_restarted_and_one_of_another_version_spoil_nothing(
    bench: Bench, queue: Queue
) -> None:
    gone = bench.session()
    beat(queue, gone, measured(1000, 10_000, 100.0))
    before = look(queue, clock=lambda: 0.0)
    queue.end(gone, "crash")
    beat(queue, bench.session(), measured(5, 60, 0.5))
    beat(queue, bench.session(), {"farm_worker_pictures": 7})
    view = View.between(before, look(queue, clock=lambda: 1.0))
    assert [row.pictures for row in view.lanes] == [5.0]
    assert len(view.workers) == 2


def test_more_rows_than_fit_are_counted_and_names_cannot_move_the_cursor(queue: Queue) -> None:
    now = look(queue)
    view = View.between(now, Look(now.at + 1, now.backlog, now.tallies, now.sessions))
    tenants = tuple(TenantRow(f"t{at}\x1b[2J", 1.0, 1.0, 1) for at in range(20))
    told = text(view._replace(tenants=tenants))
    assert "and 8 more" in told
    assert "\x1b[2J" not in told
    assert "oldest ready job: none" in told


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_what_a_narrow_terminal_has_no_room_for_is_left_out_and_nothing_is_cut(
    width: int, queue: Queue
) -> None:
    now = look(queue)
    view = View.between(now, Look(now.at + 1, now.backlog, now.tallies, now.sessions))
    lane = str(LANE)
    worker = WorkerRow("worker-10", "host-1", 0.5, 12.3, 4, 1192, 1.0, ", ".join([lane] * 3))
    view = view._replace(
        lanes=(LaneRow(lane, 1_234_567, 12.3, 1234.5),),
        tenants=(TenantRow("ann", 12.3, 1234.5, 1_234_567),),
        workers=(worker,),
    )
    told = text(view, width)
    assert "\u2026" not in told
    assert all(len(line) <= width for line in told.splitlines())
    assert all(fact in told for fact in ("1,234,567", "worker-10", "50%", "12.3"))
    assert ("host-1" in told) is (width >= 60)
    assert ("heartbeat" in told) is (width >= 60)
    assert ("row-steps per engine second" in told) is (width >= 80)


def test_lines_in_a_pipe_are_as_long_as_they_need(
    bench: Bench,
    server: ServerProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("COLUMNS", "40")
    bench.submit(2, pictures=4)
    bench.session((CHECKPOINT,))
    assert run(["top", "--once", "--every", "0.2"]) == 0
    told = capsys.readouterr().out
    assert str(LANE) in told
    assert "heartbeat  host  doing" in told


def test_a_view_can_be_printed_once_as_text_and_as_json(
    bench: Bench,
    server: ServerProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    bench.submit(2, pictures=4)
    bench.session((CHECKPOINT,))
    assert run(["top", "--once", "--every", "0.2"]) == 0
    assert "8 pictures queued" in capsys.readouterr().out
    assert run(["top", "--once", "--json", "--every", "0.2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["lanes"][0]["queued"] == 8
    assert told["workers"][0]["host"] == "here"
    assert told["oldest"].keys() == {"normal"}
