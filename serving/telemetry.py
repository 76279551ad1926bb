"""Prometheus metrics of one service, in a registry of its own. Base units; labels bounded by what is loaded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.batcher import Run
from serving.transitions import Phase, RolloutState

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 1.0)
SEGMENT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
MODEL = ("model", "version", "role")


class Telemetry:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "hrm_inference_requests_total", "Decisions answered", (*MODEL, "outcome"), registry=registry
        )
        self.duration = Histogram(
            "hrm_inference_duration_seconds",
            "A model's own time for one decision",
            MODEL,
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.errors = Counter(
            "hrm_inference_errors_total", "Runs without an answer", (*MODEL, "code"), registry=registry
        )
        self.segments = Histogram(
            "hrm_act_segments", "Segments of reasoning", MODEL, buckets=SEGMENT_BUCKETS, registry=registry
        )
        self.disagreements = Counter(
            "hrm_shadow_disagreement_total", "Shadow decisions with another action", registry=registry
        )
        self.shadow_missed = Counter(
            "hrm_shadow_missed_total", "Shadow decisions that came too late to be answered", registry=registry
        )
        self.rollbacks = Counter("hrm_rollback_total", "Rollbacks", ("trigger",), registry=registry)
        self.propagation = Histogram(
            "hrm_rollback_propagation_seconds", "From rollback in memory to durable", registry=registry
        )
        self.weight = Gauge("hrm_rollout_weight_ratio", "Symbols of the challenger", registry=registry)
        self.epoch = Gauge("hrm_rollout_epoch", "Grows when who decides changes", registry=registry)
        self.phase = Gauge("hrm_rollout_phase", "1 for the current phase", ("phase",), registry=registry)
        self.alert = Gauge("hrm_alert_active", "1 while a warning level is passed", ("alert",), registry=registry)
        self.resident = Gauge("process_resident_memory_bytes", "Resident set", registry=registry)

    def ran(self, run: Run, role: str) -> None:
        """Count one run of a model; `role` is champion, challenger or shadow."""
        labels = (*run.model_id.split("/"), role)
        self.duration.labels(*labels).observe(run.latency_ms / 1e3)
        if run.decisions is None:
            self.errors.labels(*labels, run.error_code).inc()
        else:
            self.segments.labels(*labels).observe(int(run.decisions.segments[0]))

    def answered(self, model_id: str, role: str, *, fallback: bool) -> None:
        self.requests.labels(*model_id.split("/"), role, "fallback" if fallback else "ok").inc()

    def rollout(self, state: RolloutState) -> None:
        self.weight.set(state.weight / 100)
        self.epoch.set(state.epoch)
        for phase in Phase:
            self.phase.labels(phase).set(float(phase is state.phase))

    def alerts(self, active: dict[str, bool]) -> None:
        for name, on in active.items():
            self.alert.labels(name).set(float(on))

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
