"""The table of leases, when they come, go and come again."""

import pytest

from farm.job import Format, Lease, Priority, Receipt
from farm.queue import Progress
from farm.sinks.protocol import TaskPlace
from farm_workers.leased_task import LeasedTask, Outcome
from farm_workers.worker.lease_table import LeaseTable

CRASHED = Outcome(None, "crash", "it crashed")


@pytest.fixture
def table() -> LeaseTable:
    return LeaseTable(capacity=20)


def lease(attempt: int, number: int = 0, priority: Priority = Priority.NORMAL) -> Lease:
    return Lease(
        job="j0-01m891ke48fq5njwd46dhe0xkm",
        generation=0,
        number=number,
        attempt=attempt,
        lane="a lane",
        pictures=4,
        cost=48,
        priority=priority,
        alone=False,
        inline="",
        skip=(),
    )


def add(table: LeaseTable, attempt: int = 1, number: int = 0) -> LeasedTask:
    task = table.add(lease(attempt, number))
    assert task is not None
    return task


def test_a_task_is_held_once(table: LeaseTable) -> None:
    task = add(table)
    assert table.add(lease(1)) is None
    assert table.tasks == {task.key: task}


def test_what_is_left_of_a_dropped_lease_does_not_end_its_successor(table: LeaseTable) -> None:
    old = add(table, 1)
    table.remove(old)
    new = add(table, 2)
    assert new.key == old.key
    assert new.number != old.number
    assert not table.end(old, CRASHED)
    table.remove(old)
    assert table.holds(new)
    assert not table.holds(old)


def test_a_lease_ends_once_and_is_held_until_the_queue_has_heard(table: LeaseTable) -> None:
    task = add(table)
    receipt = Receipt(done=4, failed=0, size=1, part="part", part_sha256="", numerics="")
    assert table.end(task, Outcome(receipt))
    assert table.queue_wanted.is_set()
    assert not table.end(task, CRASHED)
    assert table.ended == [(task, Outcome(receipt))]
    assert not table.holds(task)
    assert table.add(lease(2)) is None
    table.remove(task)
    assert table.ended == []
    assert table.add(lease(2)) is not None


def test_room_is_told_with_a_second_number_for_urgent_tasks(table: LeaseTable) -> None:
    ended = add(table, number=0)
    table.end(ended, CRASHED)
    begun = add(table, number=1)
    begun.handed_over = 3
    table.add(lease(1, 2, Priority.URGENT))
    assert table.room() == 20 - 1 - 4
    assert table.room(urgent=True) == 20 - 4


def test_a_row_is_announced_until_the_queue_has_heard_of_it(table: LeaseTable) -> None:
    task = add(table)
    assert table.progress() == {}, "it is not rendered yet"
    task.place = TaskPlace("images", "job", 0, 0, Format.PNG, data="", part=None)
    table.announce(task, 2)
    assert table.unannounced
    heard = table.progress()
    assert heard == {task.key: Progress(0, 0, 2)}
    table.announced(heard)
    assert (task.announced_row, table.unannounced) == (2, False)
