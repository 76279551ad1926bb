"""A fault is found by the real guard within the samples that theory promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.rollback_detection import RATES_PER_S, detection
from benchmarks.rollback_statistics import DETECTED, GOALS
from benchmarks.rollback_theory import drawdown_promise, hits_promise, level_promise, moments_needed, worse_promise
from benchmarks.serving_goals import judged
from core.settings import Settings, load_settings
from delivery.sequential import EXCESS_EVIDENCE, MOMENT_S, Excess

SETTINGS: Settings = load_settings(environ={})
TRIALS = 30


def test_every_fault_is_found_within_the_samples_that_theory_promises() -> None:
    """No more trials are late than a bound for 95 % of them allows."""
    found = detection(SETTINGS, TRIALS)
    assert set(found) == set(DETECTED)
    for name, rates in found.items():
        assert set(rates) == set(RATES_PER_S)
        for label, told in rates.items():
            late = round(told["late_ratio"] * TRIALS)
            assert stats.binomtest(late, TRIALS, 0.05, "greater").pvalue > 1e-3, (name, label, told)
            assert told["median_samples"] <= told["p95_samples"]
    for name in ("errors_100_pct", "latency_100_ms"):
        assert found[name]["hundred_per_s"]["p95_s"] <= 2 * MOMENT_S
    figures = {goal["figure"] for goal in judged({"statistics": {"detection": found}}, "", gpu=False, goals=GOALS)}
    assert {f"statistics.detection.{name}.market.late_ratio" for name in DETECTED} <= figures


def run_lengths(ratio: float, per_moment: int, trials: int) -> np.ndarray:
    """Moments until the CUSUM fires."""
    rng, found = np.random.default_rng(8), []
    for _ in range(trials):
        excess, moment = Excess(0.05), 0
        while not excess.fired:
            for hit in (rng.random(per_moment) < ratio).tolist():
                excess.add(hit, at=moment * MOMENT_S)
            moment += 1
        found.append(moment)
    return np.array(found)


@pytest.mark.parametrize(("ratio", "per_moment"), [(1.0, 1), (0.2, 1), (0.05, 1), (0.2, 20), (0.05, 20), (1.0, 20)])
def test_the_chain_is_the_run_length_of_the_real_cusum(ratio: float, per_moment: int) -> None:
    promised, lengths = moments_needed(ratio, 0.05, per_moment), run_lengths(ratio, per_moment, 400)
    assert stats.binomtest(int((lengths > promised).sum()), 400, 0.05, "greater").pvalue > 1e-3
    earlier = promised - 1 - promised // 10  # it is the quantile, not any bound
    assert stats.binomtest(int((lengths > earlier).sum()), 400, 0.05, "less").pvalue > 1e-3


def test_what_never_fails_needs_no_more_than_the_evidence_of_its_failures() -> None:
    promised = hits_promise(1.0, 0.05, 1)
    assert promised.bound_samples == math.ceil(EXCESS_EVIDENCE / math.log(5)) == math.ceil(promised.expected_samples)
    assert hits_promise(1.0, 0.05, 20).bound_samples == 60


def test_larger_faults_are_promised_sooner() -> None:
    errors = [hits_promise(ratio, 0.05, 1) for ratio in (0.05, 0.1, 0.2, 1.0)]
    worse = [worse_promise(loss_bps, 0.9, SETTINGS.triggers) for loss_bps in (1.0, 2.0, 5.0)]
    losing = [drawdown_promise(loss_bps, 200.0) for loss_bps in (1.0, 2.0, 5.0)]
    for promises in (errors, worse, losing):
        assert sorted(promises, key=lambda one: -one.bound_samples) == promises
        assert all(one.expected_samples <= one.bound_samples for one in promises)
    assert level_promise(100.0, 1.0, 0.25).bound_samples == 102


def test_what_is_healthy_is_never_promised() -> None:
    with pytest.raises(ValueError, match="does not grow"):
        hits_promise(0.01, 0.05, 1)
