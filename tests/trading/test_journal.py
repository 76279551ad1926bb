"""A plan followed by compiled code is a policy asked in every lock-step: the same decisions, the same money."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import date

import numpy as np
import pytest
from decision_service import RuleDecisions, follow_signal
from hypothesis import given
from hypothesis import strategies as st
from test_accounting import SCHEMA, markets, nse_in_slices

from core.actions import ACTION_OF, LEGAL, TARGET_OF
from core.errors import DataError
from core.settings import Settings
from trading import backtest
from trading.costs import flat_costs, nse_index_future_costs
from trading.features import schema
from trading.journal import UNKNOWN, Journal, Plan
from trading.market import Market
from trading.symbols import concatenate


def numbered(market: Market) -> Market:
    """The market, its first account feature being the number of the bar."""
    context = market.context.copy()
    context[:, 0] = np.arange(len(context))
    return replace(market, context=context)


def reading(plan: Plan) -> backtest.Policy:
    """The plan as a policy over a numbered market."""

    def policy(_bars: object, account: np.ndarray, _complexity: object, position: np.ndarray) -> RuleDecisions:
        at = account[:, 0].astype(np.int64)
        target = plan.targets[at, position + 1]
        return RuleDecisions(ACTION_OF[position + 1, target + 1], plan.quantity[at], np.ones_like(position))

    return policy


@given(
    markets(),
    st.sampled_from([flat_costs(1.5), nse_index_future_costs(0.5), nse_in_slices]),
    st.sampled_from([None, 50.0, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_a_plan_is_the_policy_that_reads_it(market: Market, cost: object, lot: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(market.bars)
    plan = Plan(rng.integers(-1, 2, (n, 3)), np.exp(rng.uniform(0.0, 9.0, n)))
    lots = None if lot is None else lambda _day: lot
    results = [
        backtest.run(policy, numbered(market), SCHEMA, cost=cost, initial_capital=1e12, lot_units=lots)
        for policy in (plan, reading(plan))
    ]
    for name in (field.name for field in fields(Journal)):
        np.testing.assert_array_equal(*(getattr(result.journal, name) for result in results), err_msg=name)
    np.testing.assert_array_equal(results[0].equity, results[1].equity)


@given(markets(), st.integers(0, 2**32 - 1))
def test_a_journal_adds_up(market: Market, seed: int) -> None:
    """Positions follow actions, units follow positions, and the sum of bars and fills is the money."""
    rng = np.random.default_rng(seed)
    n, bars = len(market.bars), market.bars
    plan = Plan(rng.integers(-1, 2, (n, 3)), np.exp(rng.uniform(0.0, 5.0, n)))
    result = backtest.run(plan, market, SCHEMA, cost=flat_costs(3.0), initial_capital=1e12)
    journal = result.journal
    first = np.append(True, np.diff(bars.session[journal.at]) != 0)
    before = np.where(first, 0, np.append(0, journal.position[:-1]))
    assert LEGAL[before + 1, journal.action].all()
    assert (TARGET_OF[before + 1, journal.action] == journal.position).all()
    assert (np.sign(journal.units) == journal.position).all()
    assert (journal.units == np.trunc(journal.units)).all()
    last = np.append(first[1:], True)
    bought = journal.changed(market)
    cash = -bought * bars.open[journal.at + 1] + np.where(last, journal.units * bars.close[journal.at + 1], 0.0)
    assert cash.sum() == pytest.approx((journal.net + journal.charges).sum(), rel=1e-9, abs=1e-6)
    value = np.abs(bought) * bars.open[journal.at + 1] + np.where(
        last, np.abs(journal.units) * bars.close[journal.at + 1], 0.0
    )
    assert journal.charges == pytest.approx(3e-4 * value, rel=1e-9, abs=1e-9)
    assert journal.orders.tolist() == ((bought != 0) * 1 + (last & (journal.units != 0)) * 1).tolist()


@pytest.mark.parametrize("quantity", [np.nan, 0.4, -3.0, np.inf])
def test_a_lot_does_not_make_a_quantity_of_what_is_none(
    paper_market: Market, paper_settings: Settings, quantity: float
) -> None:
    n = len(paper_market.bars)
    plan = Plan(np.ones((n, 3), dtype=np.int64), np.full(n, quantity))
    for lot_units in (None, lambda _day: 50.0):
        with pytest.raises(DataError, match="quantity"):
            backtest.run(
                plan,
                paper_market,
                schema(paper_settings.observation),
                cost=flat_costs(1.5),
                initial_capital=1e6,
                lot_units=lot_units,
            )


def test_the_lot_is_that_of_the_session_s_day(paper_market: Market, paper_settings: Settings) -> None:
    asked: list[date] = []

    def lot_units(day: date) -> float:
        asked.append(day)
        return 30.0 if len(asked) % 2 else 70.0

    n = len(paper_market.bars)
    plan = Plan(np.ones((n, 3), dtype=np.int64), np.full(n, 80.0))
    observed = schema(paper_settings.observation)
    result = backtest.run(plan, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6, lot_units=lot_units)
    assert tuple(asked) == result.days
    held = [result.journal.units[result.session_of == session].max() for session in range(len(asked))]
    assert held == [60.0 if place % 2 == 0 else 70.0 for place in range(len(asked))]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda plan: replace(plan, targets=plan.targets[:-1]), "needs targets"),
        (lambda plan: replace(plan, quantity=plan.quantity[:-1]), "needs targets"),
        (lambda plan: replace(plan, targets=plan.targets * 2), "targets are"),
        (lambda plan: replace(plan, targets=plan.targets * 0.5), "targets are"),
        (lambda plan: replace(plan, targets=plan.targets * 257), "targets are"),
    ],
)
def test_a_plan_that_is_none_is_refused(
    paper_market: Market, paper_settings: Settings, change: object, what: str
) -> None:
    n = len(paper_market.bars)
    plan = change(Plan(np.ones((n, 3), dtype=np.int64), np.ones(n)))
    observed = schema(paper_settings.observation)
    with pytest.raises(DataError, match=what):
        backtest.run(plan, paper_market, observed, cost=flat_costs(0.0), initial_capital=1e6)


def test_a_policy_sees_only_sessions_that_go_on_and_must_answer_for_each(
    paper_market: Market, paper_settings: Settings
) -> None:
    seen: list[int] = []

    def policy(*observed: np.ndarray) -> RuleDecisions:
        seen.append(len(observed[3]))
        return follow_signal(*observed)

    observed = schema(paper_settings.observation)
    result = backtest.run(policy, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6)
    assert sum(seen) == len(paper_market.decision_bars)
    assert (result.journal.stable == UNKNOWN).all()

    def short(*observed: np.ndarray) -> RuleDecisions:
        made = follow_signal(*observed)
        return replace(made, action=made.action[:1], quantity=made.quantity[:1])

    with pytest.raises(DataError, match="answered 1 decisions"):
        backtest.run(short, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6)


def test_progress_is_told_up_to_the_end(paper_market: Market, paper_settings: Settings) -> None:
    told: list[float] = []
    observed = schema(paper_settings.observation)
    backtest.run(follow_signal, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6, watch=told.append)
    assert told == sorted(told)
    assert (len(told), told[-1]) == (29, 1.0)


def test_several_symbols_are_one_account_by_day(paper_market: Market, paper_settings: Settings) -> None:
    """Two symbols in lock-step earn, day by day, what each earns alone."""
    observed = schema(paper_settings.observation)
    other = replace(paper_market, bars=replace(paper_market.bars, name="OTHER", close=paper_market.bars.close * 1.001))
    both = concatenate([paper_market, other])
    run = {"cost": flat_costs(1.5), "initial_capital": 1e6}
    alone = [backtest.run(follow_signal, market, observed, **run) for market in (paper_market, other)]
    together = backtest.run(follow_signal, both, observed, **run)
    assert together.days == alone[0].days
    np.testing.assert_allclose(together.net, alone[0].net + alone[1].net)
    assert together.trades.tolist() == (alone[0].trades + alone[1].trades).tolist()
