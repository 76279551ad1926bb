"""Tests that may be looked at after every sample.

Errors and slow answers: the log likelihood ratio of "ratio = limit" against "ratio = limit / 5" (Wald 1945), which
keeps one unlucky pair among the first thirty samples from condemning a healthy model. A window full of healthy
samples would hide a sudden collapse for long, so a CUSUM (Page 1954) of "half fail" against "ratio = limit" runs
beside it: six failures in a row are enough, and at the limit itself it is wrong at most once in 200,000 samples.

Money: a confidence sequence (core/confidence.py) on batch means of paired differences; batches, because decisions
near in time earn alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from core.confidence import radius

HEALTHY_FRACTION = 0.2  # a ratio of limit / 5 is healthy: the warning level 1 % of the seed's 5 %
# Wald's upper boundary: alpha 0.1 %, beta 5 %. So small because a window slides, and is judged thousands of times: at
# alpha 1 % a third of the healthy models would be condemned within twenty days.
EVIDENCE = math.log((1 - 0.05) / 0.001)
COLLAPSE_EVIDENCE = math.log(2e5)  # at the limit itself: one false alarm in 200,000 samples or more
FIRST_LOOK_BATCHES = 10  # the sequence is asymptotic in the number of batches
TUNED_FOR_BATCHES = 50  # where the boundary is tightest


def ratio_exceeded(hits: int, samples: int, limit: float) -> bool:
    """Whether hits / samples is above `limit`, and not by a chance that a healthy ratio would explain."""
    if samples == 0 or hits <= limit * samples:
        return False
    if limit <= 0:
        return True
    healthy = HEALTHY_FRACTION * limit
    evidence = hits * math.log(limit / healthy) + (samples - hits) * math.log((1 - limit) / (1 - healthy))
    return evidence > EVIDENCE


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
class UpperBound:
    """Anytime-valid upper confidence bound of a mean, one-sided at level `alpha`; Welford's running moments."""

    alpha: float
    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        delta = value - self.mean
        self.mean += delta / self.count
        self._squares += delta * (value - self.mean)

    @property
    def bound(self) -> float:
        """Infinite until there is enough data."""
        t = self.count
        if t < FIRST_LOOK_BATCHES:
            return math.inf
        deviation = math.sqrt(self._squares / (t - 1))
        return self.mean + deviation * float(radius(t, self.alpha, TUNED_FOR_BATCHES))


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
