"""The compiled engine equals the scalar reference on random tapes, whatever the market, the sizes and the charges."""

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.actions import LEGAL, Action
from core.errors import DataError
from core.settings import load_settings
from trading.costs import CostModel, flat_costs, nse_index_future_costs
from trading.env import SessionEnv, Step
from trading.features import FeatureSettings, schema
from trading.gym_env import TradingEnv
from trading.market import Bars, Market, prepare

SETTINGS = load_settings(preset="compact", environ={})
SCHEMA = schema(SETTINGS.observation)
COST_BPS = 1.5
DAY_NS, FIRST_NS = 86_400 * 10**9, 1_772_423_100 * 10**9  # 2026-03-02, so that a tax changes within a month


def nse_in_slices(day: date) -> object:
    return replace(nse_index_future_costs(0.5)(day), slice_units=1800.0)


@st.composite
def markets(draw: st.DrawFn) -> Market:
    """Sessions of every length from one bar on, prices that jump, days that are missing."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = [230, *draw(st.lists(st.integers(1, 9), min_size=2, max_size=6)), 5]
    session = np.repeat(np.arange(len(lengths)), lengths)
    day = np.cumsum(draw(st.lists(st.integers(1, 9), min_size=len(lengths), max_size=len(lengths))))
    n = len(session)
    place = np.concatenate([np.arange(length) for length in lengths])
    close = 20_000.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, n)))
    open_ = close * np.exp(rng.normal(0.0, 0.01, n))
    high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
    bars = Bars("X", FIRST_NS + day[session] * DAY_NS + place * 300 * 10**9, open_, high, low, close, session)
    features = FeatureSettings.of(
        SETTINGS.hierarchical_reasoning_model.complexity_detection, bars_per_session=9, capital=1e6
    )
    # A hole of more than a week would ask for new history; the accounting does not care about history.
    everything = np.flatnonzero(np.concatenate([session[1:] == session[:-1], [False]]))
    return replace(prepare(bars, features, window=60), decision_bars=everything[everything >= 200].astype(np.int64))


def played_alone(market: Market, session: int, tape: np.ndarray, sizes: np.ndarray, costs: CostModel) -> list[dict]:
    """The scalar reference over one session: what each step told."""
    env = TradingEnv(market, SCHEMA, COST_BPS, costs=costs)
    env.reset(options={"session": session})
    told, done = [], False
    while not done:
        before = env._units
        _, reward, done, truncated, info = env.step((tape[len(told)], np.array([sizes[len(told)]])))
        assert not truncated
        assert reward == 1e4 * info["pnl"] / 1e6
        told.append(info | {"before": before})
    return told


@settings(deadline=None, max_examples=60)
@given(
    markets(),
    st.sampled_from([flat_costs(COST_BPS), flat_costs(0.0), nse_index_future_costs(0.5), nse_in_slices]),
    st.integers(0, 2**32 - 1),
)
def test_the_compiled_engine_equals_the_scalar_reference_on_random_tapes(
    market: Market, costs: CostModel, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.choice(market.sessions, 2 * len(market.sessions))  # some twice, some not at all
    steps = 230
    tapes, sizes = rng.integers(0, 5, (steps, len(rows))), np.exp(rng.uniform(0.0, 9.0, (steps, len(rows))))
    alone = [played_alone(market, int(rows[i]), tapes[:, i], sizes[:, i], costs) for i in range(len(rows))]
    env = SessionEnv(market, SCHEMA, rows, COST_BPS, costs=costs)
    for k in range(steps):
        legal = LEGAL[env.position + 1, tapes[k]]
        np.testing.assert_array_equal(env.units[env.active], [told[k]["before"] for told in alone if k < len(told)])
        step = env.step(np.where(legal, tapes[k], Action.HOLD), sizes[k])
        for i, told in enumerate(alone):
            assert step.active[i] == (k < len(told))
            if not step.active[i]:
                continue
            assert legal[i] == told[k]["legal"]
            assert (step.position[i], step.turnover[i], step.orders[i]) == tuple(
                told[k][name] for name in ("target", "turnover", "orders")
            )
            for mine, its in ((step.reward_bps, "direction_bps"), (step.pnl, "pnl"), (step.charges, "charges")):
                assert mine[i] == pytest.approx(told[k][its], rel=1e-12, abs=1e-12)
    assert env.done
    assert not env.units.any()


def test_a_row_that_is_done_earns_nothing_and_ignores_what_it_is_told() -> None:
    market = small_market()
    env = SessionEnv(market, SCHEMA, market.sessions[[0, 1]], COST_BPS)  # of 4 and of 8 decisions
    for _ in range(4):
        env.step(np.array([Action.HOLD, Action.HOLD]))
    step = env.step(np.array([-7, Action.BUY_LONG]), np.array([np.nan, 2.0]))
    assert step.active.tolist() == [False, True]
    for name in set(Step._fields) - {"at", "active"}:
        assert getattr(step, name)[0] == 0
    assert env.units.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("quantity", [0.0, 0.99, -3.0, np.nan, np.inf])
def test_a_quantity_that_is_none_is_refused_and_nothing_changes(quantity: float) -> None:
    market = small_market()
    env = SessionEnv(market, SCHEMA, market.sessions[:2], COST_BPS)
    at = env.at.copy()
    with pytest.raises(DataError, match="quantity"):
        env.step(np.array([Action.BUY_LONG, Action.BUY_LONG]), np.array([5.0, quantity]))
    assert env.at.tolist() == at.tolist()
    assert env.units.tolist() == [0.0, 0.0]
    scalar = TradingEnv(market, SCHEMA, COST_BPS)
    scalar.reset(seed=0)
    with pytest.raises(DataError, match="quantity"):
        scalar.step((0, np.array([quantity])))


@pytest.mark.parametrize("action", [-1, 5, 2**40])
def test_a_number_that_is_no_action_is_refused(action: int) -> None:
    market = small_market()
    with pytest.raises(DataError, match="illegal action"):
        SessionEnv(market, SCHEMA, market.sessions[:1], COST_BPS).step(np.array([action]))


def test_holding_a_direction_keeps_its_units() -> None:
    market = small_market()
    env = SessionEnv(market, SCHEMA, market.sessions[:1], COST_BPS)
    env.step(np.array([Action.BUY_LONG]), np.array([7.9]))
    assert env.units.tolist() == [7.0]
    step = env.step(np.array([Action.HOLD]), np.array([90.0]))
    assert env.units.tolist() == [7.0]
    assert step.orders.tolist() == [0]


def small_market() -> Market:
    rng = np.random.default_rng(0)
    lengths = [230, 5, 9]
    session = np.repeat(np.arange(3), lengths)
    place = np.concatenate([np.arange(length) for length in lengths])
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, len(session))))
    bars = Bars("X", FIRST_NS + session * DAY_NS + place * 300 * 10**9, close, close, close, close, session)
    features = FeatureSettings.of(
        SETTINGS.hierarchical_reasoning_model.complexity_detection, bars_per_session=9, capital=1e6
    )
    market = prepare(bars, features, window=60)
    return market.restricted_to(1, 2)
