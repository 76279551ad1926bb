"""95 % confidence intervals of what the seeds found: over seeds where there are several, else over sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from trading.bootstrap import Interval
from trading.evaluation import Evaluation, score_interval


def over_seeds(found: Sequence[Interval]) -> Interval:
    """Mean over seeds with its t interval, which includes the luck of training; one seed keeps its own interval."""
    if len(found) == 1:
        return found[0]
    values = np.array([interval.value for interval in found])
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def score_difference(ours: Evaluation, theirs: Evaluation) -> Interval:
    """Ours less theirs on the same sessions, as a fraction of the optimum, paired by session."""
    assert ours.regret_bps is not None and theirs.regret_bps is not None and ours.optimal_bps is not None  # noqa: S101 - callers know the optimum
    unsaved = ours.optimal_bps - (theirs.regret_bps - ours.regret_bps)
    return score_interval(replace(ours, regret_bps=unsaved))


def named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, "ci95_low": interval.ci95_low, "ci95_high": interval.ci95_high}
