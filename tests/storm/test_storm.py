"""A small storm in every run of the tests; ``make storm`` and ``make storm-ray`` are large ones."""

from pathlib import Path

import pytest
from environments import ProcessEnvironment
from storm import Storm
from workload import FAULTS

JOBS = 60  # one with a row that ends its worker, three with rows that fail
KILLS = 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_is_lost_or_published_twice_in_a_storm(tmp_path: Path) -> None:
    storm = Storm(
        ProcessEnvironment(tmp_path, FAULTS), tmp_path, JOBS, KILLS, server_kills=1, seed=5
    )
    outcome = storm.run(print)
    assert outcome.problems == []
    assert outcome.kills["server"] == 1
    assert outcome.started >= outcome.pictures
