"""The machines of a simulated farm: they start, crash, are lost and are replaced."""

import random
from typing import NamedTuple

MACHINE_SECONDS = 120.0  # until the cloud has replaced a lost machine
START_SECONDS = 20.0  # of a worker's process: imports and checkpoints
HOUR = 3600.0


class Fleet(NamedTuple):
    """What a farm is made of, and what happens to it."""

    gpus: int  # at most
    machine_gpus: int = 8
    lost_per_hour: float = 0.05  # of all machines, without a notice
    crashes_per_hour: float = 0.01  # of all workers' processes
    least_gpus: int | None = None  # by default as many as at most; otherwise the farm grows

    @property
    def least(self) -> int:
        return self.gpus if self.least_gpus is None else self.least_gpus

    @property
    def machines(self) -> list[range]:
        """The GPUs of each machine."""
        firsts = range(0, self.gpus, self.machine_gpus)
        return [range(first, min(first + self.machine_gpus, self.gpus)) for first in firsts]

    def next_loss(self, draw: random.Random) -> float:
        """Seconds until one machine is lost."""
        return _exponential(draw, self.lost_per_hour)

    def next_crash(self, draw: random.Random) -> float:
        """Seconds until one worker crashes."""
        return _exponential(draw, self.crashes_per_hour)


def _exponential(draw: random.Random, per_hour: float) -> float:
    return draw.expovariate(per_hour / HOUR) if per_hour else float("inf")
