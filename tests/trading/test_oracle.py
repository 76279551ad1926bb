"""The oracle is optimal where it can be checked: simulation, a second filter, and every other policy."""

import numpy as np
import pytest

from baselines import rules
from core.actions import ACTION_OF
from core.observation import ObservationSchema
from core.settings import SyntheticMarket, load_settings
from trading import oracle
from trading.env import SessionEnv, run_policy
from trading.evaluation import evaluate, regret_of, score_interval, start_value
from trading.features import FeatureSettings, schema
from trading.market import Market, prepare
from trading.observations import Observations
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
LAW = SETTINGS.synthetic_market
COST = SETTINGS.trading.cost_bps
SESSIONS = 3000
TARGETS = np.array([-1, 0, 1])


@pytest.fixture(scope="module")
def solution() -> oracle.Oracle:
    return oracle.solve(LAW, COST)


@pytest.fixture(scope="module")
def market(solution: oracle.Oracle) -> Market:
    path = simulate(LAW, sessions=SESSIONS, seed=11)
    complexity = SETTINGS.hierarchical_reasoning_model.complexity_detection
    features = FeatureSettings.of(complexity, bars_per_session=LAW.bars_per_session, capital=1e6)
    return prepare(path.bars, features, window=60).with_values(solution.values(path))


@pytest.fixture(scope="module")
def observation_schema() -> ObservationSchema:
    return schema(SETTINGS.observation)


def follow_oracle(market: Market, env: SessionEnv) -> tuple[np.ndarray, np.ndarray]:
    """Realised return and regret per session of the oracle's own policy."""

    def policy(*seen: np.ndarray) -> rules.RuleDecisions:
        position = Observations(*seen).position
        assert market.values is not None
        q = market.values[env.at] - COST * np.abs(TARGETS - position[:, None])
        return rules.RuleDecisions(ACTION_OF[position + 1, q.argmax(axis=1)])

    returns, regret = np.zeros(len(env)), np.zeros(len(env))
    for seen, _, step in run_policy(policy, env):
        returns += step.reward_bps
        regret += regret_of(step, seen.position, market, COST)
    return returns, regret


def test_the_value_of_the_start_is_what_the_optimal_policy_earns(market, observation_schema) -> None:
    env = SessionEnv(market, observation_schema, market.sessions, COST)
    promised = start_value(market, env.at, COST)
    returns, regret = follow_oracle(market, env)
    error = returns - promised
    assert regret.max() == pytest.approx(0.0, abs=1e-9)
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))


def test_regret_along_the_own_path_sums_to_what_is_missing_to_the_optimum(market, observation_schema) -> None:
    played = evaluate(rules.momentum(8, 1.0), market, observation_schema, COST)
    missing = played.optimal_bps - played.return_bps
    assert (played.regret_bps - missing).mean() == pytest.approx(
        0.0, abs=4 * (played.regret_bps - missing).std() / np.sqrt(SESSIONS)
    )


def test_flat_scores_zero_and_trading_without_thought_scores_less(market, observation_schema) -> None:
    flat = score_interval(evaluate(rules.hold, market, observation_schema, COST))
    assert flat.ci95_low < 0.0 < flat.ci95_high
    assert evaluate(rules.buy_and_hold, market, observation_schema, COST).score < 0.0


def test_the_filter_is_bayes_rule(solution: oracle.Oracle) -> None:
    path = simulate(LAW, sessions=2, seed=5)
    probability = 0.5
    for t in range(1, len(path.z)):
        up = np.exp(-0.5 * (path.z[t] - LAW.amplitude * path.signal[t - 1]) ** 2)
        down = np.exp(-0.5 * (path.z[t] + LAW.amplitude * path.signal[t - 1]) ** 2)
        probability = probability * up / (probability * up + (1 - probability) * down)
        probability = LAW.stay_probability * probability + (1 - LAW.stay_probability) * (1 - probability)
    log_odds = oracle.filter_belief(path.signal, path.z, LAW)[-1]
    assert 1 / (1 + np.exp(-log_odds)) == pytest.approx(probability, abs=1e-9)


def test_a_filter_that_forgets_is_worth_less_but_not_nothing(solution, market, observation_schema) -> None:
    path = simulate(LAW, sessions=SESSIONS, seed=11)
    remembered, forgotten = (
        np.abs(oracle.filter_belief(path.signal, path.z, LAW, history=history)).mean() for history in (None, 60)
    )
    assert 0.3 * remembered < forgotten < remembered


def test_without_a_predictable_return_the_optimum_is_to_stay_out() -> None:
    silent = SyntheticMarket(**{**LAW.model_dump(), "amplitude": 0.0})
    path = simulate(silent, sessions=10, seed=1)
    q = oracle.solve(silent, COST).values(path) - COST * np.abs(TARGETS)
    np.testing.assert_allclose(q.max(axis=1), 0.0, atol=1e-6)


def test_the_cache_returns_the_same_solution_and_other_costs_another(tmp_path) -> None:
    small = SyntheticMarket(**{**LAW.model_dump(), "bars_per_session": 5})
    solved = oracle.solve(small, COST, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    cached = oracle.solve(small, COST, cache=tmp_path)
    np.testing.assert_array_equal(solved.continuation, cached.continuation)
    assert np.abs(oracle.solve(small, 3 * COST, cache=tmp_path).continuation - solved.continuation).max() > 0.1
    assert len(list(tmp_path.iterdir())) == 2
