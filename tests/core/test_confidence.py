"""Confidence sequences: how often they are wrong when looked at after every session, and what they can see.

The simulations are the proof: 10,000 pairs of agents of equal worth, 500 sessions, a look after every one from the
60th on. A rule passes if the upper end of the 99 % Clopper-Pearson interval of its rate is at most alpha.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import signal, stats

from core.confidence import FIRST_LOOK, LAGS, ConfidenceSequence, confidence_sequence, long_run_deviation, radius
from core.errors import DataError

ALPHA = 0.05
PATHS, SESSIONS = 10_000, 500
YEAR = 252
BOUNDS = ("mean", "low", "high")


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape)


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Student's t with four degrees of freedom, of variance 1."""
    return rng.standard_t(4, shape) / np.sqrt(2)


def autocorrelated(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """AR(1) 0.3, stationary; its mean over many values has the deviation of independent values of deviation 1."""
    noise = rng.standard_normal((shape[0], shape[1] + 30))
    return 0.7 * signal.lfilter([1.0], [1.0, -0.3], noise, axis=1)[:, 30:]


WORLDS = {"normal": normal, "t4": heavy_tailed, "AR(1) 0.3": autocorrelated}


def ever(decided: np.ndarray) -> np.ndarray:
    """[P] whether a path was decided at any look."""
    return decided[:, FIRST_LOOK - 1 :].any(axis=1)


def looked_at(differences: np.ndarray, alpha: float, lags: int = LAGS) -> ConfidenceSequence:
    """Of each path by itself, in pieces that a cache holds: a third of the time."""
    pieces = [confidence_sequence(piece, alpha, lags=lags) for piece in np.array_split(differences, PATHS // 100)]
    return ConfidenceSequence(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in BOUNDS))


def surely_at_most(count: int, alpha: float) -> bool:
    """Whether 99 % confidence in a simulated rate lies below `alpha`."""
    return bool(stats.binomtest(count, PATHS).proportion_ci(0.98, "exact").high <= alpha)


@pytest.fixture(scope="module", params=WORLDS)
def equal_agents(request: pytest.FixtureRequest) -> np.ndarray:
    """Paired differences [P, S] of agents that earn the same."""
    return WORLDS[request.param](np.random.default_rng(11), (PATHS, SESSIONS))


def test_equals_are_promoted_and_condemned_at_most_alpha_often_though_looked_at_every_session(equal_agents) -> None:
    bounds = looked_at(equal_agents, ALPHA)
    promoted, condemned = ever(bounds.low > 0), ever(bounds.high < 0)
    assert surely_at_most(int(promoted.sum()), ALPHA)
    assert surely_at_most(int(condemned.sum()), ALPHA)
    assert not (bounds.low > bounds.high).any()


def test_the_two_sided_sequence_is_the_one_sided_at_half_the_level(equal_agents) -> None:
    bounds = looked_at(equal_agents, ALPHA / 2)
    assert surely_at_most(int(ever((bounds.low > 0) | (bounds.high < 0)).sum()), ALPHA)


def test_a_t_test_peeked_at_every_session_fails_the_same_test(equal_agents) -> None:
    count = np.arange(1, SESSIONS + 1)
    mean = np.cumsum(equal_agents, axis=1) / count
    deviation = np.sqrt(
        np.maximum(np.cumsum(equal_agents**2, axis=1) / count - mean**2, 0) * count / (count - 1 + 1e-9)
    )
    promoted = ever(mean * np.sqrt(count) > stats.t.ppf(1 - ALPHA, np.maximum(count - 1, 1)) * deviation)
    assert promoted.mean() > 0.2
    assert not surely_at_most(int(promoted.sum()), ALPHA)


def test_without_the_long_run_deviation_dependent_sessions_fool_the_sequence() -> None:
    differences = autocorrelated(np.random.default_rng(12), (PATHS, SESSIONS))
    fooled = ever(looked_at(differences, ALPHA, lags=0).low > 0)
    assert not surely_at_most(int(fooled.sum()), ALPHA)


@pytest.mark.parametrize(("sharpe", "decided_ratio", "median_sessions"), [(2, 0.55, 450), (4, 0.99, 140)])
def test_a_better_agent_is_found_in_the_time_that_the_tables_say(sharpe, decided_ratio, median_sessions) -> None:
    """Annual Sharpe ratio of the difference 2: more often than not within two years; 4: within half a year."""
    differences = normal(np.random.default_rng(13), (4000, SESSIONS)) + sharpe / np.sqrt(YEAR)
    low = looked_at(differences, ALPHA).low
    assert ever(low > 0).mean() > decided_ratio
    first = np.where(ever(low > 0), (low > 0).argmax(axis=1) + 1, SESSIONS + 1)
    assert np.median(first) < median_sessions


def test_a_worse_agent_is_promoted_no_oftener_than_an_equal_one() -> None:
    differences = normal(np.random.default_rng(14), (PATHS, SESSIONS)) - 1 / np.sqrt(YEAR)
    assert surely_at_most(int(ever(looked_at(differences, ALPHA).low > 0).sum()), ALPHA / 5)


def plain_deviation(values: np.ndarray, lags: int) -> float:
    """The docstring's formula for one series, with loops."""
    n, centred = len(values), values - values.mean()
    gamma = [float((centred[lag:] * centred[: n - lag]).sum()) / n for lag in range(lags + 1)]
    shared = sum(2 * (1 - lag / (lags + 1)) * gamma[lag] for lag in range(1, lags + 1))
    return float(np.sqrt((gamma[0] + max(shared, 0.0)) * n / (n - 2 * lags - 1)))


@given(arrays(np.float64, st.integers(20, 60), elements=st.floats(-100, 100)), st.integers(0, LAGS))
def test_the_running_deviation_is_newey_and_wests_of_every_beginning(values: np.ndarray, lags: int) -> None:
    found = long_run_deviation(values[None], lags)[0]
    assert np.isinf(found[: 2 * lags + 1]).all()
    for n in range(2 * lags + 2, len(values) + 1):
        assert found[n - 1] == pytest.approx(plain_deviation(values[:n], lags), abs=1e-5)


def test_bounds_move_with_the_values_and_scale_with_their_unit() -> None:
    values = heavy_tailed(np.random.default_rng(15), (3, 200))
    here, there = confidence_sequence(values, ALPHA), confidence_sequence(1e4 + 100 * values, ALPHA)
    np.testing.assert_allclose(there.low, 1e4 + 100 * here.low)
    np.testing.assert_allclose(there.high, 1e4 + 100 * here.high)


def test_nothing_is_known_before_the_first_look_and_everything_about_a_constant_after_it() -> None:
    bounds = confidence_sequence(np.full((1, FIRST_LOOK), 0.1), ALPHA)
    assert np.isinf(bounds.low[0, :-1]).all()
    assert np.isinf(bounds.high[0, :-1]).all()
    assert bounds.low[0, -1] == bounds.high[0, -1] == pytest.approx(0.1)


def test_a_series_shorter_than_the_lags_has_no_bounds_yet() -> None:
    for sessions in range(LAGS + 2):
        assert np.isinf(confidence_sequence(np.arange(float(sessions)), ALPHA).low).all()


def test_the_radius_is_the_published_one_tightest_near_the_session_it_is_tuned_for() -> None:
    assert float(radius(100, 0.05, 50)) == pytest.approx(0.28196, abs=1e-5)  # by hand, rho^2 = 0.158723
    tuned = {target: float(radius(250, 0.05, target)) for target in (25, 250, 2500)}
    assert tuned[250] < min(tuned[25], tuned[2500])
    assert (np.diff(radius(np.arange(1, 1000), 0.05)) < 0).all()


def test_a_session_without_a_result_is_refused() -> None:
    with pytest.raises(DataError, match="find the session"):
        confidence_sequence(np.array([1.0, np.nan, 2.0]), ALPHA)
