"""A backtest in numbers: ratios (empyrical-reloaded), intervals (trading/bootstrap.py), what costs would do.

Returns are of the initial capital, annual ones for 252 sessions, nothing is compounded. A number that does not exist
(the Sharpe ratio of a flat line, an annual return of a week) is None, never NaN. S sessions, in time order.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from typing import Any

import empyrical
import numpy as np

from core.halting import HaltingRule
from trading.backtest import BacktestResult
from trading.bootstrap import YEAR, Interval, mean_interval, sharpe_interval
from trading.comparison import Record
from trading.features import Floats
from trading.hierarchy import hrm_metrics
from trading.market import Ints

FEWEST_SESSIONS = 20  # below a month nothing is annualised, and no interval is given
RATIOS: dict[str, Callable[[Floats], float]] = {
    "annual_volatility": empyrical.annual_volatility,
    "sharpe": empyrical.sharpe_ratio,
    "sortino": empyrical.sortino_ratio,
    "tail_ratio": empyrical.tail_ratio,
}


def ratios(result: BacktestResult) -> dict[str, float | None]:
    """`annual_return` is the mean session's times 252, `calmar` that by the deepest drawdown."""
    returns, drawdown = result.returns, float(result.drawdown.max())
    if len(returns) < FEWEST_SESSIONS:
        return dict.fromkeys(("annual_return", "calmar", *RATIOS))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 of a flat line: answered below
        found = {name: float(ratio(returns)) for name, ratio in RATIOS.items()}
    found["annual_return"] = float(returns.mean() * YEAR)
    found["calmar"] = found["annual_return"] / drawdown if drawdown else math.inf
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def intervals(result: BacktestResult) -> dict[str, Interval | None]:
    """95 % intervals of the mean session and of the Sharpe ratio."""
    if len(result.days) < FEWEST_SESSIONS or not result.net.any():
        return {"mean_bps": None, "sharpe": None}
    return {"mean_bps": mean_interval(1e4 * result.returns), "sharpe": sharpe_interval(result.returns)}


def record(result: BacktestResult, name: str) -> Record:
    """What a comparison needs of a backtest."""
    bps = 1e4 / result.initial_capital
    return Record(name, result.days, bps * result.gross, bps * result.charges, result.ruined_on)


def traded_rupees(result: BacktestResult) -> float:
    """Value of all orders, forced exits included."""
    bars, journal = result.market.bars, result.journal
    last = _last_of_sessions(result)
    entered = np.abs(journal.changed(result.market)) * bars.open[journal.at + 1]
    left = np.abs(journal.units[last]) * bars.close[journal.at[last] + 1]
    return float(entered.sum() + left.sum())


def buy_and_hold(result: BacktestResult) -> Floats:
    """Equity [S] of the capital put into the market at the first decision's next open, free of charges.

    Of several symbols the mean of what each would have made.
    """
    bars, at = result.market.bars, result.journal.at
    last = _last_of_sessions(result)
    begins = np.searchsorted(at, [begin for _, begin in result.market.begins[1:]])
    worth = []
    for begin, end in itertools.pairwise([0, *begins.tolist(), len(at)]):
        rows = last[(last >= begin) & (last < end)]
        if len(rows):
            known = np.full(len(result.days), np.nan)
            known[result.session_of[rows]] = bars.close[at[rows] + 1] / bars.open[at[begin] + 1]
            worth.append(_carried(known))
    return np.asarray(result.initial_capital * np.mean(worth, axis=0))


def _last_of_sessions(result: BacktestResult) -> Ints:
    """Places [sessions of symbols] of the last decisions among all."""
    at = result.journal.at
    return np.append(np.flatnonzero(np.diff(result.market.bars.session[at])), len(at) - 1)


def _carried(known: Floats) -> Floats:
    """The latest known value at each place; 1 before the first."""
    latest = np.maximum.accumulate(np.where(np.isnan(known), -1, np.arange(len(known))))
    return np.where(latest < 0, 1.0, known[latest])


def summary(result: BacktestResult, rule: HaltingRule | None) -> dict[str, Any]:
    """The seed's answer and what is needed to judge it, as JSON values, without curves."""
    capital, traded, multiple = result.initial_capital, traded_rupees(result), record(result, "").break_even_multiple
    charged_bps = 1e4 * float(result.charges.sum()) / traded if traded else None
    return {
        "symbol": result.market.name,
        "start_date": result.days[0].isoformat(),
        "end_date": result.days[-1].isoformat(),
        "sessions": len(result.days),
        "initial_capital": capital,
        "final_equity": float(result.equity[-1]),
        "total_return": result.total_return,
        "gross_return": float(result.gross.sum() / capital),
        "buy_and_hold_return": float(buy_and_hold(result)[-1] / capital - 1.0),
        "max_drawdown": float(result.drawdown.max()),
        "ruined_on": _iso(result.ruined_on),
        "decisions": len(result.journal.at),
        "trades": int(result.trades.sum()),
        "costs": float(result.charges.sum()),
        "cost_bps": charged_bps,  # of the value traded
        "break_even_cost_bps": None if charged_bps is None or multiple is None else charged_bps * multiple,
        "time_in_market": float((result.journal.position != 0).mean()),
        "winning_sessions": float((result.net > 0).mean()),
        "action_counts": result.action_counts.tolist(),
        "performance": ratios(result),
        "intervals": {name: found and asdict(found) for name, found in intervals(result).items()},
        "hrm_metrics": asdict(hrm_metrics(result.journal, result.market.complexity[result.journal.at], rule)),
    }


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
