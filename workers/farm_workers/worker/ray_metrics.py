"""What a worker measures, for Ray's own metrics: Prometheus then finds it beside Ray's."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray.util.metrics import Gauge

from farm.measures import MEASURES, Measure


class RayMetrics:
    """Each number is a gauge, because Ray's counters take differences only, and lose those that are
    told while its agent is away. A histogram is told as its sum and count.

    Args:
        worker: the name in the label ``worker``.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._gauges: dict[str, Gauge] = {}

    def tell(self, snapshot: Mapping[str, Sequence[Sequence[Any]]]) -> None:
        """Numbers as ``WorkerMetrics.snapshot`` gives them."""
        for measure in MEASURES:
            for ending, labels, value in snapshot.get(measure.name, ()):
                if ending != "_bucket":
                    name = measure.name + (ending if measure.kind == "histogram" else "")
                    named = dict(zip(measure.labels, labels, strict=True))
                    self._gauge(name, measure).set(value, {"worker": self._worker, **named})

    def _gauge(self, name: str, measure: Measure) -> Gauge:
        if name not in self._gauges:
            labels = ("worker", *measure.labels)
            self._gauges[name] = Gauge(name, description=measure.help, tag_keys=labels)
        return self._gauges[name]
