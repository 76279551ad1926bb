"""Spans of decisions, at a collector that is there, slow, gone or unwanted."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from test_workers import question, until, with_workers

from core.errors import ConfigError
from core.settings import Settings
from flows.drill_models import FAULT_LEVEL
from flows.processes import free_port
from flows.service_process import ServiceProcess, service_process
from serving import tracing

ROOT = Path(__file__).parent.parent.parent
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector(delay_s: float = 0.0) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP/HTTP receiver: its address and what it has been sent."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(delay_s)
            got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", got
        server.shutdown()


def environ(endpoint: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def spans(got: list[ExportTraceServiceRequest]) -> list[Any]:
    return [
        span
        for request in got
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def decide(service: ServiceProcess, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    sent = {"Authorization": f"Bearer {service.token}", **(headers or {})}
    answer = httpx.post(f"{service.url}/v1/decisions", json=question(**fields), headers=sent, trust_env=False)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


def decision_lines(service: ServiceProcess) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "decision"]


def test_a_decision_is_a_span_of_its_callers_trace(settings: Settings) -> None:
    with (
        collector() as (endpoint, got),
        service_process(settings, champion="hrm/v1", environ=environ(endpoint)) as live,
    ):
        answer = decide(live, {"traceparent": f"00-{TRACE}-{PARENT}-01"}, depth=3)
        until(lambda: len(spans(got)) == 1)
        (span,) = spans(got)
        assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE, PARENT, "decide")
        facts = values(span.attributes)
        assert (facts["hrm.request_id"], facts["hrm.model"], facts["hrm.role"]) == (
            answer["request_id"],
            "hrm",
            "champion",
        )
        assert facts["hrm.action"] == answer["action_name"]
        assert [event.name for event in span.events] == ["queue", "segments"]
        assert values(span.events[1].attributes)["hrm.segments"] == 3
        times = [span.start_time_unix_nano, *(event.time_unix_nano for event in span.events), span.end_time_unix_nano]
        assert times == sorted(times)
        assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(answer["latency_ms"] * 1e6, abs=2)
        assert values(got[0].resource_spans[0].resource.attributes)["service.name"] == "hrm-serving"
        assert [line["trace_id"] for line in decision_lines(live)] == [TRACE]


def test_a_caller_without_a_trace_gets_one_of_its_own_and_one_who_samples_none_gets_none(settings: Settings) -> None:
    with (
        collector() as (endpoint, got),
        service_process(settings, champion="hrm/v1", environ=environ(endpoint)) as live,
    ):
        decide(live, {"traceparent": f"00-{TRACE}-{PARENT}-00"})  # not sampled upstream
        decide(live, {"traceparent": "nonsense"})
        until(lambda: len(spans(got)) == 1)
        ids = [line["trace_id"] for line in decision_lines(live)]
        assert ids == [TRACE, spans(got)[0].trace_id.hex()]
        assert spans(got)[0].parent_span_id == b""


def test_a_decision_that_no_model_made_is_a_span_in_error(settings: Settings) -> None:
    with (
        collector() as (endpoint, got),
        service_process(settings, champion="nan/v1", environ=environ(endpoint)) as live,
    ):
        assert decide(live, level=FAULT_LEVEL + 1)["role"] == "safe"
        until(lambda: len(spans(got)) == 1)
        (span,) = spans(got)
        assert (span.status.code, values(span.attributes)["error.type"]) == (2, "output_not_finite")
        assert "fallback" in [event.name for event in span.events]


def test_workers_trace_too_and_send_what_is_left_when_they_end(settings: Settings) -> None:
    with collector() as (endpoint, got):
        unhurried = environ(endpoint) | {"OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with service_process(with_workers(settings, 2), champion="hrm/v1", environ=unhurried) as live:
            for _ in range(6):
                decide(live)
            live.process.terminate()
            live.process.wait(30)
        assert len(spans(got)) == 6


@pytest.mark.parametrize("delay_s", [None, 30.0])
def test_a_collector_that_is_gone_or_stuck_delays_neither_decisions_nor_the_end(
    settings: Settings, delay_s: float | None
) -> None:
    with collector(delay_s or 0.0) as (endpoint, _):
        address = endpoint if delay_s else f"http://127.0.0.1:{free_port()}"
        with service_process(settings, champion="hrm/v1", environ=environ(address)) as live:
            for _ in range(50):
                assert decide(live)["latency_ms"] < 5000  # one export that was waited for would take longer
            started = time.monotonic()
            live.process.terminate()
            assert live.process.wait(30) == 0
            assert time.monotonic() - started < 15  # an exporter left to itself would retry for longer


def test_without_a_collector_no_tracer_is_imported() -> None:
    code = (
        "import sys, serving.__main__\nfrom serving import tracing\n"
        "assert not tracing.start({}) and not tracing.start({'OTEL_EXPORTER_OTLP_ENDPOINT': ''})\n"
        "assert not tracing.start({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://x', 'OTEL_SDK_DISABLED': 'true'})\n"
        "assert tracing.decided(None, None) is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exp'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_a_collector_without_the_extra_is_told_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match="extra `otel`"):
        tracing.start({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
