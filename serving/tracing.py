"""Decisions as OpenTelemetry spans, for whoever collects them. Off, and not even imported, unless the standard variable
OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) is set; needs the extra `otel`.

One span per decision, a child of the request's W3C `traceparent`, with events for the steps. Everything else is the
SDK's, by its own variables: sampling, service name, headers, the bounded queue that a thread of its own exports. A
collector that is gone costs spans, never time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import ConfigError
from serving.batcher import Run
from serving.schemas import Decision

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME = "hrm-serving"  # unless OTEL_SERVICE_NAME says otherwise
FLUSH_S = 1.0  # for the last spans, when the service ends
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_provider: TracerProvider | None = None  # of this process, as OpenTelemetry's own is


def start(environ: Mapping[str, str] = os.environ) -> bool:
    """Begin to trace if the environment asks for it; whether it does. Raises ConfigError without the extra."""
    global _provider  # noqa: PLW0603 - a process has one
    if not any(environ.get(name) for name in ENDPOINTS) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            f"{ENDPOINTS[0]} is set, but {error.name} is not installed; install the extra `otel`, or unset the variable"
        ) from None
    name = environ.get("OTEL_SERVICE_NAME", SERVICE_NAME)
    # Not at exit: that would wait for a collector that is gone. `stop` gives it its time.
    _provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return True


def stop() -> None:
    """Send what is left, for no longer than FLUSH_S."""
    global _provider  # noqa: PLW0603 - a process has one
    if _provider is not None:
        last = threading.Thread(target=_provider.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_S)
        _provider = None


def traced(app: ASGIApp) -> ASGIApp:
    """The app, with the caller's `traceparent` as the parent of what is decided."""
    from opentelemetry.context import attach, detach
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()

    async def with_parent(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        token = attach(propagator.extract(headers))
        try:
            await app(scope, receive, send)
        finally:
            detach(token)

    return with_parent


def decided(decision: Decision, run: Run | None) -> str | None:
    """Export a decision that was made this moment; its trace id (32 hex digits), or None when nobody traces.

    `run` is the last one, the answer's own unless no model answered; None where none was asked.
    """
    if _provider is None:
        return None
    from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

    now = time.time_ns()
    began = now - _ns(decision.latency_ms)
    joined = now - _ns(run.latency_ms if run is not None else 0.0)
    span = _provider.get_tracer(__name__).start_span("decide", kind=SpanKind.SERVER, start_time=began)
    if span.is_recording():
        span.set_attributes(_attributes(decision))
        if decision.fallback:
            span.add_event("fallback", {"hrm.role": decision.role}, timestamp=joined)
        if run is not None:
            span.add_event("queue", {"hrm.queued_ms": run.queued_ms}, timestamp=joined)
            thought = {"hrm.segments": decision.segments, "hrm.think_ms": run.latency_ms}
            span.add_event("segments", thought, timestamp=now)
        if run is not None and run.error_code is not None:
            span.set_attribute("error.type", run.error_code)
            span.set_status(Status(StatusCode.ERROR, run.error))
        span.end(end_time=now)
    return format_trace_id(span.get_span_context().trace_id)


def _attributes(decision: Decision) -> dict[str, str | int | float | bool]:
    """No semantic convention knows of trading decisions; ours are under `hrm.`."""
    return {
        "hrm.request_id": decision.request_id,
        "hrm.symbol": decision.symbol,
        "hrm.model": decision.model,
        "hrm.model_version": decision.model_version,
        "hrm.role": decision.role,
        "hrm.action": decision.action_name,
        "hrm.quantity": decision.quantity,
        "hrm.halt_reason": decision.halt_reason,
        "hrm.epoch": decision.epoch,
        "hrm.fallback": decision.fallback,
    }


def _ns(ms: float) -> int:
    return int(ms * 1e6)
