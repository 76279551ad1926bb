"""How often a rollout in which nothing is wrong is aborted within thirty days, and by what.

Every month (benchmarks/rollback_month.py) is shown to the service's own guard, sample by sample and outcome by outcome,
and to the background analysis of the default plan. The guard's verdict is asked for where it can change: after a run
that failed or was slow, and after the outcomes of a bar. The analysis is looked at after every bar with the judges' own
functions on the whole month at once; its readings do not change in between, so looking every ten seconds sees no more.
That both shortcuts are none, and find what Guard.verdict and delivery.judges.judge find when they are asked at every
chance, is a test (tests/chaos/test_false_aborts.py). A rollout is promoted by hand within the plan's deadline.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.rollback_month import RESIDENT_GB, SYMBOLS, WORLDS, Floats, Month, World, month
from core.settings import Settings
from delivery.analysis import resolved
from delivery.conditions import compile_condition
from delivery.default_plan import default_plan
from delivery.judges import Args, batch_means, margin_bounds, sprt_boundaries
from delivery.metrics import Metric
from delivery.sequential import evidence
from serving.guard import Guard, Trigger

SEED = 20


def false_aborts(settings: Settings, runs: int) -> dict[str, Any]:
    """By world and over all of them: months, aborts by what came first, their ratio and its 95 % interval."""
    share = -(-runs // len(WORLDS))
    by_world = {world.name: _aborts(settings, world, share) for world in WORLDS}
    pooled = sum(by_world.values(), Counter[str]())
    answer: dict[str, Any] = {name: _told(found, share) for name, found in by_world.items()}
    return answer | {"all": _told(pooled, share * len(WORLDS))}


def _aborts(settings: Settings, world: World, runs: int) -> Counter[str]:
    found = Counter[str]()
    for run in range(runs):
        what = aborted_by(settings, month(world, np.random.default_rng([SEED, WORLDS.index(world), run])))
        found.update([what] if what else [])
    return found


def _told(found: Counter[str], runs: int) -> dict[str, Any]:
    interval = stats.binomtest(found.total(), runs).proportion_ci(0.95, "exact")  # Clopper and Pearson
    return {
        "months": runs,
        "aborts": found.total(),
        "by": dict(found.most_common()),
        "ratio": found.total() / runs,
        "ci95_low": float(interval.low),
        "ci95_high": float(interval.high),
    }


def aborted_by(settings: Settings, seen: Month) -> str | None:
    """What ends the rollout first: `guard: TRIGGER` or `analysis: METRIC`; of both after the same bar the guard."""
    ends = {f"guard: {trigger}": bar for trigger, bar in guard_fires(settings, seen)}
    ends |= {f"analysis: {metric.name}": bar for metric, bar in analysis_fails(settings, seen)}
    return min(ends, key=ends.__getitem__, default=None)


def guard_fires(settings: Settings, seen: Month) -> list[tuple[Trigger, int]]:
    """The first verdict and its bar; empty if there is none."""
    clock = Clock()
    guard = Guard(settings.triggers, clock)
    guard.rss_gb = RESIDENT_GB
    rows = zip(
        seen.at.tolist(), seen.latency_ms.tolist(), seen.failed.tolist(), *seen.outcomes_bps.tolist(), strict=True
    )
    for bar, (ends, latencies, failures, champion, challenger) in enumerate(rows):
        for clock.now, latency_ms, failed in zip(ends, latencies, failures, strict=True):
            guard.observe("challenger", latency_ms, failed=failed)
            if failed or latency_ms > settings.triggers.latency_ms:
                trigger = guard.verdict("challenger")
                if trigger is not None:
                    return [(trigger, bar)]
        for pair in zip(champion, challenger, strict=True):
            guard.earned(*pair)
        trigger = guard.verdict("challenger")
        if trigger is not None:
            return [(trigger, bar)]
    return []


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def analysis_fails(settings: Settings, seen: Month) -> list[tuple[Metric, int]]:
    """Metrics of the default plan that fail, and the bar after which each does."""
    plan = default_plan(settings)
    assert plan.background_analysis is not None  # noqa: S101 - it is what the default plan is made of
    counted = [one for one in resolved(plan, plan.background_analysis) if not one[0].dry_run]
    fails = [(metric, FAILS[metric.judge.kind](metric, args, seen, settings)) for metric, args in counted]
    return [(metric, int(at.argmax())) for metric, at in fails if at.any()]


def _threshold_fails(metric: Metric, args: Args, seen: Month, settings: Settings) -> NDArray[np.bool_]:
    """[T] of the resident set: it is flat."""
    held = compile_condition(metric.failure_condition or "").holds(RESIDENT_GB, args)
    return np.full(len(seen.at), bool(held))


def _sprt_fails(metric: Metric, args: Args, seen: Month, settings: Settings) -> NDArray[np.bool_]:
    """[T]"""
    hit = seen.failed if metric.provider.service == "error_ratio" else seen.latency_ms > settings.triggers.latency_ms
    hits, samples = np.cumsum(hit.sum(axis=1, dtype=np.float64)), _after(len(hit))
    found = evidence(hits, samples, metric.judge.healthy, metric.judge.unhealthy)
    failed: NDArray[np.bool_] = (found > sprt_boundaries(metric.judge)[0]) & (samples >= metric.min_samples)
    return failed


def _conf_seq_fails(metric: Metric, args: Args, seen: Month, settings: Settings) -> NDArray[np.bool_]:
    """[T]"""
    batch = metric.judge.batch
    champion, challenger = batch_means(seen.outcomes_bps.reshape(2, -1), batch)
    bounds = np.concatenate([[np.inf], margin_bounds(champion, challenger, metric.judge)[1]])
    samples = _after(len(seen.at))
    failed: NDArray[np.bool_] = (bounds[(samples // batch).astype(int)] < 0) & (samples >= metric.min_samples)
    return failed


def _after(bars: int) -> Floats:
    """[T] samples after each bar."""
    return SYMBOLS * np.arange(1.0, bars + 1)


FAILS = {"threshold": _threshold_fails, "sprt": _sprt_fails, "conf_seq": _conf_seq_fails}
