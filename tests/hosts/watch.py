"""When the farm's workers came and went, as the queue tells it: ten times a second, by ``probe.py``
on one of the hosts."""

import contextlib
import itertools
import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Life(NamedTuple):
    """A worker's session."""

    session: str
    worker: str
    tasks: frozenset[str]

    @property
    def held(self) -> int:
        return len(self.tasks)


class Sighting(NamedTuple):
    """What was seen from a moment on, until the next sighting."""

    at: float  # of ``time.monotonic``, which all hosts share
    lives: tuple[Life, ...]
    running: int  # workers that a scheduler has placed and sees running
    answered: bool = True  # the queue


def given_back(seen: Sequence[Sighting], since: float) -> float | None:
    """Seconds until the first session ended; None if none has."""
    for before, after in _changes(seen, since):
        if {life.session for life in before.lives} - {life.session for life in after.lives}:
            return after.at - since
    return None


def elsewhere(seen: Sequence[Sighting], since: float) -> float | None:
    """Seconds until all that ended sessions held was held by others; None where they held nothing
    that came to another one."""
    lost: dict[str, str] = {}  # task -> the session that it was taken from
    taken: dict[str, float] = {}
    for before, after in _changes(seen, since):
        living = {life.session for life in after.lives}
        for life in before.lives:
            if life.session not in living:
                lost.update(dict.fromkeys(life.tasks, life.session))
        for life in after.lives:
            for task in life.tasks & lost.keys():
                if life.session != lost[task]:
                    taken.setdefault(task, after.at - since)
    return max(taken.values(), default=None)


def complete(
    seen: Sequence[Sighting], count: int, since: float, *, placed: bool = False
) -> float | None:
    """Seconds until there were so many sessions for good, and with ``placed`` until the scheduler
    saw as many workers running, too; None if there are not."""
    found: float | None = None
    for one in _from(seen, since):
        if one.answered and len(one.lives) == count and (one.running == count or not placed):
            found = max(one.at - since, 0.0) if found is None else found
        else:
            found = None
    return found


def _from(seen: Sequence[Sighting], since: float) -> list[Sighting]:
    """With what was true at that moment."""
    earlier = sum(one.at <= since for one in seen)
    return list(seen[max(earlier - 1, 0) :])


def _changes(seen: Sequence[Sighting], since: float) -> Iterator[tuple[Sighting, Sighting]]:
    """Of sightings while the queue answered."""
    answered = [one for one in _from(seen, since) if one.answered]
    return itertools.pairwise(answered)


class Watch:
    """Collects sightings while it is entered."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._seen: list[Sighting] = []
        self._lock = threading.Lock()

    @property
    def seen(self) -> list[Sighting]:
        with self._lock:
            return list(self._seen)

    @property
    def lives(self) -> tuple[Life, ...]:
        """The sessions now; empty while the queue does not answer."""
        seen = self.seen
        return seen[-1].lives if seen else ()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with subprocess.Popen(
            self._command,
            env=dict(self._environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as probe:
            reader = threading.Thread(target=self._read, args=(probe,), daemon=True)
            reader.start()
            try:
                yield
            finally:
                assert probe.stdin is not None
                probe.stdin.close()
                reader.join()

    def _read(self, probe: "subprocess.Popen[str]") -> None:
        assert probe.stdout is not None
        for line in probe.stdout:
            row = json.loads(line)
            told = row["told"]
            lives = [
                Life(session, worker, frozenset(tasks))
                for session, worker, tasks in (told["lives"] if told else ())
            ]
            running = told["running"] if told else 0
            with self._lock:
                self._seen.append(Sighting(row["at"], tuple(lives), running, told is not None))
