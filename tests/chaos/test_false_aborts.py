"""A rollout in which nothing is wrong goes on: months of healthy samples shown to the real guard and analyses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.rollback_aborts import Clock, aborted_by, analysis_fails, false_aborts, guard_fires
from benchmarks.rollback_month import (
    BARS,
    ERROR_RATIO,
    MARKET,
    RESIDENT_GB,
    SYMBOLS,
    WORLDS,
    Month,
    World,
    autocorrelated,
    bursts,
    month,
)
from benchmarks.rollback_statistics import worst_losses_bps
from core.gates import Verdict
from core.settings import Settings, load_settings
from delivery import sequential
from delivery.analysis import resolved
from delivery.default_plan import default_plan
from delivery.earned import Arms
from delivery.judges import Reading, judge
from delivery.losses import EVER, Ledger, Outcome, Page
from delivery.metrics import Metric
from serving.guard import Guard, Trigger
from serving.readings import PAIRED, counted, paired

SETTINGS: Settings = load_settings(environ={})
MOST_DEPENDENT = WORLDS[-1]
MONTHS = 100  # the first 40 of them in `make test`


def healthy(run: int, world: World = MOST_DEPENDENT, sessions: int = 21) -> Month:
    return month(world, np.random.default_rng([3, run]), sessions)


@pytest.mark.parametrize("months", [40, pytest.param(MONTHS, marks=pytest.mark.slow)])
def test_at_most_one_of_a_hundred_months_is_aborted_where_everything_depends_on_everything(months: int) -> None:
    """Two aborts or more would come 19 times of 20 at a rate of 5 % in a hundred months, 9 of 10 at 10 % in forty."""
    found = [aborted_by(SETTINGS, healthy(run)) for run in range(months)]
    assert len(found) - found.count(None) <= 1, found


def test_the_same_months_are_aborted_if_a_moment_may_count_for_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequential, "MOMENT_EVIDENCE", sequential.EXCESS_EVIDENCE)
    found = [aborted_by(SETTINGS, healthy(run)) for run in range(20)]
    assert found.count(f"guard: {Trigger.LATENCY}") >= 3


@pytest.mark.slow
def test_fewer_than_one_in_a_hundred_rollouts_is_aborted_for_nothing_within_thirty_days() -> None:
    """The upper end of the 95 % interval, over a thousand months of all worlds."""
    assert false_aborts(SETTINGS, 1000)["all"]["ci95_high"] <= 0.01


def asked_at_every_chance(seen: Month) -> tuple[Trigger, int] | None:
    """The guard's first verdict and its bar, asked after every sample and every outcome."""
    clock = Clock()
    guard = Guard(SETTINGS.triggers, clock)
    guard.rss_gb = RESIDENT_GB
    for bar in range(len(seen.at)):
        for symbol in range(SYMBOLS):
            clock.now = float(seen.at[bar, symbol])
            guard.observe("challenger", float(seen.latency_ms[bar, symbol]), failed=bool(seen.failed[bar, symbol]))
            if (trigger := guard.verdict("challenger")) is not None:
                return trigger, bar
        for champion_bps, challenger_bps in seen.outcomes_bps[:, bar].T.tolist():
            guard.earned(champion_bps, challenger_bps)
            if (trigger := guard.verdict("challenger")) is not None:
                return trigger, bar
    return None


def reading_of(metric: Metric, guard: Guard, arms: Arms) -> Reading:
    name = str(metric.provider.service)
    if name in PAIRED:
        return paired(name, arms, SETTINGS.triggers.performance_batch)
    return counted(name, guard.seen("challenger"))


def judged_at_every_bar(seen: Month) -> dict[str, int]:
    """The bar after which each metric of the default plan first fails, by the service's readings."""
    clock = Clock()
    guard = Guard(SETTINGS.triggers, clock)
    guard.rss_gb = RESIDENT_GB
    plan = default_plan(SETTINGS)
    assert plan.background_analysis is not None
    judged = [one for one in resolved(plan, plan.background_analysis) if not one[0].dry_run]
    found: dict[str, int] = {}
    for bar in range(len(seen.at)):
        for symbol in range(SYMBOLS):
            clock.now = float(seen.at[bar, symbol])
            guard.observe("challenger", float(seen.latency_ms[bar, symbol]), failed=bool(seen.failed[bar, symbol]))
        champion, challenger = seen.outcomes_bps[:, : bar + 1].reshape(2, -1)
        for metric, args in judged:
            reading = reading_of(metric, guard, (champion, challenger))
            assert metric.failure_limit == 0
            if judge(metric, reading, args).verdict is Verdict.FAIL:
                found.setdefault(metric.name, bar)
    return found


def faulty(kind: str, rng: np.random.Generator) -> Month:
    """Three sessions, with a fault from somewhere in the first on, or with none."""
    seen, begins = healthy(int(rng.integers(1000)), sessions=3), int(rng.integers(40))
    shape = seen.at[begins:].shape
    if kind == "errors":
        seen.failed[begins:] = rng.random(shape) < 0.06
    elif kind == "slow":
        seen.latency_ms[begins:] += 90.0 * (rng.random(shape) < 0.2)
    elif kind == "worse":
        seen.outcomes_bps[1, begins:] -= 15.0
    return replace(seen, at=np.sort(seen.at, axis=1))


@pytest.mark.parametrize("kind", ["nothing", "errors", "slow", "worse"])
def test_the_bench_finds_what_the_guard_and_the_judges_find_when_asked_at_every_chance(kind: str) -> None:
    for seed in range(3):
        seen = faulty(kind, np.random.default_rng([4, seed]))
        first = asked_at_every_chance(seen)
        assert guard_fires(SETTINGS, seen) == ([] if first is None else [first])
        assert (first is None) == (kind == "nothing")
        assert {metric.name: bar for metric, bar in analysis_fails(SETTINGS, seen)} == judged_at_every_bar(seen)


def test_the_first_of_guard_and_analysis_ends_a_rollout() -> None:
    seen = faulty("errors", np.random.default_rng([4, 0]))
    assert aborted_by(SETTINGS, seen) == f"guard: {Trigger.ERRORS}"
    assert aborted_by(SETTINGS, faulty("nothing", np.random.default_rng(5))) is None


@pytest.mark.parametrize("burst", [0.0, 0.3])
def test_errors_come_as_often_as_they_should_and_in_bursts_of_the_length_they_should_have(burst: float) -> None:
    hits = bursts(np.random.default_rng(6), 0.01, burst, 1_000_000)
    assert hits.mean() == pytest.approx(0.01, rel=0.05)
    assert hits[1:][hits[:-1]].mean() == pytest.approx(burst or 0.01, rel=0.1)


def test_a_month_is_what_it_says() -> None:
    seen = [healthy(run) for run in range(8)]
    assert seen[0].at.shape == (21 * BARS, SYMBOLS)
    assert (np.diff(seen[0].at.ravel()) >= 0).all()
    assert seen[0].at.max() < 30 * 86_400
    assert np.mean([one.failed.mean() for one in seen]) == pytest.approx(ERROR_RATIO, rel=0.2)
    assert all(np.percentile(one.latency_ms, 95) < 60 for one in seen)
    outcomes = np.stack([one.outcomes_bps for one in seen], axis=1)
    assert outcomes.std() == pytest.approx(10.0, rel=0.1)
    assert outcomes.mean() == pytest.approx(0.3, abs=0.2)
    assert np.corrcoef(outcomes[0].ravel(), outcomes[1].ravel())[0, 1] == pytest.approx(0.5, abs=0.05)
    assert np.corrcoef(outcomes[1, ..., 0].ravel(), outcomes[1, ..., 1].ravel())[0, 1] == pytest.approx(MARKET, abs=0.1)
    lagged = outcomes[1, 0, 1:].ravel(), outcomes[1, 0, :-1].ravel()
    assert np.corrcoef(*lagged)[0, 1] == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(autocorrelated(np.random.default_rng(7), (10_000, 2), 0.0).T)[0, 1]) < 0.05


def test_the_worst_losses_of_a_month_are_those_that_the_ledger_finds() -> None:
    seen, ledger = healthy(0, sessions=2), Ledger(1)
    symbol_pct, day_pct = [], []
    for bar in range(len(seen.at)):
        day = f"2026-01-{1 + bar // BARS:02}"
        for symbol, pair in enumerate(seen.outcomes_bps[:, bar].T.tolist()):
            ledger.add(Outcome(f"S{symbol}", day, *pair))
            symbol_pct.append(ledger.page(Page(1, EVER, f"S{symbol}")).challenger.drawdown_bps)
            day_pct.append(-ledger.page(Page(1, day, f"S{symbol}")).challenger.bps)
    drawdown_bps, daily_loss_bps = worst_losses_bps(seen.outcomes_bps[1])
    assert drawdown_bps == pytest.approx(max(symbol_pct))
    assert daily_loss_bps == pytest.approx(max(day_pct))
