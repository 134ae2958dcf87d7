"""Those who ask for the workers at about the same time share one look at the queue."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness import Serve, post

from farm.errors import Unavailable
from farm.gateway.worker_sessions import KEPT_SECONDS, OLDER_SECONDS, WorkerSessions
from farm.queue import Queue, Session


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


class SlowLook:
    """The first look is over at once; the second takes until it is told to end."""

    def __init__(self) -> None:
        self.looks = 0
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self) -> list[str]:
        self.looks += 1
        if self.looks == 1:
            return ["before"]
        self.begun.set()
        self.end.wait(30)
        return ["after"]


def test_who_asks_while_another_one_looks_gets_what_was_found_shortly_before() -> None:
    now, look = [0.0], SlowLook()
    sessions = sessions_of(look, now)
    assert sessions() == ["before"]
    now[0] += OLDER_SECONDS
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(sessions)
        assert look.begun.wait(30)
        assert sessions() == ["before"]
        look.end.set()
        assert slow.result(30) == ["after"]


def test_after_a_pause_all_wait_for_the_one_who_looks() -> None:
    now, look = [0.0], SlowLook()
    sessions = sessions_of(look, now)
    assert sessions() == ["before"]
    now[0] += 3600
    with ThreadPoolExecutor() as threads:
        first = threads.submit(sessions)
        assert look.begun.wait(30)
        second = threads.submit(sessions)
        assert not wait({second}, 0.1).done  # it could only be told of what was an hour ago
        look.end.set()
        assert first.result(30) == second.result(30) == ["after"]


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


def test_all_of_a_gateway_share_one_look(start: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Session("0" * 32, "w", (), 0, 0, 0, {}, {}, None)
    looks: list[Queue] = []  # of other gateways, too, that run here

    def look(queue: Queue) -> list[Session]:
        looks.append(queue)
        return [worker]

    monkeypatch.setattr("farm.gateway.worker_sessions.KEPT_SECONDS", 3600.0)
    monkeypatch.setattr(Queue, "sessions", look)
    gateway = start()
    with gateway.client() as http:
        for path in ("/readyz", "/metrics", "/page/farm", "/v1/checkpoints"):
            http.get(path)
        assert post(http, {"prompt": "x"}).status_code == 201
    gateway.app_deps.history.look()
    assert looks.count(gateway.queue) == 1
