"""What a worker measures: written by the worker, read by the gateway for Prometheus.

The names are those that Prometheus sees, without the endings that its format adds to counters and
histograms. No label holds text from a request: a lane is a checkpoint and a size, and a worker
reports at most ``MAX_LANES`` of them.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

MAX_LANES = 32  # of a worker; the others are counted together
OTHERS = "others"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Measure(NamedTuple):
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


PICTURES = Measure(
    "farm_worker_pictures", "counter", "Pictures made, or failed", ("lane", "outcome")
)
ROW_STEPS = Measure("farm_worker_row_steps", "counter", "Row-steps of ended rows", ("lane",))
ENGINE_SECONDS = Measure(
    "farm_worker_engine_seconds", "counter", "Seconds in the engine, shared by its lanes", ("lane",)
)
TENANT_SECONDS = Measure(
    "farm_worker_tenant_seconds",
    "counter",
    "Seconds in the engine, shared by the rows of tenants",
    ("tenant",),
)
STEPS = Measure("farm_worker_steps", "counter", "Denoising steps of a tile")
SLOTS_BUSY = Measure("farm_worker_slots_busy", "counter", "Half-slots with a row in them, stepped")
SLOTS_COMPUTED = Measure(
    "farm_worker_slots_computed", "counter", "Half-slots that were computed, with rows or without"
)
RENDER_SECONDS = Measure(
    "farm_worker_render_seconds", "histogram", "From a row's start in the engine to its end"
)
ENCODE_SECONDS = Measure("farm_worker_encode_seconds", "histogram", "To encode a picture")
UPLOAD_SECONDS = Measure(
    "farm_worker_upload_seconds", "histogram", "To store a picture, with all attempts"
)
CACHE = Measure(
    "farm_worker_cache", "counter", "Inputs found in memory, or not", ("cache", "outcome")
)
PENDING_BYTES = Measure(
    "farm_worker_pending_bytes",
    "gauge",
    "Bytes that wait to be stored; engines stop at 512 MiB",
)
GPU_MEMORY = Measure(
    "farm_worker_gpu_memory_bytes", "gauge", "Memory of the worker's GPU", ("kind",)
)

MEASURES = (
    PICTURES,
    ROW_STEPS,
    ENGINE_SECONDS,
    TENANT_SECONDS,
    STEPS,
    SLOTS_BUSY,
    SLOTS_COMPUTED,
    RENDER_SECONDS,
    ENCODE_SECONDS,
    UPLOAD_SECONDS,
    CACHE,
    PENDING_BYTES,
    GPU_MEMORY,
)


class Told(NamedTuple):
    """One number of a measure."""

    ending: str  # of its name: ``_total``, ``_bucket``, ``_sum``, ``_count`` or nothing
    labels: Mapping[str, str]
    value: float


def read(stats: Mapping[str, Any], measure: Measure) -> list[Told]:
    """What a heartbeat tells of a measure; nothing where a worker of another version tells it in
    another way."""
    try:
        return [
            Told(ending, dict(zip(_names(measure, ending), labels, strict=True)), float(value))
            for ending, labels, value in stats["measures"][measure.name]
        ]
    except (KeyError, TypeError, ValueError):
        return []


def _names(measure: Measure, ending: str) -> tuple[str, ...]:
    return (*measure.labels, "le") if ending == "_bucket" else measure.labels
