"""Intervals that cover what they promise, on dependent returns too, and the best of many held against luck."""

from __future__ import annotations

import empyrical
import numpy as np
import pytest
from scipy import signal, stats

from core.errors import DataError
from trading import bootstrap
from trading.bootstrap import (
    YEAR,
    Interval,
    best_of_many,
    block_length,
    mean_interval,
    resampled,
    sharpe,
    sharpe_difference_interval,
    sharpe_interval,
    worse_probability,
)


def dependent(rng: np.random.Generator, sessions: int, phi: float = 0.4) -> np.ndarray:
    """AR(1) with mean 0."""
    return signal.lfilter([1.0], [1.0, -phi], rng.standard_normal(sessions + 50))[50:]


def test_the_sharpe_ratio_is_empyricals_and_zero_for_whoever_stays_flat() -> None:
    returns = np.random.default_rng(0).standard_normal(300) * 0.01 + 0.001
    assert sharpe(returns) * YEAR**0.5 == pytest.approx(empyrical.sharpe_ratio(returns, annualization=YEAR))
    assert sharpe(np.zeros(10)) == 0.0
    assert sharpe(np.full(10, 0.1)) == 0.0
    assert sharpe(np.array([3.0])) == 0.0


def test_independent_returns_have_the_intervals_of_the_textbook() -> None:
    returns = np.random.default_rng(1).standard_normal(2000)
    found = mean_interval(returns)
    half = 1.96 * returns.std() / np.sqrt(2000)
    assert found.value == pytest.approx(returns.mean())
    assert found.ci95_high - found.ci95_low == pytest.approx(2 * half, rel=0.1)
    ratio = sharpe_interval(returns + 0.1)
    assert ratio.ci95_high - ratio.ci95_low == pytest.approx(2 * 1.96 * np.sqrt(YEAR * 1.005 / 2000), rel=0.1)


def test_dependent_returns_are_covered_as_often_as_promised_and_wider_than_single_draws(monkeypatch) -> None:
    monkeypatch.setattr(bootstrap, "REPETITIONS", 250)
    rng = np.random.default_rng(2)
    series = [dependent(rng, 400) for _ in range(150)]
    covered = sum(one.ci95_low <= 0 <= one.ci95_high for one in map(mean_interval, series))
    assert covered >= 132  # 88 %: a bootstrap of 400 dependent sessions is a little narrow
    monkeypatch.setattr(bootstrap, "block_length", lambda _: 1)
    naive = sum(one.ci95_low <= 0 <= one.ci95_high for one in map(mean_interval, series))
    assert naive < covered - 10


def test_the_difference_of_sharpe_ratios_is_paired() -> None:
    rng = np.random.default_rng(3)
    market, noise = rng.standard_normal(600), rng.standard_normal(600)
    theirs = market + 0.05
    paired = sharpe_difference_interval(theirs + 0.1 * noise + 0.05, theirs)
    apart = sharpe_interval(theirs)
    assert paired.ci95_low < paired.value < paired.ci95_high
    assert paired.ci95_high - paired.ci95_low < 0.3 * (apart.ci95_high - apart.ci95_low)
    assert sharpe_difference_interval(theirs, theirs) == Interval(0.0, 0.0, 0.0)


def test_an_interval_of_a_sharpe_difference_excludes_zero_for_equals_about_as_often_as_promised(monkeypatch) -> None:
    monkeypatch.setattr(bootstrap, "REPETITIONS", 200)
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(100):
        ours, theirs = rng.standard_t(5, (2, 250))
        found = sharpe_difference_interval(ours, theirs)
        wrong += not found.ci95_low <= 0 <= found.ci95_high
    assert wrong <= 12  # 5 expected


def test_the_probability_of_being_worse_is_one_half_of_equals_and_the_tail_otherwise() -> None:
    assert worse_probability(np.zeros(50)) == 0.5
    difference = np.random.default_rng(5).standard_normal(1000)
    shifted = difference - difference.mean() + 0.04
    assert worse_probability(shifted) == pytest.approx(stats.norm.cdf(-0.04 * np.sqrt(1000)), abs=0.05)
    assert worse_probability(-np.abs(difference)) == 1.0


def test_the_best_of_many_lucky_ones_is_not_significant_and_one_with_skill_is() -> None:
    rng = np.random.default_rng(16)
    flat, lucky = np.zeros(500), rng.standard_normal((500, 40))
    single = stats.ttest_1samp(lucky, 0, alternative="greater").pvalue
    assert single.min() < 0.05  # alone the luckiest looks skilled
    assert best_of_many(flat, lucky) > 0.05
    assert best_of_many(flat, np.column_stack([lucky, rng.standard_normal(500) + 0.25])) < 0.01


def test_p_values_of_the_best_of_many_are_small_no_oftener_than_they_say(monkeypatch) -> None:
    monkeypatch.setattr(bootstrap, "REPETITIONS", 200)
    rng = np.random.default_rng(7)
    found = np.array([best_of_many(np.zeros(150), rng.standard_normal((150, 5))) for _ in range(100)])
    assert (found < 0.05).sum() <= 12  # 5 expected
    assert (found < 0.5).sum() in range(30, 71)


def test_candidates_that_are_the_benchmark_prove_nothing() -> None:
    benchmark = np.random.default_rng(8).standard_normal(100)
    assert best_of_many(benchmark, np.column_stack([benchmark, benchmark])) == 1.0


def test_blocks_grow_with_dependence_and_never_past_half_of_the_sessions() -> None:
    rng = np.random.default_rng(9)
    assert block_length(dependent(rng, 2000, 0.9)) > 2 * block_length(rng.standard_normal(2000))
    assert block_length(np.cumsum(rng.standard_normal(40))) <= 20
    assert block_length(np.zeros(100)) == block_length(rng.standard_normal(5)) == 1


def test_one_single_trade_in_a_year_has_an_interval() -> None:
    """An agent that holds in all sessions but one."""
    once = np.zeros(250)
    once[100] = 12.0
    assert mean_interval(once).ci95_low == 0.0
    assert sharpe_interval(once).ci95_low == 0.0
    assert sharpe_difference_interval(once, np.zeros(250)).ci95_high > 0


@pytest.mark.parametrize("columns", [np.zeros((0, 1)), np.array([[1.0], [np.nan]]), np.array([[np.inf]])])
def test_nothing_is_resampled_from_nothing_or_from_what_is_no_number(columns: np.ndarray) -> None:
    with pytest.raises(DataError, match="at least one session"):
        resampled(columns, lambda sample: sample.mean(axis=0), 0)
    with pytest.raises(DataError, match="at least one session"):
        best_of_many(np.zeros(len(columns)), columns)


def test_the_best_of_many_in_a_few_sessions_is_not_judged() -> None:
    with pytest.raises(DataError, match="19 sessions"):
        best_of_many(np.zeros(19), np.random.default_rng(0).standard_normal((19, 3)))
