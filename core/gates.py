"""Metrics and limits in, a verdict out. Limits live in settings only and are read here only.

No data is inconclusive, never a pass; a fail beats an inconclusive, an inconclusive beats a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Limit(BaseModel):
    """A bound on one named metric. The metric's name carries its unit and its statistic (`p99_ms`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None
    above: float | None = Field(default=None, description="strictly: what merely equals it has shown nothing")
    why: str = Field(min_length=1, description="what a person reads when the gate says no")

    @model_validator(mode="after")
    def _bounds_something(self) -> Limit:
        if self.min is None and self.max is None and self.above is None:
            raise ValueError(f"limit on {self.metric} needs a min, a max or an above")
        return self


@dataclass(frozen=True)
class Check:
    """One limit applied to one measured value."""

    metric: str
    value: float | None
    limit: str
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class GateResult:
    verdict: Verdict
    checks: tuple[Check, ...]

    @property
    def reason(self) -> str:
        """The first thing that did not pass, in words; empty when the gate passed."""
        for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
            for check in self.checks:
                if check.verdict is verdict:
                    value = "no data" if check.value is None else f"{check.value:.4g}"
                    return f"{check.metric} is {value}, must be {check.limit}: {check.why}"
        return ""


def judge(metrics: Mapping[str, float | None], limits: Iterable[Limit]) -> GateResult:
    """Apply every limit; missing, None and NaN values are inconclusive. An empty gate is inconclusive too."""
    checks = tuple(_check(limit, metrics.get(limit.metric)) for limit in limits)
    verdicts = {check.verdict for check in checks}
    if Verdict.FAIL in verdicts:
        return GateResult(Verdict.FAIL, checks)
    if not checks or Verdict.INCONCLUSIVE in verdicts:
        return GateResult(Verdict.INCONCLUSIVE, checks)
    return GateResult(Verdict.PASS, checks)


def _check(limit: Limit, value: float | None) -> Check:
    described = " and ".join(
        f"{sign} {bound:g}"
        for sign, bound in ((">=", limit.min), ("<=", limit.max), (">", limit.above))
        if bound is not None
    )
    if value is None or math.isnan(value):
        return Check(limit.metric, None, described, Verdict.INCONCLUSIVE, limit.why)
    inside = (
        (limit.min is None or value >= limit.min)
        and (limit.max is None or value <= limit.max)
        and (limit.above is None or value > limit.above)
    )
    return Check(limit.metric, value, described, Verdict.PASS if inside else Verdict.FAIL, limit.why)
