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
from trading.env import EndlessEnv, SessionEnv, Step
from trading.features import FeatureSettings, schema
from trading.gym_env import TradingEnv
from trading.market import Bars, Market, prepare
from trading.symbols import concatenate

SETTINGS = load_settings(preset="compact", environ={})
SCHEMA = schema(SETTINGS.observation)
COST_BPS = 1.5
DAY_NS, FIRST_NS = 86_400 * 10**9, 1_772_423_100 * 10**9  # 2026-03-02, so that a tax changes within a month


def nse_in_slices(day: date) -> object:
    return replace(nse_index_future_costs(0.5)(day), slice_units=1800.0)


COST_MODELS = st.sampled_from([flat_costs(COST_BPS), flat_costs(0.0), nse_index_future_costs(0.5), nse_in_slices])


@st.composite
def markets(draw: st.DrawFn) -> Market:
    """One symbol, or two in one market."""
    return draw(symbols("X")) if draw(st.booleans()) else concatenate([draw(symbols("X")), draw(symbols("Y"))])


@st.composite
def symbols(draw: st.DrawFn, name: str) -> Market:
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
    bars = Bars(name, FIRST_NS + day[session] * DAY_NS + place * 300 * 10**9, open_, high, low, close, session)
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
@given(markets(), COST_MODELS, st.integers(0, 2**32 - 1))
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


@settings(deadline=None, max_examples=30)
@given(markets(), COST_MODELS, st.integers(0, 2**32 - 1))
def test_an_endless_environment_is_the_scalar_one_session_after_session(
    market: Market, costs: CostModel, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    inner = SessionEnv(market, SCHEMA, rng.choice(market.sessions, 3), COST_BPS, costs=costs)
    env = EndlessEnv(inner, np.zeros(len(market.bars), np.float32), seed)
    alone = [TradingEnv(market, SCHEMA, COST_BPS, costs=costs) for _ in range(len(inner))]
    shown = [one.reset(options={"session": int(inner.sessions[i])})[0] for i, one in enumerate(alone)]
    for _ in range(60):
        seen = inner.observe()
        for i, its in enumerate(shown):
            np.testing.assert_array_equal(seen.bars[i], its["bars"])
            np.testing.assert_array_equal(seen.account[i], its["account"])
            assert (seen.complexity[i], seen.position[i]) == (its["complexity"][0], its["position"])
            assert inner.units[i] == alone[i]._units
        tape, sizes = rng.integers(0, 5, len(inner)), rng.uniform(1.0, 4000.0, len(inner))
        legal = LEGAL[inner.position + 1, tape]
        reward, cost, ended = env.step(np.where(legal, tape, Action.HOLD), sizes)
        for i, one in enumerate(alone):
            shown[i], _, done, _, told = one.step((tape[i], sizes[i]))
            assert reward[i] == pytest.approx(told["direction_bps"], rel=1e-12, abs=1e-12)
            assert cost[i] == COST_BPS * told["turnover"]
            assert ended[i] == done
            if done:
                shown[i], _ = one.reset(options={"session": int(inner.sessions[i])})
    assert inner.active.all()


@settings(deadline=None, max_examples=30)
@given(markets(), st.integers(0, 2**32 - 1))
def test_no_session_uses_the_prices_of_another(market: Market, seed: int) -> None:
    rng = np.random.default_rng(seed)
    session = int(rng.choice(market.sessions))
    tape, sizes = rng.integers(0, 5, 230), rng.uniform(1.0, 4000.0, 230)
    with_others = played_alone(market, session, tape, sizes, flat_costs(COST_BPS))
    poisoned = without_other_sessions(market, session)
    told = played_alone(poisoned, session, tape, sizes, flat_costs(COST_BPS))
    env = SessionEnv(poisoned, SCHEMA, np.array([session]), COST_BPS)
    for mine, its in zip(with_others, told, strict=True):
        step = env.step(np.where(LEGAL[env.position + 1, tape[:1]], tape[:1], Action.HOLD), sizes[:1])
        tape, sizes = tape[1:], sizes[1:]
        for name in ("direction_bps", "pnl", "charges"):
            assert np.isfinite(its[name])
            assert its[name] == mine[name]
        assert (step.reward_bps[0], step.pnl[0]) == pytest.approx((mine["direction_bps"], mine["pnl"]), rel=1e-12)
    assert env.done


def without_other_sessions(market: Market, session: int) -> Market:
    bars = market.bars
    kept = bars.session == session
    poison = {name: np.where(kept, getattr(bars, name), np.nan) for name in ("open", "high", "low", "close")}
    return replace(market, bars=replace(bars, **poison))


# (action, quantity) -> direction in bps, rupees, charges, turnover, orders, by hand
BY_HAND = [
    ((Action.BUY_LONG, 3.7), (1e4 * 1 / 100 - 2, 3 - 0.303, 0.303, 1, 1)),  # three units at 101, worth 102
    ((Action.SELL_SHORT, 2.0), (1e4 * 3 / 102 - 4, 6 + 2 - 0.52, 0.52, 2, 1)),  # five sold at 104, worth 103
    ((Action.HOLD, 99.0), (1e4 * 5 / 103 - 2, 6 + 4 - 0.196, 0.196, 1, 1)),  # two short over 100, bought at 98
]


def test_a_session_by_hand() -> None:
    market = small_market()
    bars, at = market.bars, int(np.flatnonzero(small_market().bars.session == 2)[0])
    open_, close = bars.open.copy(), bars.close.copy()
    open_[at : at + 4], close[at : at + 4] = [99.0, 101.0, 104.0, 100.0], [100.0, 102.0, 103.0, 98.0]
    decisions = np.arange(at, at + 3)
    market = replace(market, bars=replace(bars, open=open_, close=close), decision_bars=decisions)
    env = SessionEnv(market, SCHEMA, np.array([2]), 2.0, costs=flat_costs(10.0))
    scalar = TradingEnv(market, SCHEMA, 2.0, costs=flat_costs(10.0), capital=1e5)
    scalar.reset()
    for (action, quantity), expected in BY_HAND:
        step = env.step(np.array([action]), np.array([quantity]))
        got = [step.reward_bps, step.pnl, step.charges, step.turnover, step.orders]
        assert [each[0] for each in got] == pytest.approx(expected, rel=1e-12)
        _, reward, done, _, told = scalar.step((action, quantity))
        names = ("direction_bps", "pnl", "charges", "turnover", "orders")
        assert [told[name] for name in names] == pytest.approx(expected, rel=1e-12)
        assert reward == pytest.approx(0.1 * told["pnl"])
    assert done
    assert env.done
    assert (env.position[0], env.units[0], told["units"]) == (0, 0.0, 0.0)


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


@pytest.mark.parametrize(
    ("action", "quantity"),
    [
        (np.array([4.0, 4.0]), None),
        (np.array([4]), None),
        (np.array([[4], [4]]), None),
        (np.array([4, 4]), np.array([1.0])),
    ],
)
def test_arrays_that_do_not_fit_the_rows_are_refused(action: np.ndarray, quantity: np.ndarray | None) -> None:
    market = small_market()
    with pytest.raises(DataError, match="for 2 rows"):
        SessionEnv(market, SCHEMA, market.sessions[:2], COST_BPS).step(action, quantity)


def test_a_row_or_a_place_that_does_not_exist_is_not_restarted() -> None:
    market = small_market()
    env = SessionEnv(market, SCHEMA, market.sessions[:2], COST_BPS)
    for rows, places in (([2], [0]), ([0], [2]), ([0, 1], [0])):
        with pytest.raises(IndexError):
            env.restart(np.array(rows), np.array(places))


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
