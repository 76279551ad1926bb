"""Tests that may be looked at after every sample.

Errors and slow answers, the guard: a CUSUM (Page 1954) of "ratio = limit" against "ratio = limit / 5", in which a
moment counts for half of what is needed at most (Huber 1965, "A robust version of the probability ratio test"): eight
failures in a row are enough, but not those of one stall of the machine, or of one run of many rows.

The same, the ladder, on windows that forget: the log likelihood ratio (Wald 1945), which keeps one unlucky pair among
the first thirty samples from counting. A window full of healthy samples would hide a sudden collapse for long, so a
CUSUM of "half fail" against "ratio = limit" runs beside it.

Money: a confidence sequence (core/confidence.py) on batch means of paired differences; batches, and the dependence of
batches that are near each other, because decisions near in time earn alike.

How often all of this is wrong in a month, and how soon it is right: benchmarks/rollback_statistics.py.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from core.confidence import radius

Count = TypeVar("Count", float, NDArray[np.float64])

HEALTHY_FRACTION = 0.2  # a ratio of limit / 5 is healthy: the warning level 1 % of the seed's 5 %
SLOW_RATIO = 0.05  # a p95 above the limit means that more than this part was slower
# So small because a window slides, and is judged thousands of times: at alpha 1 % a third of the healthy models would
# be condemned within twenty days.
ALPHA, BETA = 0.001, 0.05
EVIDENCE = math.log((1 - BETA) / ALPHA)  # Wald's upper boundary
COLLAPSE_EVIDENCE = math.log(2e5)  # at the limit itself: one false alarm in 200,000 samples or more
EXCESS_EVIDENCE = 12.0  # in a month of 30,000 samples: where three errors in ten are followed by another, 0.2 % of runs
MOMENT_S = 1.0  # the stall of a machine is over by then
MOMENT_EVIDENCE = EXCESS_EVIDENCE / 2
LAGS = 4  # batches whose dependence the deviation counts: what AR(1) 0.8 leaves in batches of 20
FIRST_LOOK_BATCHES = 10  # the sequence is asymptotic in the number of batches
TUNED_FOR_BATCHES = 50  # where the boundary is tightest


def ratio_exceeded(hits: int, samples: int, limit: float) -> bool:
    """Whether hits / samples is above `limit`, and not by a chance that a healthy ratio would explain."""
    if samples == 0 or hits <= limit * samples:
        return False
    if limit <= 0:
        return True
    return evidence(hits, samples, HEALTHY_FRACTION * limit, limit) > EVIDENCE


def evidence(hits: Count, samples: Count, healthy: float, unhealthy: float) -> Count:
    """Log likelihood ratio of ratio `unhealthy` against `healthy`, 0 < healthy < unhealthy < 1."""
    return hits * math.log(unhealthy / healthy) + (samples - hits) * math.log((1 - unhealthy) / (1 - healthy))


@dataclass
class Collapse:
    """CUSUM of hits at ratio 1/2 against hits at `limit`; fires at COLLAPSE_EVIDENCE."""

    limit: float
    score: float = 0.0

    def add(self, hit: bool) -> None:
        calm = min(max(self.limit, 0.01), 0.4)
        self.score = max(0.0, self.score + math.log(0.5 / calm if hit else 0.5 / (1 - calm)))

    @property
    def fired(self) -> bool:
        return self.score > COLLAPSE_EVIDENCE


@dataclass
class Excess:
    """Whether hits have become as frequent as `limit`: CUSUM of that ratio against the healthy one, moment by moment.

    At limit 0 the first hit fires; at 1 none does.
    """

    limit: float
    _before: float = 0.0  # score when the moment began
    _moment: float = 0.0  # evidence since
    _began: float = -math.inf

    def __post_init__(self) -> None:
        tested = 0 < self.limit < 1
        ratios = HEALTHY_FRACTION * self.limit, self.limit
        self._hit, self._miss = (evidence(hit, 1, *ratios) for hit in (1, 0)) if tested else (0.0, 0.0)
        self._most = MOMENT_EVIDENCE
        if self.limit <= 0:
            self._hit = self._most = EXCESS_EVIDENCE

    def add(self, hit: bool, at: float) -> None:
        """`at`: s, never earlier than before."""
        if at - self._began >= MOMENT_S:
            self._before, self._moment, self._began = self.score, 0.0, at
        self._moment = max(-self._before, self._moment + (self._hit if hit else self._miss))

    @property
    def score(self) -> float:
        return self._before + min(self._moment, self._most)

    @property
    def fired(self) -> bool:
        return self.score >= EXCESS_EVIDENCE


@dataclass
class UpperBound:
    """Anytime-valid upper confidence bound of a mean, one-sided at level `alpha`.

    Of values that depend on their neighbours: the deviation is core.confidence's long-run one, from running sums.
    """

    alpha: float
    count: int = 0
    _origin: float = 0.0  # the first value: sums of squares far from it would cancel
    _total: float = 0.0  # of values less the origin, as all that follows
    _squares: float = 0.0
    _products: list[float] = field(default_factory=lambda: [0.0] * LAGS)  # with the value 1, 2, ... before
    _first: list[float] = field(default_factory=list)
    _last: deque[float] = field(default_factory=lambda: deque(maxlen=LAGS))

    def add(self, value: float) -> None:
        if not self.count:
            self._origin = value
        value -= self._origin
        self.count += 1
        self._total += value
        self._squares += value * value
        for lag, before in enumerate(reversed(self._last)):
            self._products[lag] += value * before
        self._last.append(value)
        if len(self._first) < LAGS:
            self._first.append(value)

    @property
    def mean(self) -> float:
        return self._origin + self._total / max(1, self.count)

    @property
    def bound(self) -> float:
        """Infinite until there is enough data."""
        if self.count < FIRST_LOOK_BATCHES:
            return math.inf
        return self.mean + self.deviation * float(radius(self.count, self.alpha, TUNED_FOR_BATCHES))

    @property
    def deviation(self) -> float:
        """core.confidence.long_run_deviation of all values; of more than 2 LAGS + 1."""
        t, mean = self.count, self._total / self.count
        own = self._squares / t - mean * mean
        shared = sum(2 * (1 - lag / (LAGS + 1)) * self._autocovariance(lag) for lag in range(1, LAGS + 1))
        return math.sqrt((max(own, 0.0) + max(shared, 0.0)) * t / (t - 2 * LAGS - 1))

    def _autocovariance(self, lag: int) -> float:
        t, mean = self.count, self._total / self.count
        early, late = self._total - sum(list(self._last)[-lag:]), self._total - sum(self._first[:lag])
        return (self._products[lag - 1] - mean * (early + late) + (t - lag) * mean * mean) / t


@dataclass
class PerformanceTest:
    """Is E[challenger] below E[champion] - drop * |E[champion]|, in bps per decision?

    With m the champion's mean, -drop * |m| is the smaller of -drop * m and +drop * m; so the claim holds exactly
    when both d + drop * champion and d - drop * champion have a negative mean, d = challenger - champion.
    """

    drop: float
    alpha: float
    batch: int
    outcomes: int = 0
    _rows: list[tuple[float, float]] = field(default_factory=list)
    _bounds: tuple[UpperBound, UpperBound] = field(init=False)
    difference: UpperBound = field(init=False)

    def __post_init__(self) -> None:
        self._bounds = (UpperBound(self.alpha), UpperBound(self.alpha))
        self.difference = UpperBound(self.alpha)

    def add(self, champion_bps: float, challenger_bps: float) -> None:
        self.outcomes += 1
        self._rows.append((champion_bps, challenger_bps))
        if len(self._rows) < self.batch:
            return
        champion = sum(row[0] for row in self._rows) / self.batch
        difference = sum(row[1] for row in self._rows) / self.batch - champion
        self._rows.clear()
        self.difference.add(difference)
        for sign, bound in zip((1.0, -1.0), self._bounds, strict=True):
            bound.add(difference + sign * self.drop * champion)

    @property
    def degraded(self) -> bool:
        return all(bound.bound < 0 for bound in self._bounds)

    def relative_drop(self) -> float:
        """How far the challenger's mean lies below the champion's, relative to it; 0 without enough data."""
        if self.difference.count < FIRST_LOOK_BATCHES:
            return 0.0
        scaled_champion = (self._bounds[0].mean - self._bounds[1].mean) / 2  # drop * mean(champion)
        champion = abs(scaled_champion) / self.drop if self.drop else 0.0
        return -self.difference.mean / champion if champion > 0 else 0.0
