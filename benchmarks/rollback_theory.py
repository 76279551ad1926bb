"""How many samples the guard's tests need, by theory: what `benchmarks/rollback_detection.py` measures beside.

    hits      expected: Wald's expected sample number (1945), evidence needed / expected evidence of a sample. Bound:
              the 95 % quantile of the CUSUM's run length from its lowest point, as a Markov chain over moments (Brook
              and Evans 1972, "An approach to the probability distribution of CUSUM run length"): a moment adds its
              binomial evidence, capped. A fault begins within a moment: where it has several samples, one moment more
    level     expected and bound: (limit - level before) / leak; the bound has the watch's tick and one sample more
    worse     expected: the batches t at which a confidence sequence's radius is the loss, loss - drop = s r(t), s of a
              batch mean and r of core/confidence.py. Bound: loss - drop >= s (c(t) r(t) + z / sqrt(t)), z the 97.5 %
              quantile of a mean and c that of Newey and West's estimate, its autocorrelations of deviation 1 / sqrt(t)
              (Bartlett 1946); an anytime-valid test pays for its looks, and for early ones most
    drawdown  expected: limit / loss. Bound: the n at which the equity has lost the limit since the fault with
              probability 95 %: n loss - 1.645 s sqrt(n) >= limit

Of outcomes as in benchmarks/rollback_month.py, independent from bar to bar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.rollback_month import DEVIATION_BPS, MARKET, MEAN_BPS, SYMBOLS, Floats
from core.confidence import radius
from core.settings import Triggers
from delivery.sequential import (
    EXCESS_EVIDENCE,
    FIRST_LOOK_BATCHES,
    HEALTHY_FRACTION,
    LAGS,
    MOMENT_EVIDENCE,
    TUNED_FOR_BATCHES,
    evidence,
)

GRID = 0.01  # of the chain's evidence, rounded against the guard
FURTHEST = 100_000  # samples, moments or batches
Z975 = float(stats.norm.ppf(0.975))
Z95 = float(stats.norm.ppf(0.95))
SYMBOLS_SHARE = MARKET + (1 - MARKET) / SYMBOLS  # of a single symbol's variance, in the mean over symbols


@dataclass(frozen=True)
class Promise:
    expected_samples: float
    bound_samples: int  # of the 95 % quantile


def hits_promise(ratio: float, limit: float, per_moment: int) -> Promise:
    """Of hits that come independently with `ratio`, `per_moment` of their samples within MOMENT_S."""
    expected = EXCESS_EVIDENCE / evidence(ratio, 1.0, HEALTHY_FRACTION * limit, limit)
    moments = moments_needed(ratio, limit, per_moment)
    return Promise(expected, (moments + (per_moment > 1)) * per_moment)


def moments_needed(ratio: float, limit: float, per_moment: int, quantile: float = 0.95) -> int:
    """Moments after which the CUSUM has fired with probability `quantile`."""
    hits: Floats = np.arange(per_moment + 1.0)
    share = stats.binom.pmf(hits, per_moment, ratio)
    found = evidence(hits, np.full_like(hits, per_moment), HEALTHY_FRACTION * limit, limit)
    gained = np.minimum(found, MOMENT_EVIDENCE)
    steps = np.floor(gained / GRID + 1e-9).astype(int)
    still: Floats = np.zeros(
        math.ceil(EXCESS_EVIDENCE / GRID)
    )  # probability of each score of those that have not fired
    still[0] = 1.0
    for moments in range(1, FURTHEST):
        still = sum((part * _moved(still, int(step)) for part, step in zip(share, steps, strict=True)), 0 * still)
        if 1 - still.sum() >= quantile:
            return moments
    raise ValueError(f"at a ratio of {ratio} the evidence does not grow")


def _moved(still: Floats, step: int) -> Floats:
    """Every score raised by `step`: what gets beyond the end has fired, what would be below zero is zero."""
    moved = np.zeros_like(still)
    if step >= 0:
        moved[step:] = still[: len(still) - step]
    else:
        moved[: len(still) + step] = still[-step:]
        moved[0] += still[:-step].sum()
    return moved


def level_promise(left: float, per_sample: float, samples_unseen: float) -> Promise:
    """Of a level that rises by `per_sample` and is looked at every `samples_unseen`."""
    expected = left / per_sample
    return Promise(expected, math.ceil(expected + samples_unseen) + 1)


def worse_promise(loss_bps: float, paired: float, triggers: Triggers) -> Promise:
    drop, bars = triggers.performance_drop, triggers.performance_batch / SYMBOLS
    # Of drop champion + champion - challenger, the wider of the two margins: what the arms share, and each one's own.
    variance = drop**2 * paired + ((1 + drop) ** 2 + 1) * (1 - paired)
    deviation_bps = DEVIATION_BPS * math.sqrt(variance * SYMBOLS_SHARE / bars)
    effect = (loss_bps - drop * MEAN_BPS) / deviation_bps
    t = np.arange(FIRST_LOOK_BATCHES, FURTHEST)
    weights = 1 - np.arange(1, LAGS + 1) / (LAGS + 1)
    shared = 2 * Z975 * math.sqrt(float((weights**2).sum())) / np.sqrt(t)
    estimated = np.sqrt((1 + shared) * t / (t - 2 * LAGS - 1))
    needed = radius(t, triggers.performance_alpha, TUNED_FOR_BATCHES)
    batches, most = (int(t[effect >= by][0]) for by in (needed, estimated * needed + Z975 / np.sqrt(t)))
    return Promise(batches * triggers.performance_batch, (most + 1) * triggers.performance_batch)


def drawdown_promise(loss_bps: float, limit_bps: float) -> Promise:
    """Of the book: the mean over the symbols."""
    n = np.arange(1, FURTHEST)
    lost = n * loss_bps - Z95 * DEVIATION_BPS * math.sqrt(SYMBOLS_SHARE) * np.sqrt(n)
    return Promise(SYMBOLS * limit_bps / loss_bps, int(n[lost > limit_bps][0]) * SYMBOLS)
