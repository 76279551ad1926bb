"""Nothing sees the future: truncated and poisoned futures, a market without structure, decisions that come late.

And no session sees another's prices: every feature is a ratio within one session.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from market_makers import FEATURES, SETTINGS, irregular_bars, observed

from baselines import rules
from core.actions import ACTION_OF
from core.observation import ObservationSchema
from trading import oracle
from trading.env import SessionEnv, run_policy
from trading.features import ACCOUNT_FEATURES, CONTEXT_FEATURES, FeatureSettings, sizing_log_quantity
from trading.market import Bars, Market, market_of, prepare
from trading.observations import Observations, Policy, observe
from trading.synthetic import simulate

SCHEMA = observed(day=4, m15=8)
PRICES = ("open", "high", "low", "close")
COST = SETTINGS.trading.cost_bps
EDGE = ACCOUNT_FEATURES.index("edge_32")
REGULAR = simulate(SETTINGS.synthetic_market.model_copy(update={"bars_per_session": 40}), sessions=14, seed=6).bars
IRREGULAR = irregular_bars(np.random.default_rng(3), sessions=24)


def known_at(market: Market, t: int) -> dict[str, np.ndarray]:
    """Everything that anybody could use at the close of bar t or before."""
    at = market.decision_bars[market.decision_bars < t]
    known = {name: getattr(market, name)[: t + 1] for name in ("bar_features", "context", "complexity", "volatility")}
    known |= {"decision_bars": at}
    for coarse in market.coarse:
        name = coarse.timeframe.name
        known |= {f"{name} closed": coarse.closed[: t + 1], f"{name} behind": coarse.behind[: t + 1]}
        known |= {name: coarse.bar_features[: coarse.closed[t]]}
    known["sizing"] = sizing_log_quantity(
        market.volatility[: t + 1],
        market.bars.close[: t + 1],
        capital=1e6,
        target_volatility_bps=10.0,
        max_quantity=1e5,
    )
    for position in (-1, 0, 1):
        seen = observe(market, SCHEMA, at, np.full(len(at), position))
        known |= {f"bars {position}": seen.bars, f"account {position}": seen.account}
        known[f"decisions {position}"] = rules.momentum(EDGE, 0.2)(*seen).action
    return known


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def cuts(market: Market) -> np.ndarray:
    """Bars all over the market, session ends among them, late enough for a decision before each."""
    first = int(market.decision_bars[0]) + 2
    ends = np.flatnonzero(market.bars.first_of_session) - 1
    anywhere = np.linspace(first, len(market.bars) - 1, 40).astype(int)
    return np.unique(np.concatenate([anywhere, ends[ends >= first]]))


@pytest.mark.parametrize("bars", [REGULAR, IRREGULAR], ids=["regular", "irregular"])
def test_what_is_known_of_a_truncated_history_equals_what_is_known_of_the_whole(bars: Bars) -> None:
    whole = market_of(bars, FEATURES, SCHEMA)
    for t in cuts(whole):
        part = market_of(bars.part(0, t + 1), FEATURES, SCHEMA)
        assert_same(known_at(part, t), known_at(whole, t))


@pytest.mark.parametrize("poison", [np.nan, 7.0], ids=["nan", "garbage"])
@pytest.mark.parametrize("bars", [REGULAR, IRREGULAR], ids=["regular", "irregular"])
def test_a_poisoned_future_changes_nothing_that_is_known(bars: Bars, poison: float) -> None:
    clean = market_of(bars, FEATURES, SCHEMA)
    for t in cuts(clean)[::3]:
        factor = np.where(np.arange(len(bars)) > t, poison, 1.0)
        spoiled = Bars(**{**bars.__dict__, **{price: getattr(bars, price) * factor for price in PRICES}})
        assert_same(known_at(market_of(spoiled, FEATURES, SCHEMA), t), known_at(clean, t))


@hypothesis_settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_prices_of_one_session_are_ratios_to_every_other(seed: int) -> None:
    """Exactly: with every session's prices times a factor of its own, only `log_units` (capital / price) changes."""
    rng = np.random.default_rng(seed)
    bars = irregular_bars(rng, sessions=20)
    factor = np.exp(rng.normal(0, 0.5, 20))[bars.session]
    scaled = Bars(**{**bars.__dict__, **{price: getattr(bars, price) * factor for price in PRICES}})
    one, other = (prepare(each, FEATURES, window=20, timeframes=SCHEMA.timeframes[1:]) for each in (bars, scaled))
    scale_free = [i for i, name in enumerate(CONTEXT_FEATURES) if name != "log_units"]
    for found, expected in (
        (other.bar_features, one.bar_features),
        (other.context[:, scale_free], one.context[:, scale_free]),
        (other.complexity, one.complexity),
        (other.volatility, one.volatility),
        (other.coarse[0].bar_features, one.coarse[0].bar_features),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    log_units = CONTEXT_FEATURES.index("log_units")
    np.testing.assert_allclose(other.context[:, log_units] + np.log(factor) / 4, one.context[:, log_units], atol=1e-5)


def shuffled(sessions: int) -> Market:
    """Bars of the synthetic market in random order, without their mean: as wild, and nothing to be known."""
    bars = simulate(SETTINGS.synthetic_market, sessions=sessions, seed=8).bars
    order = np.random.default_rng(9).permutation(len(bars))
    change = np.log(bars.close / bars.open)[order]
    close = 1e4 * np.exp(np.cumsum(change - change.mean()))
    opens = np.concatenate([[1e4], close[:-1]])
    high = np.maximum(opens * (bars.high / bars.open)[order], close)
    low = np.minimum(opens * (bars.low / bars.open)[order], close)
    columns = {"open": opens, "high": high, "low": low, "close": close, "signal": None}
    features = replace(FEATURES, bars_per_session=75)
    return prepare(Bars(**{**bars.__dict__, **columns}), features, window=20)


SHUFFLED = shuffled(600)
PLAIN = observed()


def contrarian(
    bars: np.ndarray, account: np.ndarray, complexity: np.ndarray, position: np.ndarray
) -> rules.RuleDecisions:
    return rules.momentum(0, 0.5)(bars, -account, complexity, position)


def earned(policy: Policy, market: Market, schema: ObservationSchema, cost_bps: float) -> np.ndarray:
    """Return in bps of each session."""
    env = SessionEnv(market, schema, market.sessions, cost_bps)
    total = np.zeros(len(env))
    for _, _, step in run_policy(policy, env):
        total += step.reward_bps
    return total


def error_of(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(len(values)))


RULES = {
    "follow": rules.momentum(0, 0.5),
    "contrarian": contrarian,
    **{f"edge_{span}": rules.momentum(ACCOUNT_FEATURES.index(f"edge_{span}"), 0.1) for span in (8, 32, 128)},
    "long": rules.buy_and_hold,
}


@pytest.mark.parametrize("name", RULES)
def test_in_a_market_without_structure_no_rule_earns_more_than_its_costs(name: str) -> None:
    gross, net = (earned(RULES[name], SHUFFLED, PLAIN, cost) for cost in (0.0, COST))
    assert abs(gross.mean()) < 3.5 * error_of(gross)
    assert net.mean() < gross.mean() - COST  # in and out at least once a session
    if name != "long":  # which hardly trades: its costs drown in what the market does
        assert net.mean() + 3 * error_of(net) < 0.0


def test_a_feature_that_looks_one_bar_ahead_earns_in_a_market_without_structure() -> None:
    """The test above can fail."""
    leaking = replace(SHUFFLED, context=np.roll(SHUFFLED.context, -1, axis=0))
    gross = earned(RULES["follow"], leaking, PLAIN, 0.0)
    assert gross.mean() > 10 * error_of(gross)


def test_the_oracles_decisions_are_worth_less_the_later_they_come() -> None:
    law, sessions = SETTINGS.synthetic_market, 1500
    path = simulate(law, sessions=sessions, seed=11)
    features = FeatureSettings.of(
        SETTINGS.hierarchical_reasoning_model.complexity_detection, bars_per_session=law.bars_per_session, capital=1e6
    )
    values = oracle.solve(law, COST).values(path)
    market = prepare(path.bars, features, window=20)
    curve = [_late(market, values, lag) for lag in (0, 1, 2, 4)]
    for sooner, later in itertools.pairwise(curve):
        lost = sooner - later
        assert lost.mean() > 2 * error_of(lost)


def _late(market: Market, values: np.ndarray, lag: int) -> np.ndarray:
    """Returns of following the values of `lag` bars ago, of the session's first decision at the earliest."""
    env = SessionEnv(market, PLAIN, market.sessions, COST)
    start, targets = env.at.copy(), np.array([-1, 0, 1])

    def policy(*seen: np.ndarray) -> rules.RuleDecisions:
        position = Observations(*seen).position
        q = values[np.maximum(env.at - lag, start)] - COST * np.abs(targets - position[:, None])
        return rules.RuleDecisions(ACTION_OF[position + 1, q.argmax(axis=1)])

    total = np.zeros(len(env))
    for _, _, step in run_policy(policy, env):
        total += step.reward_bps
    return total
