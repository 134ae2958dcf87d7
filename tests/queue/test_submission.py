"""What a job's tasks look like when they come in."""

import pytest
from queue_bench import Bench

from farm.errors import Conflict
from farm.queue import Queue


def test_a_number_that_comes_twice_in_one_call_is_refused_and_nothing_is_written(
    bench: Bench, queue: Queue
) -> None:
    header = bench.header()
    queue.open(header)
    for numbers in ([0, 0], [3, 4, 3]):
        tasks = [task for number in numbers for task in bench.tasks(1, first=number)]
        with pytest.raises(Conflict, match="exists"):
            queue.append(header.job, 0, "a" * 64, tasks)
        with pytest.raises(Conflict, match="exists"):
            queue.submit(bench.header(), tasks)
    assert queue.status(header.job, "ann").tasks.total == 0
    assert len(queue.jobs("ann")) == 1
