"""Positions, costs, sessions: the lock-step environment against plain arithmetic, and Gymnasium's own checker."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from core.actions import ACTION_OF, Action
from core.errors import DataError
from core.settings import load_settings
from trading.env import EndlessEnv, SessionEnv
from trading.features import FeatureSettings, schema
from trading.gym_env import TradingEnv
from trading.market import Market, prepare
from trading.observations import observe
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
SCHEMA = schema(SETTINGS.observation)
COST = 1.5


def make_market() -> Market:
    complexity = SETTINGS.hierarchical_reasoning_model.complexity_detection
    features = FeatureSettings.of(complexity, bars_per_session=75, capital=1e6)
    return prepare(simulate(SETTINGS.synthetic_market, sessions=12, seed=2).bars, features, window=60)


MARKET = make_market()
LAST = MARKET.sessions[-4:]


@given(st.lists(st.integers(-1, 1), min_size=74, max_size=74), st.sampled_from(LAST.tolist()))
def test_a_session_earns_what_plain_arithmetic_says(targets: list[int], session: int) -> None:
    env = SessionEnv(MARKET, SCHEMA, np.array([session]), COST)
    bars, start, earned = MARKET.bars, env.at[0], 0.0
    for target in targets:
        earned += env.step(ACTION_OF[env.position + 1, target + 1]).reward_bps[0]
    expected, held = 0.0, 0
    for k, target in enumerate(targets):
        t = start + k
        gap = held * (bars.open[t + 1] - bars.close[t]) / bars.close[t]
        move = target * (bars.close[t + 1] - bars.open[t + 1]) / bars.close[t]
        expected += 1e4 * (gap + move) - COST * abs(target - held)
        held = target
    assert env.done
    assert env.position[0] == 0
    assert earned == pytest.approx(expected - COST * abs(held), abs=1e-9)


def test_rows_do_not_influence_each_other() -> None:
    together = SessionEnv(MARKET, SCHEMA, LAST, COST)
    alone = SessionEnv(MARKET, SCHEMA, LAST[:1], COST)
    rng = np.random.default_rng(0)
    while not together.done:
        target = rng.integers(-1, 2, len(LAST))
        all_rows = together.step(ACTION_OF[together.position + 1, target + 1])
        one_row = alone.step(ACTION_OF[alone.position + 1, target[:1] + 1])
        assert all_rows.reward_bps[0] == one_row.reward_bps[0]


def test_an_illegal_action_is_refused() -> None:
    env = SessionEnv(MARKET, SCHEMA, LAST, COST)
    with pytest.raises(DataError, match="illegal action"):
        env.step(np.full(len(LAST), Action.CLOSE_LONG))


def test_a_session_without_decisions_is_refused() -> None:
    with pytest.raises(DataError, match="no decision"):
        SessionEnv(MARKET, SCHEMA, np.array([0]), COST)


def test_the_window_ends_with_the_bar_that_just_closed() -> None:
    at = np.array([500, 700])
    seen = observe(MARKET, SCHEMA, at, np.array([0, 1]))
    np.testing.assert_array_equal(seen.bars[:, -1], MARKET.bar_features[at])
    np.testing.assert_array_equal(seen.bars[:, 0], MARKET.bar_features[at - 59])
    assert seen.account[:, -1].tolist() == [0.0, 1.0]


def test_the_endless_environment_starts_every_session_flat() -> None:
    market = MARKET.restricted_to(int(LAST[0]), int(LAST[-1]))
    env = EndlessEnv(SessionEnv(market, SCHEMA, LAST, COST), np.zeros(len(MARKET.bars), np.float32), seed=0)
    ends = 0
    for _ in range(200):
        _, _, position, _ = env.observe()
        _, _, ended = env.step(ACTION_OF[position + 1, 2])
        ends += int(ended.sum())
        assert (env.observe()[2][ended] == 0).all()
    assert ends == len(LAST) * (200 // 74)


# The seed's quantity is in units, so the Box is not the unit interval the checker recommends.
@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
def test_gymnasium_accepts_the_environment() -> None:
    check_env(TradingEnv(MARKET, SCHEMA, COST), skip_render_check=True)


def test_an_illegal_action_in_the_gymnasium_view_holds_and_says_so() -> None:
    env = TradingEnv(MARKET, SCHEMA, COST)
    env.reset(seed=0)
    _, reward, _, _, info = env.step((int(Action.CLOSE_SHORT), np.array([1.0])))
    assert not info["legal"]
    assert reward == 0.0


def test_stepping_before_reset_is_an_error_with_the_remedy() -> None:
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        TradingEnv(MARKET, SCHEMA, COST).step((4, np.array([1.0])))
