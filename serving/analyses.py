"""What the analyses of a rollout have measured, folded as it comes: each measurement is read once by each process.

A rollout of weeks takes a hundred thousand measurements; whoever watches it asks every second.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import asdict

import sqlalchemy as sa

from delivery import tables
from delivery.analysis import Measurement, MeasurementPhase, RunPhase, Tally, run_phase
from delivery.metrics import Metric
from delivery.plan import Plan
from delivery.progress import Run, runs
from delivery.store import RolloutStore
from delivery.transitions import RolloutState
from serving.schemas_rollout import MEASUREMENTS_MAX, AnalysisResponse, AnalysisRun, Measured, MetricAnalysis


class Analyses:
    """Of the latest attempt that was asked about. Used from threads, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt = 0
        self._folds: dict[tuple[str, float], _Fold] = {}

    def told(self, store: RolloutStore, state: RolloutState, plan: Plan, last: int) -> AnalysisResponse:
        """Every run of the state's attempt, in the order in which they began; reads the database."""
        if not state.attempt:
            return AnalysisResponse(attempt=0, runs=[])
        going = {run.name: run for run in runs(state, plan, time.time())}
        past = {run.name: run for _, one in store.states(state.attempt) for run in runs(one, plan, one.stage_at)}
        with self._lock:
            if self._attempt != state.attempt:
                self._attempt, self._folds = state.attempt, {}
            told = [
                self._fold(run, store.engine).told(last, ended=run.name not in going) for run in (past | going).values()
            ]
        return AnalysisResponse(attempt=state.attempt, runs=told)

    def _fold(self, run: Run, engine: sa.Engine) -> _Fold:
        """Up to date; a run that a resume let begin anew is another one."""
        fold = self._folds.setdefault((run.name, run.since), _Fold(run))
        fold.read(engine, self._attempt)
        return fold


class _Fold:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._metrics = {metric.name: Tally(metric) for metric, _ in run.metrics}
        self._taken: Counter[str] = Counter()
        self._latest: dict[str, deque[Measurement]] = {name: deque(maxlen=MEASUREMENTS_MAX) for name in self._metrics}
        self._read_id = 0

    def read(self, engine: sa.Engine, attempt: int) -> None:
        """Add what is new, in the order in which it was recorded."""
        row = tables.measurement.c
        new = sa.and_(row.attempt == attempt, row.id > self._read_id, row.run == self._run.name)
        columns = (row.id, row.metric, row.at, row.phase, row.value, row.detail, row.samples, row.hits)
        query = sa.select(*columns).where(new).order_by(row.id)
        with engine.connect() as connection:
            for self._read_id, metric, at, phase, *rest in connection.execute(query):
                if at >= self._run.since and metric in self._metrics:
                    self._add(metric, Measurement(at, MeasurementPhase(phase), *rest))

    def _add(self, metric: str, one: Measurement) -> None:
        self._metrics[metric].add(one)
        self._taken[metric] += 1
        self._latest[metric].append(one)

    def told(self, last: int, *, ended: bool) -> AnalysisRun:
        phases = [(tally.metric, _phase(tally, ended=ended)) for tally in self._metrics.values()]
        return AnalysisRun(
            run=self._run.name,
            since=self._run.since,
            ended=ended,
            phase=run_phase(phases),
            metrics=[self._told(metric, phase, last) for metric, phase in phases],
        )

    def _told(self, metric: Metric, phase: RunPhase, last: int) -> MetricAnalysis:
        latest = list(self._latest[metric.name])
        return MetricAnalysis(
            name=metric.name,
            phase=phase,
            dry_run=metric.dry_run,
            critical=metric.critical,
            taken=self._taken[metric.name],
            measurements=[Measured(**asdict(one)) for one in latest[max(0, len(latest) - last) :]],
        )


def _phase(tally: Tally, *, ended: bool) -> RunPhase:
    """A run that was left before its metric was done has said nothing."""
    return RunPhase.INCONCLUSIVE if ended and tally.phase in (RunPhase.PENDING, RunPhase.RUNNING) else tally.phase
