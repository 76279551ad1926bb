"""Positions, costs, sessions: the lock-step environment against plain arithmetic, and Gymnasium's own checker."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FilterObservation, TransformAction
from hypothesis import given
from hypothesis import strategies as st

from core.actions import ACTION_OF, Action, legal_actions
from core.errors import DataError
from core.settings import load_settings
from trading.env import EndlessEnv, SessionEnv
from trading.features import FeatureSettings, schema
from trading.gym_env import TradingEnv
from trading.market import market_of
from trading.observations import observe, windows
from trading.synthetic import simulate

SETTINGS = load_settings(preset="compact", environ={})
SCHEMA = schema(SETTINGS.observation)
COST = 1.5


FEATURES = FeatureSettings.of(
    SETTINGS.hierarchical_reasoning_model.complexity_detection, bars_per_session=75, capital=1e6
)
MARKET = market_of(simulate(SETTINGS.synthetic_market, sessions=12, seed=2).bars, FEATURES, SCHEMA)
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


def test_a_window_is_a_view_of_the_market_at_the_index_of_its_bar() -> None:
    env = SessionEnv(MARKET, SCHEMA, LAST, COST)
    views = windows(MARKET, SCHEMA)
    copies = env.observe().bars
    for row, at in enumerate(env.at):
        view = views[at - SCHEMA.window + 1]
        assert np.shares_memory(view, MARKET.bar_features)
        assert not view.flags.writeable
        np.testing.assert_array_equal(view, copies[row])
    assert not np.shares_memory(copies, MARKET.bar_features)


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


def test_an_illegal_action_does_in_the_gymnasium_view_what_holding_does() -> None:
    rng = np.random.default_rng(0)
    told_off, holding = TradingEnv(MARKET, SCHEMA, COST), TradingEnv(MARKET, SCHEMA, COST)
    _, info = told_off.reset(seed=5)
    holding.reset(seed=5)
    done, illegal = False, 0
    while not done:
        action, quantity = int(rng.integers(0, 5)), np.array([rng.uniform(1.0, 50.0)])
        legal = bool(info["action_mask"][action])
        illegal += not legal
        seen, reward, done, _, info = told_off.step((action, quantity))
        same, its_reward, _, _, _ = holding.step((action if legal else int(Action.HOLD), quantity))
        assert (info["legal"], reward) == (legal, its_reward)
        np.testing.assert_array_equal(seen["account"], same["account"])
        np.testing.assert_array_equal(info["action_mask"], legal_actions(int(seen["position"])))
    assert illegal > 10


@given(st.integers(0, 2**31 - 1))
def test_a_seed_gives_the_same_session_and_the_same_rewards(seed: int) -> None:
    def played() -> tuple[int, list[float]]:
        env = TradingEnv(MARKET, SCHEMA, COST)
        _, info = env.reset(seed=seed)
        env.action_space.seed(seed)
        return info["session"], [float(env.step(env.action_space.sample())[1]) for _ in range(10)]

    assert played() == played()


def test_seeds_choose_different_sessions() -> None:
    env = TradingEnv(MARKET, SCHEMA, COST)
    assert {env.reset(seed=seed)[1]["session"] for seed in range(100)} == set(MARKET.sessions.tolist())


def test_observations_of_several_timeframes_are_the_batched_ones() -> None:
    settings = load_settings(
        preset="compact", environ={"HRM_OBSERVATION__TIMEFRAMES": "[{name: 15min, bars: 20}, {name: day, bars: 20}]"}
    )
    spec = schema(settings.observation)
    market = market_of(simulate(settings.synthetic_market, sessions=24, seed=2).bars, FEATURES, spec)
    env = TradingEnv(market, spec, COST)
    seen, info = env.reset(seed=0)
    batched = SessionEnv(market, spec, np.array([info["session"]]), COST).observe()
    assert seen["bars"].shape == (100, 6)
    np.testing.assert_array_equal(seen["bars"], batched.bars[0])


def test_gymnasium_steps_several_of_them_as_one() -> None:
    together = gym.vector.SyncVectorEnv([lambda: TradingEnv(MARKET, SCHEMA, COST)] * 3)
    alone = [TradingEnv(MARKET, SCHEMA, COST) for _ in range(3)]
    seen, _ = together.reset(seed=3)
    for row, env in enumerate(alone):
        np.testing.assert_array_equal(seen["bars"][row], env.reset(seed=3 + row)[0]["bars"])
    together.action_space.seed(0)
    for _ in range(20):
        actions, quantities = together.action_space.sample()
        seen, rewards, *_ = together.step((actions, quantities))
        for row, env in enumerate(alone):
            its, reward, *_ = env.step((actions[row], quantities[row]))
            assert rewards[row] == reward
            for name, value in its.items():
                np.testing.assert_array_equal(seen[name][row], value)


@pytest.mark.filterwarnings("ignore:Your observation bars has an unconventional shape")  # two-dimensional, as meant
def test_stable_baselines3_learns_in_it_behind_two_wrappers() -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env as check_for_stable_baselines3

    def taken(action: np.ndarray) -> tuple[int, float]:
        return int(action[0]), 10.0 ** action[1]

    env = FilterObservation(TradingEnv(MARKET, SCHEMA, COST), ["bars", "account"])
    env = TransformAction(env, taken, MultiDiscrete([5, 6]))
    check_for_stable_baselines3(env)
    learner = PPO("MultiInputPolicy", env, n_steps=80, batch_size=80, n_epochs=1, seed=0, device="cpu").learn(160)
    assert learner.num_timesteps == 160


@pytest.mark.parametrize("action", [-1, 5, 2.7, np.nan, np.inf, None, "BUY"])
def test_what_is_no_action_is_refused_with_nothing_changed(action: Any) -> None:
    env = TradingEnv(MARKET, SCHEMA, COST)
    env.reset(seed=0)
    at = env._at
    with pytest.raises(DataError, match="not an action"):
        env.step((action, np.array([1.0])))
    assert env._at == at


def test_an_unknown_session_leaves_the_one_in_progress() -> None:
    env = TradingEnv(MARKET, SCHEMA, COST)
    _, info = env.reset(seed=0)
    with pytest.raises(DataError, match="no decision"):
        env.reset(options={"session": 99})
    assert env.step((int(Action.HOLD), 1.0))[4]["session"] == info["session"]


def test_a_market_without_decisions_has_no_environment() -> None:
    with pytest.raises(DataError, match="no session"):
        TradingEnv(MARKET.restricted_to(50, 60), SCHEMA, COST)


def test_stepping_before_reset_is_an_error_with_the_remedy() -> None:
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        TradingEnv(MARKET, SCHEMA, COST).step((4, np.array([1.0])))
