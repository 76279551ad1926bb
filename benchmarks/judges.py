"""How often the judges of a rollout are wrong, and how soon they are right: `python -m benchmarks.judges`.

P paths of S samples each; AR(1) processes of variance 1, so a shift is in standard deviations of one sample. A path
is looked at after every sample (sprt), after every batch (conf_seq), or once at its end (mann_whitney).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal
from scipy.special import ndtri

from delivery.judges import batch_means, margin_bounds, sprt_boundaries, worse_by_rank
from delivery.metrics import Judge
from delivery.sequential import evidence

Floats = NDArray[np.float64]
PHIS = (0.0, 0.5, 0.8)
AT_ONCE = 500  # paths: what is held in memory
FORGET = 100  # samples after which AR(1) 0.8 has forgotten its start


@dataclass(frozen=True, eq=False)
class Outcome:
    """[P] each: samples at the first FAIL and at the first PASS, infinite if there never was one."""

    failed_at: Floats
    passed_at: Floats

    @property
    def failed(self) -> int:
        return int(np.isfinite(self.failed_at).sum())

    @property
    def passed(self) -> int:
        return int(np.isfinite(self.passed_at).sum())


def autocorrelated(rng: np.random.Generator, shape: tuple[int, int], phi: float) -> Floats:
    """Stationary AR(1) paths [P, S] of mean 0 and variance 1; phi 0 is white noise."""
    noise = rng.standard_normal((shape[0], shape[1] + FORGET))
    paths: Floats = signal.lfilter([np.sqrt(1 - phi * phi)], [1.0, -phi], noise, axis=1)[:, FORGET:]
    return paths


def sprt(test: Judge, ratio: float, phi: float, shape: tuple[int, int], seed: int = 1) -> Outcome:
    """Failures that come in bursts: a sample fails where a hidden AR(1) process is above its quantile."""
    rng, samples = np.random.default_rng(seed), np.arange(1.0, shape[1] + 1)
    fails, passes = sprt_boundaries(test)
    found = []
    for paths in _chunks(shape[0]):
        hit = autocorrelated(rng, (paths, shape[1]), phi) > ndtri(1 - ratio)
        weighed = evidence(np.cumsum(hit, axis=1, dtype=np.float64), samples, test.healthy, test.unhealthy)
        found.append((weighed > fails, weighed < passes))
    return _outcome(found, 1)


def conf_seq(test: Judge, means: tuple[float, float], phi: float, shape: tuple[int, int], seed: int = 1) -> Outcome:
    """Champion and challenger of these means, each an AR(1) process of its own."""
    rng, found = np.random.default_rng(seed), []
    for paths in _chunks(shape[0]):
        champion, challenger = _arms(rng, (paths, shape[1]), phi, means, test.batch)
        low, high = margin_bounds(champion, challenger, test)
        found.append((high < 0, low > 0))
    return _outcome(found, test.batch)


def mann_whitney(test: Judge, means: tuple[float, float], phi: float, shape: tuple[int, int], seed: int = 1) -> float:
    """Share of the paths that are condemned."""
    rng, condemned = np.random.default_rng(seed), 0
    for paths in _chunks(shape[0]):
        worse, _ = worse_by_rank(*_arms(rng, (paths, shape[1]), phi, means, test.batch), test)
        condemned += int(worse.sum())
    return condemned / shape[0]


def _arms(
    rng: np.random.Generator, shape: tuple[int, int], phi: float, means: tuple[float, float], batch: int
) -> tuple[Floats, Floats]:
    champion, challenger = (batch_means(mean + autocorrelated(rng, shape, phi), batch) for mean in means)
    return champion, challenger


def _chunks(paths: int) -> list[int]:
    return [AT_ONCE] * (paths // AT_ONCE) + ([paths % AT_ONCE] if paths % AT_ONCE else [])


def _outcome(found: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]], batch: int) -> Outcome:
    failed, passed = (np.concatenate([_first(side) for side in sides]) for sides in zip(*found, strict=True))
    return Outcome(failed * batch, passed * batch)


def _first(crossed: NDArray[np.bool_]) -> Floats:
    """1-based index of the first True of each row, infinite where there is none."""
    return np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1.0, np.inf)


def table(paths: int) -> list[str]:
    """Rows of a Markdown table: what is true, how it is correlated, and what the judge says."""
    rows = ["| judge | truth | AR(1) | FAIL | PASS | samples to FAIL: median, p95 |", "|--|--|--|--|--|--|"]
    for phi in PHIS:
        for ratio in (0.01, 0.05, 0.2):
            for alpha in (0.01, 0.001):
                outcome = sprt(Judge(kind="sprt", alpha=alpha), ratio, phi, (paths, 2000))
                rows.append(_row(f"sprt, alpha {alpha:g} | errors {ratio:.0%}", phi, outcome))
    for phi in PHIS:
        for shift in (0.0, 0.2, 0.5):
            outcome = conf_seq(_worse_if_lower(0.0), (0.3, 0.3 - shift), phi, (paths, 2000))
            rows.append(_row(f"conf_seq | worse by {shift:g} sd", phi, outcome))
        just = conf_seq(_worse_if_lower(0.2), (0.3, 0.24), phi, (paths, 2000))
        rows.append(_row("conf_seq, allowed 20 % | worse by just 20 %", phi, just))
        raw = conf_seq(_worse_if_lower(0.0, batch=1), (0.3, 0.3), phi, (paths, 2000))
        rows.append(_row("conf_seq, batch 1 | the same", phi, raw))
    for phi in PHIS:
        for shift, batch in ((0.0, 20), (0.2, 20), (0.5, 20), (0.0, 1)):
            test = Judge(kind="mann_whitney", batch=batch)
            rate = mann_whitney(test, (5.0, 5.0 + shift), phi, (paths, 50 * batch))
            rows.append(f"| mann_whitney, 50 batches of {batch} | worse by {shift:g} sd | {phi:g} | {rate:.2%} | | |")
    return rows


def _worse_if_lower(allowed: float, batch: int = 20) -> Judge:
    return Judge(kind="conf_seq", direction="decrease", allowed=allowed, batch=batch)


def _row(what: str, phi: float, outcome: Outcome) -> str:
    paths, found = len(outcome.failed_at), outcome.failed_at[np.isfinite(outcome.failed_at)]
    soon = f"{np.median(found):.0f}, {np.percentile(found, 95):.0f}" if len(found) > paths / 2 else ""
    return f"| {what} | {phi:g} | {outcome.failed / paths:.2%} | {outcome.passed / paths:.2%} | {soon} |"


if __name__ == "__main__":
    print("\n".join(table(paths=10_000)))  # noqa: T201
