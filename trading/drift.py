"""Whether recent values of a feature still come from where those did that a model learned from.

    PSI = sum_b (p_b - q_b) ln(p_b / q_b)    over B bins with equal shares of the reference
    limit = (1/n + 1/m) chi2_{1-a/F, B-1}    what it exceeds by chance in a of A/A comparisons of F features
    KS  = max |F_recent - F_reference|       with its asymptotic p-value, against a/F

n and m are effective sizes: market features are autocorrelated, and a thousand bars of one calm week say little. Fixed
limits (0.1, 0.25) would alarm in most A/A comparisons of 50 rows and sleep through real ones of 50,000. A feature has
drifted where both tests say so; with fewer than MIN_SAMPLES on a side nothing can be said. No test is asked where a
feature stood still, or vanished, on one side only: a source that is stuck has one value, and no sample size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from core.gates import Verdict

Floats = NDArray[np.floating[Any]]

BINS = 10
ALPHA = 0.01  # of a false alarm, over all features together
MIN_SAMPLES = 200  # effective, on each side
SHARED_RATIO = 0.5


@dataclass(frozen=True)
class FeatureDrift:
    """`samples` is the smaller effective size. Inconclusive: too few, and it does not stand still."""

    feature: str
    psi: float
    psi_limit: float
    ks: float
    ks_p: float
    samples: int
    verdict: Verdict


def drift(reference: Floats, recent: Floats, names: Sequence[str]) -> tuple[FeatureDrift, ...]:
    """Of every column of [n, F] against that of [m, F]; rows in time order. What is the same constant in both is left
    out, and so is what the reference knows nothing of.

    Rows with a value that is not finite are not looked at in that column.
    """
    columns = [(name, _finite(reference[:, i]), _finite(recent[:, i])) for i, name in enumerate(names)]
    told = [(name, old, new) for name, old, new in columns if len(old) and np.ptp(np.append(old, new)) > 0]
    enough = min(len(reference), len(recent)) >= MIN_SAMPLES
    return tuple(_compared(name, old, new, ALPHA / len(told), enough=enough) for name, old, new in told)


def _compared(name: str, old: Floats, new: Floats, alpha: float, *, enough: bool) -> FeatureDrift:
    stuck = enough and _stuck(old, new)
    if not len(new):
        return FeatureDrift(name, 0.0, 0.0, 0.0, 1.0, 0, Verdict.FAIL if stuck else Verdict.INCONCLUSIVE)
    n, m = effective_size(old), effective_size(new)
    edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
    psi = _psi(_shares(old, edges), _shares(new, edges))
    limit = (1 / n + 1 / m) * float(stats.chi2.ppf(1 - alpha, len(edges)))
    distance = float(stats.ks_2samp(old, new, method="asymp").statistic)
    p = float(stats.kstwobign.sf(distance * np.sqrt(n * m / (n + m))))
    samples = int(min(n, m))
    drifted = Verdict.FAIL if psi > limit and p < alpha else Verdict.PASS
    verdict = Verdict.FAIL if stuck else drifted if samples >= MIN_SAMPLES else Verdict.INCONCLUSIVE
    return FeatureDrift(name, psi, limit, distance, p, samples, verdict)


def _stuck(old: Floats, new: Floats) -> bool:
    """One side has a single value, or none, and less than half of the other side has it: a source that stands still."""
    still, other = (new, old) if not len(new) or np.ptp(new) == 0 else (old, new)
    moves = len(still) > 0 and np.ptp(still) > 0
    return not moves and float(np.mean(np.isin(other, still[:1]))) < SHARED_RATIO


def effective_size(values: Floats) -> float:
    """How many independent values say as much: n / (1 + 2 sum of autocorrelations, up to the first below 0)."""
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 2 * len(centred))
    covariance = np.fft.irfft(spectrum * spectrum.conj())[: len(centred)]
    if covariance[0] <= 0:
        return 1.0
    correlation = covariance[1:] / covariance[0]
    ends = np.flatnonzero(correlation <= 0)
    positive = correlation[: ends[0]] if len(ends) else correlation
    return max(1.0, len(centred) / (1 + 2 * float(positive.sum())))


def _shares(values: Floats, edges: Floats) -> Floats:
    """Of each bin; half a value more in each, so that an empty one is no infinity."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) + 0.5
    shares: Floats = counts / counts.sum()
    return shares


def _psi(expected: Floats, found: Floats) -> float:
    return float(np.sum((found - expected) * np.log(found / expected)))


def _finite(values: Floats) -> Floats:
    return np.asarray(values[np.isfinite(values)], dtype=np.float64)
