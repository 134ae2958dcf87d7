"""A few of the damages of ``make damage`` in every run of the tests."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from damage import run


@pytest.mark.slow
def test_a_damaged_append_only_file_is_started_from_or_the_queue_is_rebuilt() -> None:
    with TemporaryDirectory(prefix="farm-") as folder:  # short: a socket lies in it
        assert sum(run(Path(folder), rounds=5, seed=3).values()) == 5
