"""How much of a backtest is luck: trials deflated, choices overfitted, and how long until one would know.

    deflated Sharpe   Phi((SR - SR_0) sqrt(S - 1) / sqrt(1 - skew SR + (kurtosis - 1) / 4 SR^2))
                      SR_0 = sqrt(V) ((1 - g) Phi^-1(1 - 1 / N) + g Phi^-1(1 - 1 / (N e))), g = Euler's constant:
                      the best Sharpe ratio of N trials without skill. Bailey and Lopez de Prado (2014)
    overfitting       CSCV: how often the best of N configurations in one half of the time is below the median in
                      the other half. Bailey, Borwein, Lopez de Prado, Zhu (2017)
    track record      sessions after which the same Sharpe ratio would be significant. Bailey, Lopez de Prado (2012)

Sharpe ratios are per session, not annualised. S sessions, N configurations or trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from core.confidence import FIRST_LOOK, radius
from core.errors import DataError
from trading.bootstrap import YEAR, sharpe

Floats = NDArray[np.float64]

BLOCKS = 16  # of CSCV: 12,870 halves
NEVER = 100 * YEAR  # sessions: what takes longer is never decided


@dataclass(frozen=True)
class Trials:
    """Every set of weights that was judged on validation sessions before one was chosen.

    `sharpes` are per session; `unrecorded` were judged before their Sharpe ratios were kept; without `complete` there
    may have been more.
    """

    sharpes: tuple[float, ...] = ()
    unrecorded: int = 0
    complete: bool = True

    @property
    def count(self) -> int:
        """At least 1: what is judged is a trial itself."""
        return max(1, len(self.sharpes) + self.unrecorded)

    @property
    def variance(self) -> float | None:
        """Of the Sharpe ratios; None where fewer than two are known."""
        return float(np.var(self.sharpes, ddof=1)) if len(self.sharpes) > 1 else None

    def more(self, sharpes: tuple[float, ...]) -> Trials:
        return Trials(self.sharpes + sharpes, self.unrecorded, self.complete)

    def __str__(self) -> str:
        return f"{'' if self.complete else 'at least '}{self.count} trial{'' if self.count == 1 else 's'}"


def best_sharpe_by_luck(trials: Trials, sessions: int) -> float:
    """SR_0: the expected best Sharpe ratio of so many trials without skill, 0 for one.

    Where the trials' own Sharpe ratios are not known they vary as luck alone makes them, 1 / (sessions - 1).
    """
    if trials.count == 1:
        return 0.0
    variance = 1 / (sessions - 1) if trials.variance is None else trials.variance
    common, rare = stats.norm.ppf([1 - 1 / trials.count, 1 - 1 / (trials.count * math.e)])
    return float(math.sqrt(variance) * ((1 - np.euler_gamma) * common + np.euler_gamma * rare))


def deflated_sharpe(per_session: Floats, trials: Trials) -> float:
    """Probability that the true Sharpe ratio of returns [S] is above what the best of the trials has by luck."""
    sessions = _enough(per_session)
    excess = sharpe(per_session) - best_sharpe_by_luck(trials, sessions)
    return float(stats.norm.cdf(excess * math.sqrt(sessions - 1) / _sharpe_deviation(per_session)))


def minimum_track_record(per_session: Floats, trials: Trials, confidence: float) -> int | None:
    """Sessions after which the deflated Sharpe ratio would reach `confidence` if all went on as it did, or None."""
    excess = sharpe(per_session) - best_sharpe_by_luck(trials, _enough(per_session))
    if excess <= 0:
        return None
    needed = 1 + (stats.norm.ppf(confidence) * _sharpe_deviation(per_session) / excess) ** 2
    return math.ceil(needed) if needed <= NEVER else None


def _sharpe_deviation(per_session: Floats) -> float:
    """Of the estimated Sharpe ratio, times sqrt(S - 1); 1 for a series that never varies."""
    if np.ptp(per_session) == 0:
        return 1.0
    ratio, skew = sharpe(per_session), float(stats.skew(per_session))
    kurtosis = float(stats.kurtosis(per_session, fisher=False))
    variance = 1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2
    return math.sqrt(max(variance, 1e-9))  # returns of two values only can have none at all


def _enough(per_session: Floats) -> int:
    if len(per_session) < 2 or not np.isfinite(per_session).all():
        raise DataError(
            f"{len(per_session)} sessions: a Sharpe ratio needs two at least, and a finite return in each",
            code="too_few_sessions",
        )
    return len(per_session)


def overfitting_probability(returns: Floats, blocks: int = BLOCKS) -> float:
    """Probability that the best of N configurations, returns [S, N], is below the median of all on other sessions.

    1/2 for configurations of equal worth. Configurations are ranked by Sharpe ratio, a rank at the median counts
    half. Raises DataError with fewer than two configurations or than two sessions in a block, or if one is not finite.
    """
    sessions, configurations = returns.shape
    if configurations < 2 or sessions < 2 * blocks or blocks % 2 or not np.isfinite(returns).all():
        raise DataError(
            f"{sessions} sessions of {configurations} configurations: choosing among them can only be judged with at "
            f"least two, {2 * blocks} sessions (twice an even number of blocks) and a finite return in each",
            code="too_few_sessions",
        )
    parts = [(len(part), part.sum(axis=0), (part**2).sum(axis=0)) for part in np.array_split(returns, blocks)]
    counts, sums, squares = (np.array(column, dtype=np.float64) for column in zip(*parts, strict=True))
    chosen = np.zeros((math.comb(blocks, blocks // 2), blocks))
    for row, half in enumerate(combinations(range(blocks), blocks // 2)):
        chosen[row, list(half)] = 1.0
    inside = _block_sharpes(chosen @ counts, chosen @ sums, chosen @ squares)
    outside = _block_sharpes((1 - chosen) @ counts, (1 - chosen) @ sums, (1 - chosen) @ squares)
    of_best = np.take_along_axis(outside, inside.argmax(axis=1)[:, None], axis=1)
    below, above = (outside < of_best).sum(axis=1), (outside > of_best).sum(axis=1)
    return float(((below < above) + 0.5 * (below == above)).mean())


def _block_sharpes(count: Floats, total: Floats, squares: Floats) -> Floats:
    """[H, N] Sharpe ratios of H halves from count [H], sums [H, N] and sums of squares [H, N] of their sessions."""
    mean = total / count[:, None]
    variance = np.maximum(squares / count[:, None] - mean**2, 0.0)
    varies = variance > 1e-12 * mean**2
    return np.divide(mean, np.sqrt(variance), out=np.zeros_like(mean), where=varies)


def sessions_to_decide(effect: float, deviation: float, *, alpha: float, power: float) -> int | None:
    """Sessions until the confidence sequence excludes zero with probability `power`, None for never.

    `effect` is the mean and `deviation` the long-run deviation of a session's difference. The smallest S with
    |effect| - deviation radius(S) >= deviation Phi^-1(power) / sqrt(S).
    """
    sessions = np.arange(FIRST_LOOK, NEVER + 1)
    margin = radius(sessions, alpha) + stats.norm.ppf(power) / np.sqrt(sessions)
    decided = abs(effect) >= deviation * margin
    return int(sessions[decided.argmax()]) if decided.any() and effect != 0 else None


def sessions_of_one_look(effect: float, deviation: float, *, alpha: float, power: float) -> int | None:
    """The same for a test that is looked at once, planned beforehand: (z_alpha + z_power)^2 deviation^2 / effect^2."""
    if effect == 0:
        return None
    needed = ((stats.norm.ppf(1 - alpha) + stats.norm.ppf(power)) * deviation / effect) ** 2
    return max(1, math.ceil(needed)) if needed <= NEVER else None
