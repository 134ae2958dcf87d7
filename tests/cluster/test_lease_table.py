"""What is aboard, when leases come, go and come again."""

from farm.job import Lease, Priority
from farm_workers.worker.lease_table import LeaseTable


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


def test_a_lease_is_aboard_once() -> None:
    aboard = LeaseTable()
    assert aboard.arrive(lease(1))
    assert not aboard.arrive(lease(1))
    assert aboard.skip(first := lease(1)) is False, "it is another object: of another grant"
    assert aboard.keys == {first.key}


def test_what_was_dropped_while_it_was_loaded_does_not_end_its_successor() -> None:
    aboard = LeaseTable()
    old, new = lease(1), lease(2)
    aboard.arrive(old)
    aboard.drop(old.key)
    aboard.arrive(new)
    assert not aboard.skip(old)
    assert aboard.skip(new)
    assert aboard.leave(new.key) == (new, None)
    aboard.left(new.key)
    assert aboard.keys == set()


def test_what_is_to_be_rendered_is_counted_by_urgency() -> None:
    aboard = LeaseTable()
    aboard.arrive(lease(1, 0))
    aboard.arrive(lease(1, 1, Priority.URGENT))
    assert aboard.outstanding() == 8
    assert aboard.outstanding(urgent_only=True) == 4
