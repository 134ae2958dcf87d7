"""How fast a worker is, in its log: for those who look at Ray's dashboard and nothing else."""

import logging
import time
from collections.abc import Callable

TELL_SECONDS = 30.0

log = logging.getLogger(__name__)


class Throughput:
    """A line for every half minute in which pictures were stored. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._pictures = 0

    def stored(self, pictures: int = 1) -> None:
        """So many more have been stored."""
        self._pictures += pictures

    def tell(self) -> None:
        """Write the line if it is time."""
        seconds = self._clock() - self._since
        if seconds >= TELL_SECONDS:
            if self._pictures:
                told = self._pictures, seconds, self._pictures / seconds
                log.info("stored %d pictures in the last %.0f s (%.1f/s)", *told)
            self._since, self._pictures = self._clock(), 0
