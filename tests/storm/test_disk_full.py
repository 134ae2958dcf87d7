"""Two of the twenty rounds of ``make disk-full`` in every run of the tests."""

import pytest
from disk_full import may_mount, run


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="needs root: a small file system is mounted")
def test_a_full_disk_loses_nothing_acknowledged_and_one_server_runs() -> None:
    assert "all done" in run(rounds=2)
