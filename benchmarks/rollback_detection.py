"""How many samples pass from the beginning of a fault to the guard's verdict, beside what theory promises.

A fault begins after a healthy start, at 1, 10 and 100 decisions a second and on the market's clock (20 symbols every
five minutes together); the service's own guard judges after every sample. The bound is of the 95 % quantile, and its
source is in benchmarks/rollback_theory.py; `late_ratio` of the trials need more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.rollback_aborts import Clock
from benchmarks.rollback_month import (
    BAR_S,
    ERROR_RATIO,
    MEAN_BPS,
    MEDIAN_MS,
    RESIDENT_GB,
    SPREAD,
    SYMBOLS,
    WORLDS,
    month,
)
from benchmarks.rollback_theory import Promise, drawdown_promise, hits_promise, level_promise, worse_promise
from core.settings import Settings, Triggers
from delivery.losses import Ledger, Outcome
from delivery.plan import Limits, LossLimits
from delivery.sequential import MOMENT_S, SLOW_RATIO
from serving.guard import Guard, Trigger
from serving.watch import TICK_S

SEED = 21
BEFORE = 200  # healthy samples
LONGEST = 10_000  # samples in which a fault must be found
RATES_PER_S: dict[str, float | None] = {"one_per_s": 1.0, "ten_per_s": 10.0, "hundred_per_s": 100.0, "market": None}
AFTER = 1e-9  # s between samples beyond what the rate says: a second later is never less than a second later


@dataclass(frozen=True)
class Fault:
    """What the runs of a challenger are from the fault on."""

    trigger: Trigger
    error_ratio: float = ERROR_RATIO
    slower_ms: float = 0.0
    leak_mb: float = 0.0  # per decision


FAULTS = {
    "errors_100_pct": Fault(Trigger.ERRORS, error_ratio=1.0),
    "errors_20_pct": Fault(Trigger.ERRORS, error_ratio=0.2),
    "errors_5_pct": Fault(Trigger.ERRORS, error_ratio=0.05),
    "latency_100_ms": Fault(Trigger.LATENCY, slower_ms=100.0),
    "leak_1_mb": Fault(Trigger.MEMORY, leak_mb=1.0),
}
WORSE_BPS = {
    "worse_1_bps": 1.0,
    "worse_2_bps": 2.0,
    "worse_5_bps": 5.0,
}  # of the mean of a decision; its deviation is 10
LOSING_BPS = 5.0
BOOK_DRAWDOWN_PCT = 2.0


def detection(settings: Settings, trials: int) -> dict[str, Any]:
    """By fault and rate: what was promised, samples and seconds that were needed."""
    answer: dict[str, Any] = {}
    for name, fault in FAULTS.items():
        answer[name] = {
            label: _told([_runs_until(settings, fault, label, trial) for trial in range(trials)], promised, label)
            for label, promised in ((label, promise(fault, label, settings.triggers)) for label in RATES_PER_S)
        }
    for name, loss_bps in WORSE_BPS.items():
        found = [_outcomes_until(settings, Trigger.PERFORMANCE, loss_bps, trial) for trial in range(trials)]
        promised = worse_promise(loss_bps, WORLDS[0].paired, settings.triggers)
        answer[name] = {label: _told(found, promised, label) for label in RATES_PER_S}
    found = [_outcomes_until(settings, Trigger.DRAWDOWN, LOSING_BPS, trial) for trial in range(trials)]
    promised = drawdown_promise(LOSING_BPS - MEAN_BPS, 100 * BOOK_DRAWDOWN_PCT)
    answer["drawdown_2_pct"] = {label: _told(found, promised, label) for label in RATES_PER_S}
    return answer


def _told(samples: list[int], promised: Promise, label: str) -> dict[str, float]:
    median, p95 = (int(at) for at in np.percentile(samples, (50, 95), method="higher"))
    late = sum(each > promised.bound_samples for each in samples)
    return {
        "median_samples": median,
        "p95_samples": p95,
        "expected_samples": promised.expected_samples,
        "bound_samples": promised.bound_samples,
        "late_ratio": late / len(samples),
        "median_s": _arrives(median, label) - _arrives(1, label),
        "p95_s": _arrives(p95, label) - _arrives(1, label),
    }


def promise(fault: Fault, label: str, triggers: Triggers) -> Promise:
    rate = RATES_PER_S[label]
    if fault.leak_mb:
        left_mb = (triggers.memory_gb - RESIDENT_GB) * 1e3
        return level_promise(left_mb, fault.leak_mb, TICK_S * rate if rate else SYMBOLS)
    per_moment = max(1, round(MOMENT_S * rate)) if rate else SYMBOLS
    if fault.trigger is Trigger.ERRORS:
        return hits_promise(fault.error_ratio, triggers.error_ratio, per_moment)
    left_ms = triggers.latency_ms - fault.slower_ms
    slow_ratio = float(stats.norm.sf(math.log(left_ms / MEDIAN_MS) / SPREAD)) if left_ms > 0 else 1.0
    return hits_promise(slow_ratio, SLOW_RATIO, per_moment)


def _runs_until(settings: Settings, fault: Fault, label: str, trial: int) -> int:
    """Runs from the fault on, with the one at which the guard fired."""
    rng = np.random.default_rng([SEED, list(FAULTS.values()).index(fault), list(RATES_PER_S).index(label), trial])
    drawn = rng.random(BEFORE + LONGEST).tolist()
    thinking_ms = (MEDIAN_MS * np.exp(SPREAD * rng.standard_normal(BEFORE + LONGEST))).tolist()
    clock, measured_at = Clock(), -math.inf
    guard = Guard(settings.triggers, clock)
    for since in range(1 - BEFORE, LONGEST + 1):
        clock.now = _arrives(BEFORE + since, label)
        if clock.now - measured_at >= TICK_S:  # as the service's watch does
            guard.rss_gb, measured_at = RESIDENT_GB + max(0, since - 1) * fault.leak_mb / 1e3, clock.now
        faulty = since > 0
        failed = drawn[since] < (fault.error_ratio if faulty else ERROR_RATIO)
        guard.observe("challenger", thinking_ms[since] + faulty * fault.slower_ms, failed=failed)
        trigger = guard.verdict("challenger")
        if trigger is not None:
            return _as_expected(since, trigger, fault.trigger)
    raise AssertionError(f"{fault} was not found within {LONGEST} samples")


def _outcomes_until(settings: Settings, expected: Trigger, loss_bps: float, trial: int) -> int:
    """Outcomes from the fault on, with the one at which the guard fired."""
    seen = month(WORLDS[0], np.random.default_rng([SEED, len(FAULTS), int(loss_bps), trial]))
    guard = Guard(settings.triggers, Clock())
    guard.ledger = Ledger(1, Limits(book=LossLimits(max_drawdown_pct=BOOK_DRAWDOWN_PCT)))
    champion, challenger = seen.outcomes_bps.reshape(2, -1)
    challenger[BEFORE:] -= loss_bps
    for number, pair in enumerate(zip(champion.tolist(), challenger.tolist(), strict=True)):
        if expected is Trigger.DRAWDOWN:
            guard.ledger.add(Outcome(f"S{number % SYMBOLS}", "2026-01-01", *pair))
        else:
            guard.earned(*pair)
        trigger = guard.verdict("challenger")
        if trigger is not None:
            return _as_expected(number + 1 - BEFORE, trigger, expected)
    raise AssertionError(f"{expected} was not found within a month")


def _as_expected(since: int, trigger: Trigger, expected: Trigger) -> int:
    if trigger is not expected or since <= 0:
        raise AssertionError(f"{trigger} {since} samples after the beginning of what should be {expected}")
    return since


def _arrives(number: int, label: str) -> float:
    """s since the start; the first is number 1."""
    rate = RATES_PER_S[label]
    return (number - 1) // SYMBOLS * BAR_S if rate is None else number * (1 / rate + AFTER)
