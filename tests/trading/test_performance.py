"""A backtest in numbers: each one against its formula, and none that does not exist."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import empyrical
import numpy as np
import pytest
from decision_service import follow_signal

from core.halting import HaltingRule
from core.settings import Settings
from trading import backtest
from trading.backtest import BacktestResult
from trading.bootstrap import sharpe
from trading.costs import flat_costs
from trading.features import schema
from trading.journal import Plan
from trading.market import Market
from trading.performance import (
    FEWEST_SESSIONS,
    buy_and_hold,
    intervals,
    ratios,
    record,
    summary,
    traded_rupees,
)
from trading.symbols import concatenate

RULE = HaltingRule(max_segments=3, min_segments=1, complexity_threshold=0.5)


@pytest.fixture
def result(paper_market: Market, paper_settings: Settings) -> BacktestResult:
    observed = schema(paper_settings.observation)
    return backtest.run(follow_signal, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6)


def months(result: BacktestResult, net: np.ndarray, charges: np.ndarray | None = None) -> BacktestResult:
    """A result of as many sessions as `net`, made up; the journal stays the old one."""
    days = tuple(date.fromordinal(738_000 + place) for place in range(len(net)))
    charged = np.zeros(len(net)) if charges is None else charges
    session_of = np.arange(len(result.journal.at)) * len(net) // len(result.journal.at)
    return replace(result, days=days, gross=net + charged, charges=charged, session_of=session_of)


def flat(market: Market, settings: Settings) -> BacktestResult:
    n = len(market.bars)
    plan = Plan(np.zeros((n, 3), dtype=np.int64), np.ones(n))
    return backtest.run(plan, market, schema(settings.observation), cost=flat_costs(1.5), initial_capital=1e6)


def test_ratios_are_the_library_s_on_the_sessions_returns(result: BacktestResult) -> None:
    made = months(result, np.random.default_rng(0).normal(300.0, 5000.0, 60))
    found, returns = ratios(made), made.returns
    assert (
        found["sharpe"] == pytest.approx(empyrical.sharpe_ratio(returns)) == pytest.approx(sharpe(returns) * 252**0.5)
    )
    assert found["annual_return"] == pytest.approx(returns.mean() * 252)
    assert found["annual_volatility"] == pytest.approx(returns.std(ddof=1) * 252**0.5)
    assert found["calmar"] == pytest.approx(found["annual_return"] / made.drawdown.max())
    downside = np.sqrt((np.minimum(returns, 0) ** 2).mean())
    assert found["sortino"] == pytest.approx(returns.mean() / downside * 252**0.5)
    assert found["tail_ratio"] == pytest.approx(np.percentile(returns, 95) / abs(np.percentile(returns, 5)))


def test_intervals_hold_their_estimate_and_agree_with_the_ratios(result: BacktestResult) -> None:
    made = months(result, np.random.default_rng(1).normal(300.0, 5000.0, 120))
    found = intervals(made)
    assert found["sharpe"].value == pytest.approx(ratios(made)["sharpe"])
    assert found["mean_bps"].value == pytest.approx(1e4 * made.returns.mean())
    for interval in found.values():
        assert interval.ci95_low < interval.value < interval.ci95_high


@pytest.mark.parametrize("net", [np.zeros(60), np.full(60, 10.0), np.full(FEWEST_SESSIONS - 1, 1.0), np.array([7.0])])
def test_what_does_not_exist_is_none_and_never_nan(result: BacktestResult, net: np.ndarray) -> None:
    made = months(result, net)
    told = summary(made, RULE)
    json.dumps(told, allow_nan=False)
    assert told["performance"]["calmar"] is None  # no drawdown, or too few sessions
    if len(net) < FEWEST_SESSIONS:
        assert set(told["performance"].values()) == {None}
        assert set(told["intervals"].values()) == {None}


def test_a_backtest_that_never_trades_is_defined(paper_market: Market, paper_settings: Settings) -> None:
    told = summary(flat(paper_market, paper_settings), None)
    json.dumps(told, allow_nan=False)
    assert (told["trades"], told["total_return"], told["max_drawdown"], told["time_in_market"]) == (0, 0.0, 0.0, 0.0)
    assert told["cost_bps"] is told["break_even_cost_bps"] is None


def test_a_ruin_is_in_the_summary_and_leaves_it_json(paper_market: Market, paper_settings: Settings) -> None:
    observed = schema(paper_settings.observation)
    ruined = backtest.run(follow_signal, paper_market, observed, cost=flat_costs(100.0), initial_capital=60_000.0)
    told = summary(ruined, RULE)
    json.dumps(told, allow_nan=False)
    assert told["ruined_on"] == ruined.days[ruined.ruined].isoformat()
    assert told["final_equity"] <= 0 < told["max_drawdown"]


def test_the_summary_has_the_seed_s_keys_and_adds_up(result: BacktestResult) -> None:
    told = summary(result, RULE)
    assert {"total_return", "hrm_metrics"} <= told.keys()
    assert {"avg_reasoning_depth", "computation_efficiency", "hierarchical_convergence"} <= told["hrm_metrics"].keys()
    assert 1.0 < told["hrm_metrics"]["avg_reasoning_depth"] < 2.0
    assert told["decisions"] == len(result.market.decision_bars) == sum(told["action_counts"])
    assert told["final_equity"] == pytest.approx(1e6 * (1 + told["total_return"]))
    assert told["gross_return"] - told["total_return"] == pytest.approx(told["costs"] / 1e6)
    assert date.fromisoformat(told["start_date"]) < date.fromisoformat(told["end_date"])


def test_costs_are_told_in_bps_of_what_was_traded(result: BacktestResult) -> None:
    told = summary(result, RULE)
    assert told["cost_bps"] == pytest.approx(1.5, rel=1e-9)
    assert told["costs"] == pytest.approx(1.5e-4 * traded_rupees(result))
    assert told["break_even_cost_bps"] == pytest.approx(1e4 * result.gross.sum() / traded_rupees(result))


def test_the_record_at_once_its_costs_is_the_backtest(result: BacktestResult) -> None:
    made = record(result, "x")
    assert made.net_bps.sum() == pytest.approx(1e4 * result.total_return)
    assert made.cost_sweep()[1] == pytest.approx(1e4 * result.returns.mean())
    assert made.sessions == result.days


def test_buy_and_hold_is_the_market_from_the_first_fill_on(result: BacktestResult) -> None:
    bars, at = result.market.bars, result.journal.at
    ends = np.append(np.flatnonzero(np.diff(bars.session[at])), len(at) - 1)
    expected = 1e6 * bars.close[at[ends] + 1] / bars.open[at[0] + 1]
    np.testing.assert_allclose(buy_and_hold(result), expected)


def test_buy_and_hold_of_two_symbols_is_their_mean(paper_market: Market, paper_settings: Settings) -> None:
    late = replace(paper_market, bars=replace(paper_market.bars, name="LATE"))
    late = late.restricted_to(int(late.sessions[2]), int(late.sessions[-1]))
    both = flat(concatenate([paper_market, late]), paper_settings)
    alone = [buy_and_hold(flat(market, paper_settings)) for market in (paper_market, late)]
    waiting = np.concatenate([[1e6, 1e6], alone[1]])  # its capital lies idle until it can be decided upon
    np.testing.assert_allclose(buy_and_hold(both), (alone[0] + waiting) / 2)
