"""A reading in, a verdict out. No data is inconclusive, never a pass.

    threshold     the metric's conditions; failure first, and neither of two is inconclusive
    sprt          Wald (1945): log likelihood ratio of "unhealthy" to "healthy" after n runs with k hits. FAIL above
                  log(1 / alpha), PASS below log(beta). At these (Ville's) boundaries either error keeps its rate
                  however often and however long one looks; it assumes that hits come independently
    mann_whitney  one look, at the end of a step. Kayenta's rule on the shift of Hodges and Lehmann (1963), by which
                  the challenger is worse: FAIL if it is at least what is allowed and the lower end of its interval,
                  one-sided at alpha, is above a quarter of it. PASS means that nothing was found
    conf_seq      any number of looks (core/confidence.py). d = challenger - champion, worse than tolerated where
                  E[d + allowed champion] and E[d - allowed champion] are both below zero. FAIL if both upper bounds
                  are, PASS if either lower bound is above zero

The last two see means of batches of consecutive samples, which depend on each other far less than the samples do.
Error rates, counted by simulation: docs/adr/0021-plan-and-statistics.md, tests/delivery/test_judges.py. S samples,
T batches; the last axis is time, so the statistics take many series at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from core.confidence import long_run_deviation, radius
from core.gates import Verdict
from delivery.conditions import compile_condition
from delivery.metrics import Judge, JudgeKind, Metric
from delivery.sequential import LAGS, TUNED_FOR_BATCHES, evidence

Floats = NDArray[np.float64]
Args = Mapping[str, float | str]

KAYENTA_TOLERANCE = 0.25  # of the shift: the interval must stay so far away from none
FEWEST_RANKED = 20  # batch means per arm, for which the ranks' normal approximation is good
MOST_RANKED = 500  # of them: all pairs of 500 and 500 are sorted in 20 ms; more samples make larger batches
FIRST_LOOK = 20  # batches: with 10 the sequence, which is asymptotic, is wrong too often
LARGEST = 1e100  # of a sample: squares stay finite
ROUNDING = 1e-12  # of the champion's mean size: less is the arithmetic's


@dataclass(frozen=True, eq=False)
class Reading:
    """What a provider knows. None and empty arrays are no data."""

    value: float | None = None  # threshold
    samples: int = 0  # behind `value`; minSamples is judged on it
    hits: int = 0  # sprt: of `samples`
    champion: Floats | None = None  # [S]; for conf_seq row i is paired with the challenger's row i
    challenger: Floats | None = None  # [S]


@dataclass(frozen=True)
class Judged:
    verdict: Verdict
    value: float | None  # what is shown and plotted
    detail: str  # one line for a person: what was compared with what


def judge(metric: Metric, reading: Reading, args: Args) -> Judged:
    """The verdict on one reading. Whatever the reading holds it answers; only data can pass."""
    missing = _missing(metric, reading)
    if missing:
        return Judged(Verdict.FAIL if metric.on_no_data == "fail" else Verdict.INCONCLUSIVE, None, missing)
    return JUDGES[metric.judge.kind](metric, reading, args)


def _missing(metric: Metric, reading: Reading) -> str:
    """Why this is no data, in words; empty when it is."""
    if metric.judge.kind == "threshold":
        samples, problem = reading.samples, _no_value(reading)
    elif metric.judge.kind == "sprt":
        samples, problem = reading.samples, _no_counts(reading)
    else:
        arms = [np.zeros(0) if arm is None else np.asarray(arm) for arm in (reading.champion, reading.challenger)]
        samples, problem = min(arm.size for arm in arms), _no_arms(arms, paired=metric.judge.kind == "conf_seq")
    if not problem and samples < metric.min_samples:
        problem = f"{samples} samples, minSamples is {metric.min_samples}"
    return f"no data: {problem}" if problem else ""


def _no_value(reading: Reading) -> str:
    known = reading.value is not None and math.isfinite(reading.value)
    return "" if known else f"the value is {reading.value}"


def _no_counts(reading: Reading) -> str:
    known = 0 <= reading.hits <= reading.samples and reading.samples > 0
    return "" if known else f"{reading.hits} hits of {reading.samples} samples"


def _no_arms(arms: list[Floats], *, paired: bool) -> str:
    champion, challenger = arms
    if any(arm.ndim != 1 or not arm.size or not (np.abs(arm) < LARGEST).all() for arm in arms):
        return "an arm has no samples, or some that are no finite numbers"
    if paired and champion.size != challenger.size:
        return f"{champion.size} samples of the champion have no pairs among {challenger.size} of the challenger"
    return ""


def _threshold(metric: Metric, reading: Reading, args: Args) -> Judged:
    value = reading.value
    assert value is not None  # noqa: S101 - else it is missing
    for text, verdict in ((metric.failure_condition, Verdict.FAIL), (metric.success_condition, Verdict.PASS)):
        if text is None:
            continue
        holds = compile_condition(text).holds(value, args)
        if holds is None:
            return Judged(Verdict.INCONCLUSIVE, value, f"{value:g}: {text} has no answer")
        if holds:
            return Judged(verdict, value, f"{value:g}: {text}")
    if metric.failure_condition is None:
        return Judged(Verdict.FAIL, value, f"{value:g}: not {metric.success_condition}")
    if metric.success_condition is None:
        return Judged(Verdict.PASS, value, f"{value:g}: not {metric.failure_condition}")
    return Judged(Verdict.INCONCLUSIVE, value, f"{value:g}: neither {' nor '.join(metric.conditions)}")


def _sprt(metric: Metric, reading: Reading, args: Args) -> Judged:
    test, ratio = metric.judge, reading.hits / reading.samples
    found = evidence(reading.hits, reading.samples, test.healthy, test.unhealthy)
    fails, passes = sprt_boundaries(test)
    detail = (
        f"{reading.hits} of {reading.samples}: evidence {found:.2f} for {test.unhealthy:g} against {test.healthy:g}, "
        f"fails above {fails:.2f}, passes below {passes:.2f}"
    )
    return Judged(_three_way(failed=found > fails, passed=found < passes), ratio, detail)


def sprt_boundaries(test: Judge) -> tuple[float, float]:
    """Log likelihood ratio above which it fails, and below which it passes."""
    return math.log(1 / test.alpha), math.log(test.beta)


def _mann_whitney(metric: Metric, reading: Reading, args: Args) -> Judged:
    test, (champion, challenger) = metric.judge, _arms(reading)
    batch = max(test.batch, math.ceil(max(champion.size, challenger.size) / MOST_RANKED))
    ranked = batch_means(champion, batch), batch_means(challenger, batch)
    shown = float(challenger.mean() - champion.mean())
    fewest = min(means.size for means in ranked)
    if fewest < FEWEST_RANKED:
        return Judged(Verdict.INCONCLUSIVE, shown, f"{fewest} batches of {batch}, {FEWEST_RANKED} are needed")
    worse, shift = worse_by_rank(*ranked, test)
    detail = f"shift {shift:.4g} over {ranked[0].size} and {ranked[1].size} batches of {batch}, {_tolerated(test)}"
    return Judged(_three_way(failed=bool(worse), passed=not worse), shown, detail)


def worse_by_rank(champion: Floats, challenger: Floats, test: Judge) -> tuple[NDArray[np.bool_], Floats]:
    """Kayenta's rule on [..., T] and [..., T']: whether the challenger is worse [...], and its shift [...]."""
    bad = 1.0 if test.direction == "increase" else -1.0
    shift, low = hodges_lehmann(bad * champion, bad * challenger, test.alpha)
    level = np.abs(champion.mean(axis=-1))
    effect = bad * (challenger.mean(axis=-1) - champion.mean(axis=-1))
    large = effect >= np.maximum(test.allowed * level, ROUNDING * np.abs(champion).mean(axis=-1))
    return np.asarray(large & (low > KAYENTA_TOLERANCE * np.abs(shift))), bad * shift


def hodges_lehmann(champion: Floats, challenger: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Shift of `challenger` [..., T'] against `champion` [..., T], and its lower bound, one-sided at alpha: [...] each.

    The median of all differences of pairs, and that one of them which the rank-sum test at level alpha (normal
    approximation, continuity corrected) just does not reject.
    """
    pairs = challenger[..., :, None] - champion[..., None, :]
    n, m = pairs.shape[-2:]
    pairs = pairs.reshape(*pairs.shape[:-2], n * m)
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    at = math.floor(n * m / 2 - NormalDist().inv_cdf(1 - alpha) * deviation - 0.5)
    middle = (n * m - 1) // 2, n * m // 2
    pairs = np.partition(pairs, (max(at, 0), *middle), axis=-1)
    low = pairs[..., at] if at >= 0 else np.full(pairs.shape[:-1], -np.inf)
    return (pairs[..., middle[0]] + pairs[..., middle[1]]) / 2, low


def _conf_seq(metric: Metric, reading: Reading, args: Args) -> Judged:
    test, (champion, challenger) = metric.judge, _arms(reading)
    means = batch_means(champion, test.batch), batch_means(challenger, test.batch)
    shown, batches = float((challenger - champion).mean()), means[0].size
    if batches < FIRST_LOOK:
        return Judged(Verdict.INCONCLUSIVE, shown, f"{batches} batches of {test.batch}, {FIRST_LOOK} are needed")
    low, high = (float(bound[-1]) for bound in margin_bounds(*means, test))
    detail = (
        f"difference {shown:.4g} over {batches} batches of {test.batch}, {_tolerated(test)}: it is better than that "
        f"by {low:.4g} to {high:.4g}"
    )
    return Judged(_three_way(failed=high < 0, passed=low > 0), shown, detail)


def margin_bounds(champion: Floats, challenger: Floats, test: Judge) -> tuple[Floats, Floats]:
    """Lower and upper bounds [..., T], after each batch, of how much better than just tolerable the challenger is.

    From batch means [..., T]. The margin is max(E[d + allowed champion], E[d - allowed champion]): negative exactly
    where the challenger's mean is worse than the champion's by more than `allowed` of its size. Each of the two bounds
    is wrong, at any look, with probability alpha. Infinite before the first look; 0 within rounding.
    """
    good = -1.0 if test.direction == "increase" else 1.0
    difference, tolerated = good * (challenger - champion), test.allowed * champion
    margins = np.stack([difference + tolerated, difference - tolerated])
    t = np.arange(1, margins.shape[-1] + 1)
    mean, deviation = np.cumsum(margins, axis=-1) / t, long_run_deviation(margins, LAGS)
    low = (mean - deviation * radius(t, test.alpha / 2, TUNED_FOR_BATCHES)).max(axis=0)  # either of two may err
    high = (mean + deviation * radius(t, test.alpha, TUNED_FOR_BATCHES)).max(axis=0)
    rounding = ROUNDING * np.abs(champion).mean(axis=-1, keepdims=True)
    early = t < FIRST_LOOK
    return (
        np.where(early, -np.inf, np.where(np.abs(low) > rounding, low, 0.0)),
        np.where(early, np.inf, np.where(np.abs(high) > rounding, high, 0.0)),
    )


def batch_means(values: Floats, batch: int) -> Floats:
    """Means [..., S // batch] of consecutive samples; an unfinished batch waits."""
    whole = values.shape[-1] // batch
    means: Floats = values[..., : whole * batch].reshape(*values.shape[:-1], whole, batch).mean(axis=-1)
    return means


def _arms(reading: Reading) -> tuple[Floats, Floats]:
    assert reading.champion is not None and reading.challenger is not None  # noqa: S101 - else they are missing
    return np.asarray(reading.champion, dtype=np.float64), np.asarray(reading.challenger, dtype=np.float64)


def _tolerated(test: Judge) -> str:
    return f"{test.direction} by {100 * test.allowed:g} % of the champion's tolerated"


def _three_way(*, failed: bool, passed: bool) -> Verdict:
    if failed:
        return Verdict.FAIL
    return Verdict.PASS if passed else Verdict.INCONCLUSIVE


JUDGES: Mapping[JudgeKind, Callable[[Metric, Reading, Args], Judged]] = {
    "threshold": _threshold,
    "sprt": _sprt,
    "mann_whitney": _mann_whitney,
    "conf_seq": _conf_seq,
}
