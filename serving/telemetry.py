"""Prometheus metrics of one service. Base units; labels bounded by what is loaded, never a symbol or a request.

Processes that serve one port share a folder (prometheus_client's multiprocess mode): each writes files of its own and
whichever is scraped answers for all. Without a folder, as a single process, a service counts in a registry of its own,
and forgets versions that left it long ago: each has some 200 series. Files cannot forget (prometheus_client).

A file's place on the disk is taken before anything is written: a full disk must not end a process that only counts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess, values

from core.errors import ConfigError
from delivery.losses import Ledger
from delivery.routing import Role
from delivery.transitions import Phase, RolloutState
from serving.batcher import Batcher, Run
from serving.exposition import FOLDER_VARIABLE, Exposition
from serving.ladder import Rung, Transition

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 1.0)
SEGMENT_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODEL = ("model", "version")
GONE_KEPT = 4  # versions that were unloaded: a scraper sees the end of their counts
ARM = (*MODEL, "role")

FILES = ("counter", "histogram", "gauge_liveall", "gauge_livemax", "gauge_livemostrecent", "gauge_livesum")
FILE_BYTES = 1 << 19  # room for the metrics of some fifty models


@contextmanager
def shared_folder(state_dir: Path, port: int) -> Iterator[Path]:
    """An empty folder for the metrics of the service on `port`, gone at the end. Raises ConfigError."""
    folder = state_dir / "metrics" / str(port)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{folder}: no place for metrics: {error}; check its owner, or free the disk") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def share(folder: Path, slot: int) -> None:
    """Count in `folder` from now on, as process number `slot`; what the slot's last process counted stays counted.

    For processes that serve, before their first metric. Raises ConfigError when the disk is full.
    """
    try:
        for name in FILES:
            with (folder / f"{name}_{slot}.db").open("a+b") as file:
                os.posix_fallocate(file.fileno(), 0, FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"{folder}: no place for metrics: {error}; free the disk") from None
    os.environ[FOLDER_VARIABLE] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]  # the library's switch


def forget(folder: Path, slot: int) -> None:
    """The process of `slot` has died: what it said of itself (memory, queue) is no longer so."""
    multiprocess.mark_process_dead(slot, str(folder))  # type: ignore[no-untyped-call]  # the library's


@dataclass(frozen=True)
class _Arm:
    """Children of one model in one role: looking them up costs more than counting."""

    duration: Histogram
    queue: Histogram
    segments: Histogram


class Telemetry:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.exposition = Exposition(registry)

        def counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def histogram(name: str, what: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=registry)

        def gauge(name: str, what: str, labels: tuple[str, ...] = (), *, of_workers: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry, multiprocess_mode=of_workers)  # type: ignore[arg-type]

        self.requests = counter("hrm_inference_requests_total", "Decisions answered", (*ARM, "outcome"))
        self.duration = histogram(
            "hrm_inference_duration_seconds", "A model's own time for one decision", ARM, SECONDS_BUCKETS
        )
        self.queue = histogram(
            "hrm_inference_queue_seconds", "Waiting for the first segment of one decision", ARM, SECONDS_BUCKETS
        )
        self.segments = histogram("hrm_act_segments", "Segments of reasoning", ARM, SEGMENT_BUCKETS)
        self.batch_rows = histogram("hrm_inference_batch_rows", "Rows in one run of a segment", MODEL, ROWS_BUCKETS)
        self.pending = gauge(
            "hrm_inference_pending_requests", "Decisions that wait or are thought about", MODEL, of_workers="livesum"
        )
        self.errors = counter("hrm_inference_errors_total", "Runs without an answer", (*ARM, "code"))
        self.shed = counter("hrm_inference_shed_total", "Runs refused because they would come too late", ARM)
        self.deadlines = counter("hrm_inference_deadline_total", "Decisions cut short by their deadline", ARM)
        self.cache_hits = counter("hrm_inference_cache_hits_total", "Decisions that were known already", ARM)
        self.refusals = counter("hrm_http_refused_total", "Requests refused before they were read", ("code",))
        self.disagreements = counter("hrm_shadow_disagreement_total", "Shadow decisions with another action")
        self.shadow_missed = counter("hrm_shadow_missed_total", "Shadow decisions that came too late to be answered")
        self.records = counter("hrm_decision_records_total", "Decisions by whether they are on record", ("outcome",))
        self.rung = gauge("hrm_ladder_rung", "1 for the rung that decides", ("rung",), of_workers="livemax")
        self.transitions = counter("hrm_ladder_transitions_total", "Steps of the ladder", ("from", "to"))
        self.rollbacks = counter("hrm_rollback_total", "Rollbacks", ("trigger",))
        self.propagation = histogram(
            "hrm_rollback_propagation_seconds", "From rollback in memory to durable", (), Histogram.DEFAULT_BUCKETS
        )
        self.weight = gauge("hrm_rollout_weight_ratio", "Symbols of the challenger", of_workers="livemostrecent")
        self.epoch = gauge("hrm_rollout_epoch", "Grows when who decides changes", of_workers="livemostrecent")
        self.phase = gauge("hrm_rollout_phase", "1 for the current phase", ("phase",), of_workers="livemostrecent")
        self.paused = gauge("hrm_rollout_paused", "1 while it waits for a resume", of_workers="livemostrecent")
        self.state_age = gauge(
            "hrm_rollout_state_age_seconds", "Since the durable state was last read", of_workers="livemax"
        )
        self.losses = {
            name: gauge(f"hrm_{name}_ratio", f"{what}, mean over symbols", ("arm",), of_workers="livemostrecent")
            for name, what in (
                ("equity", "Earned since the rollout began"),
                ("drawdown", "Below the highest equity"),
                ("daily_loss", "Lost on the latest day"),
            )
        }
        self.measurements = counter("hrm_analysis_measurement_total", "What the controller found", ("metric", "phase"))
        self.looks = counter("hrm_controller_looks_total", "Looks of the controller at a rollout that went through")
        self.alert = gauge("hrm_alert_active", "1 while a warning level is passed", ("alert",), of_workers="livemax")
        self.resident = gauge("process_resident_memory_bytes", "Resident set", of_workers="liveall")
        self.device = gauge("process_device_memory_bytes", "Held on GPUs, as the driver says", of_workers="liveall")
        self.outbox_pending = gauge(
            "hrm_outbox_pending", "Rollbacks that Prefect has not been told of", of_workers="livemax"
        )
        self.outbox_oldest = gauge(
            "hrm_outbox_oldest_seconds", "Since the first rollback that Prefect does not know of", of_workers="livemax"
        )
        self.lines_dropped = counter("hrm_log_lines_dropped_total", "Log lines that nobody was there to read")
        # Caches of this object's own, so that two services of one process count apart.
        self._arm = cache(self._make_arm)
        self._answered = cache(self._make_answered)
        self._recorded = {True: self.records.labels("recorded"), False: self.records.labels("failed")}
        self._of_models: tuple[Counter | Histogram | Gauge, ...] = (
            *(self.requests, self.errors, self.shed, self.deadlines, self.cache_hits),
            *(self.duration, self.queue, self.segments, self.batch_rows, self.pending),
        )
        self._watched: set[str] = set()
        self._gone: list[str] = []  # oldest first
        self._lines_dropped = 0

    def ran(self, run: Run, role: str) -> None:
        """Count one run of a model; `role` is champion, challenger, shadow or (of the ladder) probe."""
        arm, decisions = self._arm(run.model_id, role), run.decisions
        if run.error_code == "overloaded":
            self.shed.labels(*run.model_id.split("/"), role).inc()
            return
        arm.duration.observe(run.latency_ms / 1e3)
        arm.queue.observe(run.queued_ms / 1e3)
        if decisions is None:
            self.errors.labels(*run.model_id.split("/"), role, run.error_code).inc()
            return
        arm.segments.observe(int(decisions.segments[0]))
        if run.cached:
            self.cache_hits.labels(*run.model_id.split("/"), role).inc()
        if decisions.halt_reason[0] == "deadline_reached":
            self.deadlines.labels(*run.model_id.split("/"), role).inc()

    def answered(self, model_id: str, role: str, *, fallback: bool) -> None:
        self._answered(model_id, role, fallback).inc()

    def measured(self, metric: str, phase: str) -> None:
        """Of an analysis; both are bounded: by the plans, and by what a measurement can come to."""
        self.measurements.labels(metric, phase).inc()

    def refused(self, code: str) -> None:
        """Count a request that was refused at the door; `code` is the problem's."""
        self.refusals.labels(code).inc()

    def recorded(self, on_record: bool) -> None:
        self._recorded[on_record].inc()

    def stands_on(self, rung: Rung) -> None:
        for each in Rung:
            self.rung.labels(each.label).set(float(each is rung))

    def stepped(self, step: Transition) -> None:
        self.transitions.labels(step.before.label, step.after.label).inc()
        self.stands_on(step.after)

    def rollout(self, state: RolloutState) -> None:
        self.weight.set(state.weight / 100)
        self.epoch.set(state.epoch)
        self.paused.set(float(state.paused))
        for phase in Phase:
            self.phase.labels(phase).set(float(phase is state.phase))

    def lost(self, ledger: Ledger) -> None:
        """What each arm of the rollout has earned and lost so far, as a ratio of its capital."""
        roles: tuple[Role, Role] = ("champion", "challenger")
        for role in roles:
            for name, bps in ledger.of_book(role).items():
                self.losses[name.removesuffix("_bps")].labels(role).set(bps / 1e4)

    def watched(self, models: Mapping[str, Batcher], lines_dropped: int) -> None:
        """What is looked at now and then: every loaded model's queue, and the log's lost lines, ever."""
        self.lines_dropped.inc(lines_dropped - self._lines_dropped)
        self._lines_dropped = lines_dropped
        pending = dict.fromkeys(self._watched, 0) | {
            name: model.waiting + model.thinking for name, model in models.items()
        }
        for model_id, count in pending.items():
            self.pending.labels(*model_id.split("/")).set(count)
        self._gone = [name for name in self._gone if name not in models] + sorted(self._watched - set(models))
        self._watched = set(models)
        while len(self._gone) > GONE_KEPT and FOLDER_VARIABLE not in os.environ:
            self._forget(self._gone.pop(0))

    def untold(self, count: int, oldest_s: float) -> None:
        """Rollbacks that wait in the outbox of this process."""
        self.outbox_pending.set(count)
        self.outbox_oldest.set(oldest_s)

    def alerts(self, active: dict[str, bool]) -> None:
        for name, on in active.items():
            self.alert.labels(name).set(float(on))

    def _forget(self, model_id: str) -> None:
        labels = dict(zip(MODEL, model_id.split("/"), strict=True))
        for metric in self._of_models:
            metric.remove_by_labels(labels)
        self._arm.cache_clear()
        self._answered.cache_clear()

    def _make_arm(self, model_id: str, role: str) -> _Arm:
        labels = (*model_id.split("/"), role)
        return _Arm(self.duration.labels(*labels), self.queue.labels(*labels), self.segments.labels(*labels))

    def _make_answered(self, model_id: str, role: str, fallback: bool) -> Counter:
        return self.requests.labels(*model_id.split("/"), role, "fallback" if fallback else "ok")
