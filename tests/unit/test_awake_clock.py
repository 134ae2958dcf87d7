"""A clock that does not count its own process's pauses."""

import time

import pytest

from farm.scheduler.awake_clock import AwakeClock


def test_of_a_pause_only_a_second_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.5, 101.25, 701.25, 701.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    clock = AwakeClock()
    assert [clock() for _ in range(4)] == [0.5, 1.25, 2.25, 2.5]
