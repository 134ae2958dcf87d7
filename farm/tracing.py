"""OpenTelemetry traces of jobs, from submission to stored object; off unless an endpoint is set.

A job's id has 128 bits, and they are its trace's id. A task's span has an id that follows from its
lease. So every process adds its spans to the right place, and nothing is passed between them.
"""

import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING

from farm.errors import InvalidInput
from farm.job import job_number

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SPAN_BITS = 64
FLUSH_MS = 5000


def configure(process: str) -> None:
    """Send this process's spans where the usual variables of OpenTelemetry say, if they do.

    Args:
        process: what this process is, as ``service.instance.id``.

    Raises:
        InvalidInput: they do, and OpenTelemetry is not installed.
    """
    global _tracing
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if named is None:
        return
    try:
        _tracing = _Tracing(process)
    except ImportError as error:
        raise InvalidInput(
            f"is set, but {error.name} is not installed",
            field=named,
            hint='pip install "amused-farm[opentelemetry]"',
        ) from None


def active() -> bool:
    """Whether spans are sent anywhere."""
    return _tracing is not None


def submitted(name: str, job: str, **facts: str | int) -> None:
    """The first span of a job: from the moment when its id was made until now."""
    if _tracing is not None:
        seconds = time.time() - (job_number(job) >> 80) / 1000
        _tracing.record(name, job, seconds, _root(job), None, facts)


def happened(name: str, job: str, seconds: float, **facts: str | int) -> None:
    """A span below a job's first one: what has just ended, and took so long."""
    if _tracing is not None:
        _tracing.record(name, job, seconds, None, _root(job), facts)


def task_ended(job: str, lease: str, seconds: float, **facts: str | int) -> None:
    """The span of a lease; ``lease`` names it: its key and the number of the attempt."""
    if _tracing is not None:
        _tracing.record("task", job, seconds, _span(lease), _root(job), {"task": lease, **facts})


def in_task(name: str, job: str, lease: str, seconds: float, **facts: str | int) -> None:
    """A span below that of a lease."""
    if _tracing is not None:
        _tracing.record(name, job, seconds, None, _span(lease), facts)


def flush() -> None:
    """Send what has not been sent, before the process ends."""
    if _tracing is not None:
        _tracing.provider.force_flush(FLUSH_MS)


def _root(job: str) -> int:
    return job_number(job) % 2**SPAN_BITS or 1


def _span(lease: str) -> int:
    return int.from_bytes(hashlib.sha256(lease.encode()).digest()[:8], "big") or 1


class _Tracing:
    """The part that needs OpenTelemetry."""

    def __init__(self, process: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        chosen = self._chosen = threading.local()

        class Ids(RandomIdGenerator):
            """A root's ids are those of its job; other spans have their trace's and random ones."""

            def generate_trace_id(self) -> int:
                return int(chosen.trace)

            def generate_span_id(self) -> int:
                return int(chosen.span or super().generate_span_id())

        resource = Resource.create({"service.name": "amused-farm", "service.instance.id": process})
        self.provider = TracerProvider(resource=resource, id_generator=Ids())
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self.provider.get_tracer("farm")

    def record(
        self,
        name: str,
        job: str,
        seconds: float,
        span: int | None,
        parent: int | None,
        facts: dict[str, str | int],
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            TraceFlags,
            set_span_in_context,
        )

        trace = self._chosen.trace = job_number(job)
        self._chosen.span = span
        context = Context()
        if parent is not None:
            above = SpanContext(trace, parent, True, TraceFlags(TraceFlags.SAMPLED))
            context = set_span_in_context(NonRecordingSpan(above), context)
        ended = time.time_ns()
        started = ended - int(max(seconds, 0) * 1e9)
        self._tracer.start_span(
            name, context, attributes={"job": job, **facts}, start_time=started
        ).end(ended)


_tracing: _Tracing | None = None
