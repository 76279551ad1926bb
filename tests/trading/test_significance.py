"""Each formula against a published or hand-computed number, an independent computation, and worlds without skill."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from core.confidence import confidence_sequence
from core.errors import DataError
from trading.bootstrap import YEAR, sharpe
from trading.significance import (
    Trials,
    best_sharpe_by_luck,
    deflated_sharpe,
    minimum_track_record,
    overfitting_probability,
    sessions_of_one_look,
    sessions_to_decide,
)


def returns_with(mean: float, skew: float, kurtosis: float, sessions: int) -> np.ndarray:
    """Returns whose sample deviation is 1 and whose skewness and kurtosis are as asked, by three values."""
    outer = math.sqrt(4 * kurtosis - 3 * skew**2)
    low, high = (skew - outer) / 2, (skew + outer) / 2  # and 0: the only three-point law through zero
    shares = np.array([-1 / (low * (high - low)), 1 / (high * (high - low))])
    count = np.round(shares * sessions).astype(int)
    values = np.concatenate([np.full(count[0], low), np.full(count[1], high), np.zeros(sessions - count.sum())])
    return mean + (values - values.mean()) / values.std(ddof=1)


def trials_of(count: int, variance: float) -> Trials:
    """So many trials whose Sharpe ratios have this sample variance."""
    values = np.random.default_rng(0).standard_normal(count)
    values *= math.sqrt(variance) / values.std(ddof=1)
    return Trials(tuple(values.tolist()))


def test_the_deflated_sharpe_ratio_is_the_papers() -> None:
    """Bailey and Lopez de Prado (2014): annual Sharpe 2.5 in 1,250 days, skewness -3, kurtosis 10, 100 trials."""
    returns = returns_with(2.5 / math.sqrt(250), -3.0, 10.0, 1250)
    assert (stats.skew(returns), stats.kurtosis(returns, fisher=False)) == pytest.approx((-3, 10), abs=0.1)
    trials = trials_of(100, 0.5 / 250)
    assert best_sharpe_by_luck(trials, 1250) == pytest.approx(0.1132, abs=1e-4)
    assert deflated_sharpe(returns, trials) == pytest.approx(0.9004, abs=2e-3)


def test_the_luck_of_many_trials_is_the_expected_maximum_of_as_many_normals() -> None:
    rng = np.random.default_rng(1)
    for count in (5, 30, 300):
        simulated = 0.1 * rng.standard_normal((4000, count)).max(axis=1).mean()
        assert best_sharpe_by_luck(trials_of(count, 0.01), 500) == pytest.approx(simulated, rel=0.05)


def test_one_trial_without_skill_has_a_deflated_sharpe_ratio_that_is_uniform() -> None:
    rng = np.random.default_rng(2)
    found = [deflated_sharpe(rng.standard_t(5, 250), Trials()) for _ in range(1000)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    biased = [deflated_sharpe(rng.standard_t(5, 250) + 0.01, Trials()) for _ in range(1000)]
    assert stats.kstest(biased, "uniform").pvalue < 0.01  # the test can fail


def test_the_best_of_many_trials_without_skill_is_hardly_ever_significant_once_deflated() -> None:
    rng = np.random.default_rng(3)
    deflated, undeflated = [], []
    for _ in range(300):
        tried = rng.standard_normal((250, 50))
        ratios = tuple(sharpe(column) for column in tried.T)
        best = tried[:, int(np.argmax(ratios))]
        deflated.append(deflated_sharpe(best, Trials(ratios)))
        undeflated.append(deflated_sharpe(best, Trials()))
    assert np.mean(np.array(deflated) >= 0.95) <= 0.02
    assert np.mean(deflated) == pytest.approx(0.5, abs=0.06)
    assert np.mean(np.array(undeflated) >= 0.95) > 0.85


def test_trials_whose_sharpe_ratios_are_unknown_vary_as_luck_makes_them() -> None:
    unknown = Trials(unrecorded=20)
    assert best_sharpe_by_luck(unknown, 401) == pytest.approx(best_sharpe_by_luck(trials_of(20, 1 / 400), 401))


def test_trials_are_counted_with_those_not_recorded_and_said_to_be_a_lower_bound() -> None:
    assert (Trials().count, str(Trials())) == (1, "1 trial")
    trials = Trials((0.1, 0.3), unrecorded=3, complete=False)
    assert (trials.count, str(trials)) == (5, "at least 5 trials")
    assert trials.variance == pytest.approx(0.02)
    assert trials.more((0.2,)).count == 6
    assert Trials((0.1,)).variance is None


def test_the_minimum_track_record_is_the_papers() -> None:
    """Bailey and Lopez de Prado (2012): annual Sharpe 2 against 1, normal daily returns: 2.73 years."""
    returns = returns_with(2 / math.sqrt(YEAR), 0.0, 3.0, 10_000)
    luck = 1 / math.sqrt(YEAR)
    trials = trials_of(2, (luck / best_sharpe_by_luck(trials_of(2, 1.0), 2)) ** 2)
    found = minimum_track_record(returns, trials, 0.95)
    assert found is not None
    assert found / YEAR == pytest.approx(2.73, abs=0.01)


def test_heavy_tails_and_negative_skewness_lengthen_the_record_that_is_needed() -> None:
    """By hand, Sharpe ratio 1 per session: 1 + 1.645^2 (1 - skew + (kurtosis - 1) / 4)."""
    for skew, kurtosis, needed in ((0.0, 3.0, 6), (0.0, 9.0, 10), (-2.0, 9.0, 15), (2.0, 9.0, 4)):
        assert minimum_track_record(returns_with(1.0, skew, kurtosis, 100_000), Trials(), 0.95) == needed


def test_a_track_record_never_suffices_for_what_is_no_better_than_luck() -> None:
    assert minimum_track_record(np.random.default_rng(4).standard_normal(300) - 0.2, Trials(), 0.95) is None
    assert minimum_track_record(np.zeros(300), Trials(), 0.95) is None


def test_whoever_never_trades_is_not_significant() -> None:
    assert deflated_sharpe(np.zeros(250), Trials()) == 0.5
    assert deflated_sharpe(np.zeros(250), trials_of(10, 0.01)) < 0.05


def test_two_returns_only_that_repeat_do_not_break_the_formula() -> None:
    """Skewness and kurtosis of two values can make the estimate's variance vanish."""
    returns = np.array([1.0] * 5 + [0.0] * 5)
    assert 0.0 <= deflated_sharpe(returns, Trials()) <= 1.0


@pytest.mark.parametrize("returns", [np.zeros(0), np.ones(1), np.array([1.0, np.nan, 2.0])])
def test_a_sharpe_ratio_of_too_little_or_of_no_numbers_is_refused(returns: np.ndarray) -> None:
    with pytest.raises(DataError, match="two at least"):
        deflated_sharpe(returns, Trials())


def plainly_overfitted(returns: np.ndarray, blocks: int) -> float:
    """CSCV step by step, with the Sharpe ratios of the sessions themselves."""
    parts, below = np.array_split(np.arange(len(returns)), blocks), []
    for half in itertools.combinations(range(blocks), blocks // 2):
        rest = [block for block in range(blocks) if block not in half]
        inside = returns[np.concatenate([parts[block] for block in half])]
        outside = returns[np.concatenate([parts[block] for block in rest])]
        best = int(np.argmax(inside.mean(axis=0) / inside.std(axis=0)))
        ratios = outside.mean(axis=0) / outside.std(axis=0)
        rank = stats.rankdata(ratios)[best] / (returns.shape[1] + 1)
        below.append(1.0 if rank < 0.5 else 0.5 if rank == 0.5 else 0.0)
    return float(np.mean(below))


@pytest.mark.parametrize(("sessions", "configurations", "blocks"), [(60, 5, 6), (67, 4, 8), (45, 2, 4)])
def test_overfitting_is_what_the_plain_computation_finds(sessions: int, configurations: int, blocks: int) -> None:
    returns = np.random.default_rng(sessions).standard_t(4, (sessions, configurations)) + 0.02
    assert overfitting_probability(returns, blocks) == pytest.approx(plainly_overfitted(returns, blocks))


def test_choosing_among_noise_is_overfitted_half_of_the_time() -> None:
    rng = np.random.default_rng(5)
    found = [overfitting_probability(rng.standard_normal((160, 11)), 8) for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)


def test_choosing_skill_is_not_overfitted_and_choosing_what_reverses_is() -> None:
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((320, 10))
    skilled = noise.copy()
    skilled[:, 3] += 0.5
    assert overfitting_probability(skilled) < 0.02
    reversing = noise - noise.mean(axis=0)  # what was good in one half must be bad in the other
    assert overfitting_probability(reversing) > 0.95


def test_configurations_that_are_the_same_or_flat_are_neither_overfitted_nor_not() -> None:
    one = np.random.default_rng(7).standard_normal((64, 1))
    assert overfitting_probability(np.repeat(one, 4, axis=1)) == 0.5
    assert overfitting_probability(np.zeros((64, 3))) == 0.5


@pytest.mark.parametrize(("shape", "blocks"), [((100, 1), 16), ((31, 5), 16), ((100, 5), 7), ((0, 0), 16)])
def test_overfitting_of_too_little_is_refused(shape: tuple[int, int], blocks: int) -> None:
    with pytest.raises(DataError, match="can only be judged"):
        overfitting_probability(np.zeros(shape), blocks)


def test_overfitting_of_what_is_no_number_is_refused() -> None:
    returns = np.zeros((64, 2))
    returns[5, 1] = np.nan
    with pytest.raises(DataError, match="a finite return in each"):
        overfitting_probability(returns)


def test_a_planned_look_needs_the_sessions_of_the_textbook() -> None:
    """Annual Sharpe ratio of the difference 1, 2, 3, 4 at alpha 5 % and power 80 %."""
    needed = [sessions_of_one_look(ratio / math.sqrt(YEAR), 1.0, alpha=0.05, power=0.8) for ratio in (1, 2, 3, 4)]
    assert needed == [1559, 390, 174, 98]


def test_so_many_sessions_decide_with_the_power_asked_for_and_half_as_many_do_not() -> None:
    effect = 3 / math.sqrt(YEAR)
    needed = sessions_to_decide(effect, 1.0, alpha=0.05, power=0.8)
    assert needed is not None
    differences = np.random.default_rng(8).standard_normal((2000, needed)) + effect
    decided = confidence_sequence(differences, 0.05).low > 0
    assert 0.8 <= decided.any(axis=1).mean() <= 0.92
    assert decided[:, : needed // 2].any(axis=1).mean() < 0.6


def test_dependence_and_noise_delay_a_decision_and_without_an_effect_it_never_comes() -> None:
    def needed(effect: float, deviation: float) -> int | None:
        return sessions_to_decide(effect, deviation, alpha=0.05, power=0.8)

    near, far = needed(2.0, 10.0), needed(2.0, 15.0)
    assert near is not None
    assert far is not None
    assert 1.9 * near < far
    assert needed(-2.0, 10.0) == near  # to find that the challenger is worse
    assert needed(0.0, 10.0) is None
    assert needed(1e-6, 10.0) is None
    assert needed(1.0, math.inf) is None
    assert sessions_of_one_look(0.0, 1.0, alpha=0.05, power=0.8) is None
    assert sessions_of_one_look(1e-9, 1.0, alpha=0.05, power=0.8) is None
