"""Looks at the queue and the store, for all who ask."""

import threading

import pytest

from farm.errors import Unavailable
from farm.gateway import readiness


def test_who_asks_while_the_next_look_begins_is_told_of_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, answered = 0.0, threading.Event()
    answered.set()

    def write() -> None:
        answered.wait()

    look = readiness._Look(write, Unavailable, "Redis")

    def others_ask_later() -> float:
        nonlocal now
        if answered.is_set() and now < readiness.CHECK_SECONDS:
            now = readiness.CHECK_SECONDS
            answered.clear()
            look.begin()
        return now

    monkeypatch.setattr("time.monotonic", lambda: now)
    look.begin()
    assert look.found() is None
    monkeypatch.setattr("time.monotonic", others_ask_later)
    assert look.found() is None, "the look that has just begun is not late"
    answered.set()
