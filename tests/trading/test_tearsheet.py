"""The tear sheet needs nothing but itself, shows what happened, and survives odd names and odd backtests."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from decision_service import follow_signal

from core.halting import HaltingRule
from core.settings import Settings
from trading import backtest
from trading import tearsheet_figures as figures
from trading.backtest import BacktestResult
from trading.comparison import compare
from trading.costs import flat_costs
from trading.features import schema
from trading.journal import Plan
from trading.market import Market
from trading.performance import record, summary
from trading.significance import Trials
from trading.symbols import concatenate
from trading.tearsheet import MONTHS, comparison_facts, comparison_page, facts, tearsheet

RULE = HaltingRule(max_segments=3, min_segments=1, complexity_threshold=0.5)


@pytest.fixture
def result(paper_market: Market, paper_settings: Settings) -> BacktestResult:
    observed = schema(paper_settings.observation)
    return backtest.run(follow_signal, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6)


def drawn(page: str) -> dict[str, dict]:
    """The page's figures."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def without_plotly(page: str) -> str:
    start = page.index("<script>")
    return page[:start] + page[page.index("</script>", start) :]


def test_the_page_is_one_file_that_asks_for_nothing(result: BacktestResult) -> None:
    page = tearsheet("hrm/v1", result, RULE)
    ours = without_plotly(page)
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://", ours)
    assert "Plotly" in page and len(page) > 3_000_000  # plotly.js itself
    assert len(drawn(page)) == 6
    assert "$" not in re.sub(r"\$\{id\}", "", ours)  # every placeholder was filled


def test_a_name_cannot_break_out_of_the_page(result: BacktestResult) -> None:
    name = "hrm/</script><script>alert(1)</script>&\"'"
    ours = without_plotly(tearsheet(name, result, RULE, note="<b>note"))
    assert "<script>alert" not in ours and "<b>note" not in ours
    assert drawn(ours)["plot0"]["data"][0]["name"] == name


def test_a_model_of_one_pass_has_no_figures_of_depth(result: BacktestResult) -> None:
    assert "Why it stopped thinking" in tearsheet("hrm/v1", result, RULE)
    assert "Why it stopped thinking" not in tearsheet("ppo/v1", result, None)


def test_orders_stand_where_they_were_filled(result: BacktestResult) -> None:
    figure = json.loads(figures.trades(result))
    marks = {trace["name"]: trace for trace in figure["data"] if trace.get("meta")}
    shown = sum(len(trace["text"]) for trace in marks.values())
    reversals = (np.abs(np.diff(np.append(0, result.journal.position))) == 2).sum()
    assert shown == result.trades.sum() > reversals
    begins, times = (figure["layout"]["meta"]["sessions"][name] for name in ("begins", "times_ms"))
    assert len(begins) == len(times) == len(result.days)
    assert figure["layout"]["meta"]["bar_ms"] == 300_000


def test_months_add_up_to_the_year(result: BacktestResult) -> None:
    table = figures.monthly(result)
    assert all(len(row) == len(MONTHS) for row in table.values())
    assert sum(row[12] for row in table.values()) == pytest.approx(100 * result.total_return)
    for row in table.values():
        assert sum(value for value in row[:12] if value is not None) == pytest.approx(row[12])


def test_shares_of_depth_add_up_to_all_decisions(result: BacktestResult) -> None:
    figure = go_arrays(figures.depth(result))
    bars = np.array([trace["y"] for trace in figure if trace["type"] == "bar"])
    np.testing.assert_allclose(bars.sum(axis=0), 100.0)
    calm = replace(result, market=replace(result.market, complexity=np.full_like(result.market.complexity, 0.5)))
    assert len(go_arrays(figures.depth(calm))[0]["y"]) == 1


def go_arrays(figure: str) -> list[dict]:
    """The traces, typed arrays unpacked."""
    import base64

    def plain(value: object) -> object:
        if isinstance(value, dict) and "bdata" in value:
            return np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        return value

    return [{name: plain(value) for name, value in trace.items()} for trace in json.loads(figure)["data"]]


@pytest.mark.parametrize("kind", ["one session", "no trade", "ruin", "two symbols"])
def test_odd_backtests_have_a_page(paper_market: Market, paper_settings: Settings, kind: str) -> None:
    market, capital, cost = paper_market, 1e6, 1.5
    n = len(market.bars)
    policy = follow_signal
    if kind == "one session":
        market = market.restricted_to(int(market.sessions[-1]), int(market.sessions[-1]))
    elif kind == "no trade":
        policy = Plan(np.zeros((n, 3), dtype=np.int64), np.ones(n))
    elif kind == "ruin":
        capital, cost = 60_000.0, 100.0
    else:
        market = concatenate([market, replace(market, bars=replace(market.bars, name="OTHER"))])
    observed = schema(paper_settings.observation)
    made = backtest.run(policy, market, observed, cost=flat_costs(cost), initial_capital=capital)
    page = without_plotly(tearsheet("hrm/v1", made, RULE))
    assert "NaN" not in page and ">nan" not in page
    assert ("Orders on the price" in page) == (kind != "two symbols")
    assert ("ruined on" in page) == (kind == "ruin")


def test_facts_say_none_where_there_is_nothing_to_say(paper_market: Market, paper_settings: Settings) -> None:
    last = int(paper_market.sessions[-1])
    made = backtest.run(
        follow_signal,
        paper_market.restricted_to(last, last),
        schema(paper_settings.observation),
        cost=flat_costs(1.5),
        initial_capital=1e6,
    )
    told = {fact.label: fact.value for fact in facts(summary(made, RULE))}
    assert told["Sharpe, annual"] == told["Sortino"] == told["Stability"] == "none"
    of_one_pass = {fact.label for fact in facts(summary(made, None))}
    assert told.keys() - of_one_pass == {"Computation efficiency", "Convergence", "Stability"}
    assert told["Deepest drawdown"].endswith("%")


def test_the_comparison_s_page_has_the_verdict_and_every_reason(
    result: BacktestResult, paper_market: Market, paper_settings: Settings
) -> None:
    def opposite(*seen: np.ndarray) -> object:
        return follow_signal(seen[0], -seen[1], *seen[2:])

    observed = schema(paper_settings.observation)
    other = backtest.run(opposite, paper_market, observed, cost=flat_costs(1.5), initial_capital=1e6)
    compared = compare(record(result, "ppo/v1"), record(other, "hrm/v1"), paper_settings.evaluation, trials=Trials())
    ours = without_plotly(comparison_page(compared, ("ppo/v1", result), ("hrm/v1", other)))
    assert len(drawn(ours)) == 4
    for reason in compared.reasons:
        assert reason in ours


@pytest.mark.parametrize(
    ("trials", "said"),
    [(Trials(complete=False), "of at least 1 trial"), (Trials(unrecorded=6), "of 6 trials")],
)
def test_a_number_of_trials_that_is_a_lower_bound_is_called_one(
    result: BacktestResult, paper_settings: Settings, trials: Trials, said: str
) -> None:
    ours = record(result, "ppo/v1")
    compared = compare(ours, replace(ours, name="hrm/v1"), paper_settings.evaluation, trials=trials)
    assert said in [fact.detail for fact in comparison_facts(compared)]


def test_sessions_in_which_nothing_happened_do_not_hide_the_others() -> None:
    drawn = figures.distribution({"hrm/v1": np.array([0.0] * 95 + [-20.0, -10.0, 10.0, 20.0, 30.0])}, "bps")
    assert "95 sessions at 0 not shown" in drawn
    assert "not shown" not in figures.distribution({"hrm/v1": np.zeros(10)}, "bps")
