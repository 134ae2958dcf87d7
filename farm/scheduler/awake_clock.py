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
