"""Measurements in, the phase of an analysis run out: pure folds, so a stored run can be judged again at any time.

    metric    FAILED, INCONCLUSIVE or ERROR once a limit is passed, and for good; SUCCESSFUL once it has been successful
              `consecutiveSuccessLimit` times in a row, or where there is no such limit at least once in `count`
              measurements; an error is no measurement, and ends a row of successes
    run       the worst of its metrics; those in dryRun do not count

What says nothing is never successful: not a run of errors, nor one of inconclusive measurements however many are
tolerated, nor one that was ended before it was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from core.gates import Verdict
from delivery.judges import Args, Judged, Reading
from delivery.metrics import Analysis, Metric
from delivery.plan import Plan


class MeasurementPhase(StrEnum):
    SUCCESSFUL = "successful"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"  # the provider had no answer


_OF_VERDICT = {
    Verdict.PASS: MeasurementPhase.SUCCESSFUL,
    Verdict.FAIL: MeasurementPhase.FAILED,
    Verdict.INCONCLUSIVE: MeasurementPhase.INCONCLUSIVE,
}


@dataclass(frozen=True)
class Measurement:
    at: float  # Unix seconds
    phase: MeasurementPhase
    value: float | None
    detail: str
    samples: int | None = None  # behind the value, and of them the hits; None of an error, and of older releases
    hits: int | None = None


class RunPhase(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"


_WORST_FIRST = (
    RunPhase.FAILED,
    RunPhase.ERROR,
    RunPhase.INCONCLUSIVE,
    RunPhase.RUNNING,
    RunPhase.PENDING,
    RunPhase.SUCCESSFUL,
)


_GOING_ON = frozenset({RunPhase.PENDING, RunPhase.RUNNING})


@dataclass
class Tally:
    """The fold of one metric's measurements, oldest first: each is looked at once, however long the run."""

    metric: Metric
    phase: RunPhase = RunPhase.PENDING
    latest: Measurement | None = None
    successful: int = 0
    failed: int = 0
    inconclusive: int = 0
    successes_in_a_row: int = 0
    errors_in_a_row: int = 0

    def add(self, one: Measurement) -> None:
        """Once it has ended nothing changes its phase any more."""
        self.latest = one
        if self.phase not in _GOING_ON:
            return
        self.successful += one.phase is MeasurementPhase.SUCCESSFUL
        self.failed += one.phase is MeasurementPhase.FAILED
        self.inconclusive += one.phase is MeasurementPhase.INCONCLUSIVE
        self.successes_in_a_row = self.successes_in_a_row + 1 if one.phase is MeasurementPhase.SUCCESSFUL else 0
        self.errors_in_a_row = self.errors_in_a_row + 1 if one.phase is MeasurementPhase.ERROR else 0
        self.phase = self._phase()

    def _phase(self) -> RunPhase:
        metric, wanted = self.metric, self.metric.consecutive_success_limit
        if self.failed > metric.failure_limit >= 0:
            return RunPhase.FAILED
        if self.inconclusive > metric.inconclusive_limit >= 0:
            return RunPhase.INCONCLUSIVE
        if self.errors_in_a_row > metric.consecutive_error_limit:
            return RunPhase.ERROR
        if wanted and self.successes_in_a_row >= wanted:
            return RunPhase.SUCCESSFUL
        if metric.count and self.successful + self.failed + self.inconclusive >= metric.count:
            return RunPhase.SUCCESSFUL if self.successful and not wanted else RunPhase.INCONCLUSIVE
        return RunPhase.RUNNING

    def due(self, started_at: float, now: float) -> bool:
        """Whether the next measurement is to be taken now; a clock that was set back delays nothing."""
        if self.phase not in _GOING_ON:
            return False
        if self.latest is None:
            return now - started_at >= self.metric.initial_delay
        return not 0 <= now - self.latest.at < self.metric.interval

    @property
    def for_promotion(self) -> bool:
        """Whether a metric that watches in the background has nothing against a promotion now.

        Its latest measurement is successful; inconclusive will do where the plan tolerates any number of those. Nothing
        measured yet, an error or a tolerated failure will not.
        """
        if self.metric.dry_run or self.phase is RunPhase.SUCCESSFUL:
            return True
        if self.phase is not RunPhase.RUNNING or self.latest is None:
            return False
        tolerated = self.latest.phase is MeasurementPhase.INCONCLUSIVE and self.metric.inconclusive_limit < 0
        return self.latest.phase is MeasurementPhase.SUCCESSFUL or tolerated


def measurement(judged: Judged, at: float, reading: Reading) -> Measurement:
    """What was read is kept whole, but for arms (delivery/earned.py): so it can be judged again, by another plan."""
    value = reading.value if judged.value is None else judged.value
    return Measurement(at, _OF_VERDICT[judged.verdict], value, judged.detail, reading.samples, reading.hits)


def tallied(metric: Metric, taken: Iterable[Measurement]) -> Tally:
    tally = Tally(metric)
    for one in taken:
        tally.add(one)
    return tally


def metric_phase(metric: Metric, taken: Sequence[Measurement], *, ended: bool = False) -> RunPhase:
    """Where a metric's measurements, oldest first, have led to; `ended`: no more will be taken.

    A metric with count 0 and no consecutiveSuccessLimit has no end of its own: RUNNING until it is ended or fails.
    """
    phase = tallied(metric, taken).phase
    return RunPhase.INCONCLUSIVE if ended and phase in _GOING_ON else phase


def run_phase(phases: Iterable[tuple[Metric, RunPhase]]) -> RunPhase:
    """The worst of the metrics that count; INCONCLUSIVE where none does."""
    counted = {phase for metric, phase in phases if not metric.dry_run}
    return next((phase for phase in _WORST_FIRST if phase in counted), RunPhase.INCONCLUSIVE)


def due(metric: Metric, taken: Sequence[Measurement], started_at: float, now: float) -> bool:
    """Whether the next measurement is to be taken now; Unix seconds."""
    return tallied(metric, taken).due(started_at, now)


def resolved(plan: Plan, analysis: Analysis) -> tuple[tuple[Metric, Args], ...]:
    """The metrics of an analysis, their providers' placeholders filled in, each with the arguments of its template."""
    found = []
    for ref in analysis.templates:
        template = plan.analysis_templates[ref.name]
        args = ref.arguments(template)
        for metric in template.metrics:
            found.append((metric.model_copy(update={"provider": metric.provider.filled(args)}), args))
    return tuple(found)
