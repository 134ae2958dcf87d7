"""A clock that does not count its own process's pauses."""

from types import SimpleNamespace

import pytest

from farm import awake_clock
from farm.awake_clock import AwakeClock, Stillness


def look_at(monkeypatch: pytest.MonkeyPatch, *times: float) -> None:
    """These are the module's times, and not those of the process's other threads."""
    clock = SimpleNamespace(monotonic=iter(times).__next__)
    monkeypatch.setattr(awake_clock, "time", clock)


def test_of_a_pause_only_a_second_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(monkeypatch, 100.0, 100.5, 101.25, 701.25, 701.5)
    clock = AwakeClock()
    assert [clock() for _ in range(4)] == [0.5, 1.25, 2.25, 2.5]


def test_a_process_that_was_paused_did_not_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at(monkeypatch, 0.0, 1.0, 2.0, 602.0, 603.0, 604.0, 605.0)
    still_for = Stillness()
    assert [still_for(turn) for turn in (7, 7, 7, 7, 8, 8)] == [0, 1, 2, 3, 0, 1]
