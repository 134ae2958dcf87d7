"""A clock that stands still while its own process does."""

import time

MOST_SECONDS = 1.0  # that count between two looks at the clock


class AwakeClock:
    """Seconds since the clock was made, without pauses.

    A container that is frozen and a machine that sleeps stop everything alike. What was silent
    meanwhile must not be taken for dead, so of a long gap between two looks only a little counts.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._looked = time.monotonic()

    def __call__(self) -> float:
        before, self._looked = self._looked, time.monotonic()
        self._seconds += min(self._looked - before, MOST_SECONDS)
        return self._seconds


class Stillness:
    """For how many seconds a number has not changed, without pauses of the process that looks.

    It is called with the number about once a second.
    """

    def __init__(self) -> None:
        self._clock = AwakeClock()
        self._number: float | None = None
        self._since = 0.0

    def __call__(self, number: float) -> float:
        now = self._clock()
        if number != self._number:
            self._number, self._since = number, now
        return now - self._since
