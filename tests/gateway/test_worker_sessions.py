"""Those who ask for the workers at about the same time share one look at the queue."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from farm.errors import Unavailable
from farm.gateway.worker_sessions import KEPT_SECONDS, WorkerSessions
from farm.queue import Queue


def sessions_of(look: Callable[[], Any], now: list[float]) -> WorkerSessions:
    return WorkerSessions(cast(Queue, SimpleNamespace(sessions=look)), lambda: now[0])


def test_a_look_is_kept_for_longer_the_more_workers_there_are() -> None:
    now, looks = [0.0], 0
    workers: list[object] = []

    def look() -> list[object]:
        nonlocal looks
        looks += 1
        return list(workers)

    sessions = sessions_of(look, now)
    assert [sessions(), sessions()] == [[], []]
    assert looks == 2  # without workers the first one is seen at once
    workers[:] = [object()] * 1000
    assert len(sessions()) == len(sessions()) == 1000
    now[0] += 999 * KEPT_SECONDS
    sessions()
    assert looks == 3
    now[0] += 2 * KEPT_SECONDS
    sessions()
    assert looks == 4


def test_who_asks_while_another_one_looks_gets_what_was_found_before() -> None:
    now = [0.0]
    asked, answer = threading.Event(), threading.Event()
    found = ["before"]

    def look() -> list[str]:
        if asked.is_set() or found == ["after"]:
            asked.set()
            answer.wait(30)
        return list(found)

    sessions = sessions_of(look, now)
    assert sessions() == ["before"]
    now[0] += 1
    found[:] = ["after"]
    slow: list[Any] = []
    looking = threading.Thread(target=lambda: slow.append(sessions()))
    looking.start()
    assert asked.wait(30)
    assert sessions() == ["before"]
    answer.set()
    looking.join(30)
    assert slow == [["after"]]


def test_a_queue_that_does_not_answer_is_told_and_asked_again() -> None:
    answers: list[Any] = [Unavailable("away"), ["here"]]

    def look() -> Any:
        one = answers.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    sessions = sessions_of(look, [0.0])
    with pytest.raises(Unavailable):
        sessions()
    assert sessions() == ["here"]
