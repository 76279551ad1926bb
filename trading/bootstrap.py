"""Intervals of what sessions earned: stationary bootstrap (Politis and Romano 1994, arch), paired by session.

Blocks keep the dependence of neighbouring sessions; their mean length is Politis and White's (2004, 2009) optimum,
the longest over the columns and their difference. S sessions in time order, arrays [S] in bps or any unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from arch.bootstrap import SPA, StationaryBootstrap, optimal_block_length
from numpy.typing import NDArray

from core.errors import DataError

Floats = NDArray[np.float64]

REPETITIONS = 1000
YEAR = 252  # sessions: annual Sharpe ratios
FEWEST_FOR_BLOCKS = 20  # sessions: no block length can be estimated from fewer, they are drawn one by one


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % confidence interval."""

    value: float
    ci95_low: float
    ci95_high: float


def sharpe(per_session: Floats) -> float:
    """Mean over deviation of one session, not annualised; 0 for a series that never varies, such as staying flat."""
    return float(_sharpes(per_session[:, None])[0])


def mean_interval(per_session: Floats, seed: int = 0) -> Interval:
    """Mean over sessions with its interval."""
    return _interval(float(per_session.mean()), resampled(per_session[:, None], _means, seed)[:, 0])


def sharpe_interval(per_session: Floats, seed: int = 0) -> Interval:
    """Annual Sharpe ratio with its interval."""
    found = resampled(per_session[:, None], _sharpes, seed)[:, 0]
    return _interval(sharpe(per_session) * YEAR**0.5, found * YEAR**0.5)


def sharpe_difference_interval(ours: Floats, theirs: Floats, seed: int = 0) -> Interval:
    """Annual Sharpe ratio of ours [S] less that of theirs [S] on the same sessions, resampled together."""
    found = resampled(np.stack([ours, theirs], axis=1), _sharpes, seed)
    value = sharpe(ours) - sharpe(theirs)
    return _interval(value * YEAR**0.5, (found[:, 0] - found[:, 1]) * YEAR**0.5)


def worse_probability(difference: Floats, seed: int = 0) -> float:
    """Share of the resampled means of paired differences [S] that lie below zero; those at zero count half."""
    means = resampled(difference[:, None], _means, seed)[:, 0]
    return float((means < 0).mean() + 0.5 * (means == 0).mean())


def best_of_many(benchmark: Floats, candidates: Floats, seed: int = 0) -> float:
    """p-value of "none of the candidates earns more than the benchmark": Hansen's SPA (2005), the consistent one.

    `benchmark` [S] and `candidates` [S, K] are returns. Candidates that are the benchmark itself say nothing and are
    left out; if none is left the p-value is 1. Raises DataError with fewer than FEWEST_FOR_BLOCKS sessions, or if a
    return is not finite.
    """
    _require_finite(candidates)
    _require_finite(benchmark)
    if len(benchmark) < FEWEST_FOR_BLOCKS:
        raise DataError(
            f"{len(benchmark)} sessions: telling the best of many from luck takes {FEWEST_FOR_BLOCKS}; bring more",
            code="too_few_sessions",
        )
    excess = candidates - benchmark[:, None]
    others = candidates[:, np.ptp(excess, axis=0) > 0]
    if others.shape[1] == 0:
        return 1.0
    block = max(block_length(column) for column in excess.T)
    test = SPA(-benchmark, -others, block_size=block, reps=REPETITIONS, seed=np.random.default_rng(seed))
    test.compute()
    return float(test.pvalues["consistent"])


def resampled(columns: Floats, statistic: Callable[[Floats], Floats], seed: int) -> Floats:
    """`statistic` [REPETITIONS, ...] of resampled sessions of `columns` [S, K]; a row stays together."""
    _require_finite(columns)
    differences = columns[:, :1] - columns[:, 1:]
    block = max(block_length(column) for column in (*columns.T, *differences.T))
    bootstrap = StationaryBootstrap(block, columns, seed=np.random.default_rng(seed))
    return np.asarray(bootstrap.apply(statistic, REPETITIONS))


def block_length(per_session: Floats) -> int:
    """Mean block length for a series [S], from 1 to half of it."""
    sessions = len(per_session)
    if sessions < FEWEST_FOR_BLOCKS or np.ptp(per_session) == 0:
        return 1
    with np.errstate(divide="ignore", invalid="ignore"):  # of a series that hardly ever varies: 0 / 0
        estimate = float(optimal_block_length(per_session)["stationary"].iloc[0])
    return int(np.clip(np.ceil(estimate), 1, sessions // 2)) if np.isfinite(estimate) else 1


def _require_finite(per_session: Floats) -> None:
    if per_session.size == 0 or not np.isfinite(per_session).all():
        raise DataError("an interval needs at least one session, and a finite number for each", code="no_sessions")


def _means(columns: Floats) -> Floats:
    return np.asarray(columns.mean(axis=0))


def _sharpes(columns: Floats) -> Floats:
    varies = np.ptp(columns, axis=0) > 0
    mean, deviation = columns.mean(axis=0), columns.std(axis=0, ddof=1 if len(columns) > 1 else 0)
    return np.asarray(np.divide(mean, deviation, out=np.zeros_like(mean), where=varies))


def _interval(value: float, found: Floats) -> Interval:
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(value, float(low), float(high))
