"""Traces of jobs, as a collector of OpenTelemetry gets them."""

import http.server
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from harness import Gateway, post, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from farm import tracing
from farm.errors import InvalidInput
from farm.job import job_id, job_number
from workers import Workers


class Collector(http.server.ThreadingHTTPServer):
    """Takes spans over HTTP, and keeps them."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Take)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Take(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at what came."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Gets the spans of this process."""
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setattr(tracing, "_tracing", None)
        tracing.configure("test")
        yield collector
        assert tracing._tracing is not None
        tracing._tracing.provider.shutdown()
        collector.shutdown()


def facts(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_jobs_trace_leads_from_its_submission_to_its_stored_objects(
    gateway: Gateway, workers: Workers, http: httpx2.Client, collector: Collector
) -> None:
    workers.start()
    job = post(http, {"prompt": "a dog", "num_images": 3, "checkpoint": "fake"}).json()["id"]

    def all_spans() -> list[Any]:
        tracing.flush()
        return [span for span in collector.spans if facts(span)["job"] == job]

    until(lambda: Counter(span.name for span in all_spans())["task"] == 2, 60)
    spans = all_spans()
    assert Counter(span.name for span in spans) == {
        "submit": 1, "task": 2, "render": 3, "store": 3,
    }  # fmt: skip
    assert {span.trace_id.hex() for span in spans} == {f"{job_number(job):032x}"}
    [root] = [span for span in spans if not span.parent_span_id]
    assert root.name == "submit"
    tasks = {span.span_id: span for span in spans if span.name == "task"}
    assert {span.parent_span_id for span in tasks.values()} == {root.span_id}
    inside = [span for span in spans if span.name in ("render", "store")]
    [drawn] = {span.parent_span_id for span in inside}
    assert facts(tasks[drawn])["pictures"] == 3
    stored = {facts(span)["object"] for span in spans if span.name == "store"}
    assert len(stored) == 3
    assert stored <= {entry.key for entry in gateway.store.list("")}
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in spans)


def test_a_job_in_pieces_has_a_span_for_each(
    http: httpx2.Client, gateway: Gateway, collector: Collector
) -> None:
    job = http.post("/v1/jobs", params={"open": "true"}).json()["id"]
    for piece in range(2):
        http.put(
            f"/v1/jobs/{job}/chunks/{piece}",
            params={"first": piece},
            content=b'{"prompt": "x"}\n',
            headers={"Content-Type": "application/x-ndjson"},
        ).raise_for_status()
    tracing.flush()
    names = Counter(span.name for span in collector.spans if facts(span)["job"] == job)
    assert names == {"open": 1, "piece": 2}


def test_without_an_endpoint_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracing, "_tracing", None)
    tracing.configure("test")
    tracing.submitted("submit", job_id())
    assert tracing._tracing is None


def test_an_endpoint_without_the_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidInput) as refused:
        tracing.configure("test")
    assert refused.value.field == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert "amused-farm[opentelemetry]" in (refused.value.hint or "")


def test_the_number_of_a_job_is_that_of_its_id() -> None:
    number = job_number("j0-" + "0" * 25 + "z")
    assert number == 31
    assert job_number(job_id(1.5)) >> 80 == 1500
