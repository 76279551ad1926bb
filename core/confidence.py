"""Confidence bounds of a mean that hold however often one looks (asymptotic confidence sequences).

One-sided at level alpha, after t values with mean m and standard deviation s, tuned to be tightest near t*:

    m +- s radius(t),   radius(t)^2 = 2 (t rho^2 + 1) / (t^2 rho^2) log(1 + sqrt(t rho^2 + 1) / (2 alpha))
    rho^2 = (2 log(1 / alpha) + log(1 + 2 log(1 / alpha))) / t*

Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2021), "Time-uniform central limit theory and asymptotic confidence
sequences". The values may depend on their neighbours if s is their long-run deviation: that of batch means, whose
batches are longer than the dependence (delivery/sequential.py), or Newey and West's (1987), as here. How often the
bounds are wrong is counted in tests/core/test_confidence.py. S values in time order, P series beside each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.errors import DataError

Floats = NDArray[np.float64]

LAGS = 10  # sessions whose dependence the long-run deviation counts; with 5, AR(1) 0.3 fools it too often
FIRST_LOOK = 60  # sessions: the bounds are asymptotic, and a deviation over 10 lags needs some values
TUNED_FOR = 250  # sessions: a year is where a decision should be sharpest


def radius(count: ArrayLike, alpha: float, tuned_for: int = TUNED_FOR) -> Floats:
    """Distance of the one-sided bound from the mean after `count` values, in standard deviations of one value."""
    t = np.asarray(count, dtype=np.float64)
    rho2 = (2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha))) / tuned_for
    grown = t * rho2 + 1
    return np.asarray(np.sqrt(2 * grown / (t * t * rho2) * np.log(1 + np.sqrt(grown) / (2 * alpha))))


@dataclass(frozen=True, eq=False)
class ConfidenceSequence:
    """Arrays [..., S]: mean so far, its one-sided lower and upper bound; infinite before the first look.

    Each bound alone is wrong, at any look, with probability alpha; both together with 2 alpha: for a two-sided
    sequence at level alpha ask for alpha / 2.
    """

    mean: Floats
    low: Floats
    high: Floats


def confidence_sequence(values: Floats, alpha: float, *, lags: int = LAGS) -> ConfidenceSequence:
    """Bounds of the mean of `values` [..., S] after each of them; they may be looked at after every one.

    `lags` is how far values depend on each other, 0 for independent ones. Raises DataError if a value is not finite.
    """
    if not np.isfinite(values).all():
        raise DataError("a confidence sequence needs finite values; find the session that has none")
    count = np.arange(1, values.shape[-1] + 1)
    mean = np.cumsum(values, axis=-1) / count
    width = long_run_deviation(values, lags) * radius(count, alpha)
    width[..., : FIRST_LOOK - 1] = np.inf
    return ConfidenceSequence(mean, mean - width, mean + width)


def long_run_deviation(values: Floats, lags: int = LAGS) -> Floats:
    """Newey and West's deviation [..., S] of the values up to each of them, never below the ordinary one.

    sqrt(v_t t / (t - 2 lags - 1)), v_t = max(g_0, g_0 + 2 sum_l (1 - l / (lags + 1)) g_l), g_l the autocovariances of
    values[..t] about their mean so far. The factor undoes the bias of an estimated mean; infinite while
    t <= 2 lags + 1.
    """
    t = np.arange(1.0, values.shape[-1] + 1)
    values = values - values[..., :1]  # covariances from sums of products: far from zero these would cancel
    total = np.cumsum(values, axis=-1)
    mean = total / t
    own = np.cumsum(values * values, axis=-1) / t - mean * mean
    shared = sum(
        (2 * (1 - lag / (lags + 1)) * _autocovariance(values, total, lag) for lag in range(1, lags + 1)),
        start=np.zeros_like(own),
    )
    variance = np.maximum(own, 0.0) + np.maximum(shared, 0.0)
    deviation = np.sqrt(variance * t / np.maximum(t - 2 * lags - 1, 1))
    deviation[..., : 2 * lags + 1] = np.inf
    return np.asarray(deviation)


def _autocovariance(values: Floats, total: Floats, lag: int) -> Floats:
    """sum_{s <= t} (x_s - m_t)(x_{s - lag} - m_t) / t for every t, from running sums; 0 where t <= lag."""
    t = np.arange(1.0, values.shape[-1] + 1)
    mean = total / t
    found = np.zeros_like(values)
    early, late = total[..., :-lag], total[..., lag:] - total[..., lag - 1 : lag]
    products = np.cumsum(values[..., lag:] * values[..., :-lag], axis=-1)
    at = mean[..., lag:]
    found[..., lag:] = (products - at * (early + late) + (t[lag:] - lag) * at * at) / t[lag:]
    return found
