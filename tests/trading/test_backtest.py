"""A backtest's money is what a hand calculation and the environment's returns say it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from decision_service import QUANTITY, RuleDecisions, follow_signal

from core.actions import ACTION_OF
from core.errors import DataError
from core.settings import Settings
from trading import backtest
from trading.costs import flat_costs, nse_index_future_costs
from trading.evaluation import evaluate
from trading.features import schema
from trading.market import Market


def scripted(targets: list[int], quantity: float = 10.9) -> backtest.Policy:
    """Goes through the targets, one a decision, whatever it sees."""
    turn = iter(targets)

    def policy(_bars: object, _account: object, _complexity: object, position: np.ndarray) -> RuleDecisions:
        target = np.full(len(position), next(turn))
        return RuleDecisions(
            ACTION_OF[position + 1, target + 1], np.full(len(position), quantity), np.ones(len(position), np.int64)
        )

    return policy


def one_session(market: Market) -> Market:
    last = int(market.sessions[-1])
    return market.restricted_to(last, last)


def test_one_session_worked_by_hand(paper_market: Market, paper_settings: Settings) -> None:
    market = one_session(paper_market)
    start, opens, closes = int(market.decision_bars[0]), market.bars.open, market.bars.close
    targets = [1, 1, -1] + [0] * 25 + [1]  # the last decision is squared off at the close
    result = backtest.run(
        scripted(targets), market, schema(paper_settings.observation), cost=flat_costs(2.0), initial_capital=1e6
    )
    buy, reverse, flat = opens[start + 1], opens[start + 3], opens[start + 4]
    entry, exit_ = opens[start + 29], closes[start + 29]
    profit = 10 * ((reverse - buy) + (reverse - flat) + (exit_ - entry))
    costs = 2e-4 * (10 * buy + 20 * reverse + 10 * flat + 10 * entry + 10 * exit_)
    assert result.trades.tolist() == [5]
    assert result.charges.sum() == pytest.approx(costs)
    assert result.equity[-1] - 1e6 == pytest.approx(profit - costs)
    assert result.total_return == pytest.approx((profit - costs) / 1e6)


def test_without_trading_nothing_is_earned_and_nothing_paid(paper_market: Market, paper_settings: Settings) -> None:
    market = one_session(paper_market)
    result = backtest.run(
        scripted([0] * 29), market, schema(paper_settings.observation), cost=flat_costs(2.0), initial_capital=1e6
    )
    assert (result.total_return, result.charges.sum(), result.drawdown.max()) == (0.0, 0.0, 0.0)
    assert (result.trades.sum(), result.time_in_market.max()) == (0, 0.0)


def test_at_one_unit_money_equals_the_environment_s_returns(paper_market: Market, paper_settings: Settings) -> None:
    """Rewards are per close of the decision bar; at prices that hardly move the sums agree closely."""
    observed = schema(paper_settings.observation)
    first = float(paper_market.bars.close[0])

    def one_unit(*seen: np.ndarray) -> RuleDecisions:
        return replace(follow_signal(*seen), quantity=np.ones(len(seen[3])))

    result = backtest.run(one_unit, paper_market, observed, cost=flat_costs(1.5), initial_capital=first)
    returns = evaluate(one_unit, paper_market, observed, cost_bps=1.5).return_bps
    assert result.trades.sum() > 10
    assert 1e4 * result.total_return == pytest.approx(returns.sum(), rel=0.05)


def test_charges_by_the_table_cost_more_than_none(paper_market: Market, paper_settings: Settings) -> None:
    runs = [
        backtest.run(follow_signal, paper_market, schema(paper_settings.observation), cost=cost, initial_capital=1e6)
        for cost in (flat_costs(0.0), nse_index_future_costs(slippage_bps=0.5))
    ]
    assert runs[0].charges.sum() == 0.0
    assert runs[0].equity[-1] - runs[1].equity[-1] == pytest.approx(runs[1].charges.sum())


def test_drawdown_is_measured_from_the_highest_equity_the_start_included() -> None:
    curve = np.array([90.0, 120.0, 60.0, 130.0])
    np.testing.assert_allclose(backtest.drawdown_of(curve, 100.0), [0.1, 0.0, 0.5, 0.0])


def test_a_ruined_account_trades_no_more(paper_market: Market, paper_settings: Settings) -> None:
    runs = [
        backtest.run(
            follow_signal,
            paper_market,
            schema(paper_settings.observation),
            cost=flat_costs(100.0),
            initial_capital=capital,
        )
        for capital in (1e9, 60_000.0)
    ]
    assert runs[0].ruined_on is None
    last = runs[1].ruined
    assert last is not None and last < len(runs[1].days) - 1
    assert (runs[1].equity[:last] > 0).all() and (runs[1].equity[last:] == runs[1].equity[last]).all()
    assert runs[1].trades[last] > 0 and not runs[1].trades[last + 1 :].any()
    after, journal = runs[1].session_of > last, runs[1].journal
    for untouched in (journal.position, journal.units, journal.net, journal.charges, journal.orders):
        assert not untouched[after].any()
    assert runs[1].charges[: last + 1] == pytest.approx(runs[0].charges[: last + 1])
    assert runs[1].action_counts.tolist() == runs[0].action_counts.tolist()  # what was decided stays on record


@pytest.mark.parametrize("quantity", [np.nan, 0.4, np.inf])
def test_a_quantity_that_is_none_is_refused(paper_market: Market, paper_settings: Settings, quantity: float) -> None:
    with pytest.raises(DataError, match="quantity"):
        backtest.run(
            scripted([1] * 29, quantity),
            one_session(paper_market),
            schema(paper_settings.observation),
            cost=flat_costs(1.5),
            initial_capital=1e6,
        )


def test_quantities_are_whole_units(paper_market: Market, paper_settings: Settings) -> None:
    assert QUANTITY % 1 != 0
    run = [
        backtest.run(
            scripted([1] * 29, quantity),
            one_session(paper_market),
            schema(paper_settings.observation),
            cost=flat_costs(1.5),
            initial_capital=1e6,
        ).equity[-1]
        for quantity in (7.0, 7.9)
    ]
    assert run[0] == run[1]
