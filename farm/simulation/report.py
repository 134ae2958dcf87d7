"""What came out of a simulation, and what it says about one Valkey server."""

import collections
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

COMFORTABLE = 0.7  # of the server's one core; above it waits grow quickly
CELLS_FOR = (1_000, 10_000)  # GPUs


class Usage:
    """What happened, by seconds of the virtual clock."""

    def __init__(self) -> None:
        self.rendered = 0  # pictures of data sets
        self.rendered_in_vain = 0  # pictures whose worker was lost before its task was stored
        self.machines_lost = self.crashes = 0
        self.urgent_started: list[float] = []  # seconds from the submission
        self.urgent_stored: list[float] = []
        self.passes: list[float] = []  # real seconds that the scheduler took for each
        self._busy: dict[int, float] = collections.defaultdict(float)  # GPU-seconds
        self._gpus: list[tuple[float, int]] = []  # when how many came or went

    def busy(self, start: float, end: float) -> None:
        """An engine worked."""
        while start < end:
            second = int(start)
            stop = min(end, second + 1.0)
            self._busy[second] += stop - start
            start = stop

    def gpus_come(self, now: float, count: int) -> None:
        self._gpus.append((now, count))

    def gpus_go(self, now: float, count: int) -> None:
        self._gpus.append((now, -count))

    @property
    def most_gpus(self) -> int:
        """How many there were at a time."""
        changes = sorted(self._gpus, key=lambda change: change[0])
        return max(itertools.accumulate(count for _, count in changes))

    def gpu_seconds(self, until: float) -> float:
        """Of all GPUs that were there, until a time."""
        return sum(count * max(until - at, 0.0) for at, count in self._gpus)

    def share(self, until: float) -> float:
        """GPU-seconds with work over those of all GPUs that were there, until a time."""
        present = self.gpu_seconds(until)
        whole = sum(seconds for at, seconds in self._busy.items() if at < int(until))
        part = self._busy.get(int(until), 0.0) * (until - int(until))
        return (whole + part) / present if present else 0.0


class Report(NamedTuple):
    """One run."""

    gpus: int
    seconds: float  # of the virtual clock, until the last job ended
    backlog_until: float  # from then on some engines had nothing to do
    submitted: int  # pictures of data sets
    tasks: int
    usage: Usage
    leases: int
    calls: dict[str, int]
    server_seconds: float  # of its processor, for all that
    real_seconds: float

    @property
    def busy(self) -> float:
        """Share of the GPUs with work, as long as there was work for all."""
        return self.usage.share(self.backlog_until)

    @property
    def server_load(self) -> float:
        """Seconds of the server's processor for each second of the farm."""
        return self.server_seconds / self.seconds

    @property
    def gpus_of_one_server(self) -> int:
        """What one server serves comfortably: heartbeats, leases and plans grow with the GPUs."""
        return int(self.gpus * COMFORTABLE / self.server_load)

    def cells(self, gpus: int) -> int:
        """Farms with a server of their own that so many GPUs need."""
        return math.ceil(gpus / max(self.gpus_of_one_server, 1))

    def facts(self) -> dict[str, Any]:
        """Everything as one JSON object."""
        usage = self.usage
        made = usage.rendered + usage.rendered_in_vain
        return {
            "gpus": self.gpus,
            "pictures": usage.rendered,
            "failed": self.submitted - usage.rendered,
            "seconds": round(self.seconds, 2),
            "pictures_per_second": round(usage.rendered / self.seconds, 1),
            "busy_share": round(self.busy, 4),
            "busy_share_to_the_end": round(usage.share(self.seconds), 4),
            "gpus_most": usage.most_gpus,
            "gpu_hours": round(usage.gpu_seconds(self.seconds) / 3600, 2),
            "tasks": self.tasks,
            "leases_per_second": round(self.leases / self.seconds, 1),
            "machines_lost": usage.machines_lost,
            "crashes": usage.crashes,
            "rendered_again_share": round(usage.rendered_in_vain / max(made, 1), 5),
            "urgent": len(usage.urgent_stored),
            "urgent_started_seconds": percentiles(usage.urgent_started),
            "urgent_stored_seconds": percentiles(usage.urgent_stored),
            "scheduler_pass_seconds_here": percentiles(usage.passes),
            "server_calls_per_second": {
                name: round(count / self.seconds, 1) for name, count in sorted(self.calls.items())
            },
            "server_load": round(self.server_load, 3),
            "gpus_of_one_server": self.gpus_of_one_server,
            "cells": {str(gpus): self.cells(gpus) for gpus in CELLS_FOR},
            "real_seconds": round(self.real_seconds, 1),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99; empty where there are too few."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3)}
