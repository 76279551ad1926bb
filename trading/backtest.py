"""Backtest in money: the environment's decisions, sized by their quantity, charged by a cost model.

All sessions run in lock-step (trading/env.py). A trade sets the position to target * floor(quantity) units at the
next open; holding a direction keeps its units. For decision t, with units u:

    pnl[t] = u_old (open[t+1] - close[t]) + u_new (close[t+1] - open[t+1]) - cost(u_new - u_old)
             and - cost(u_new) at a session's last bar, where everything is closed

Sizes come from the fixed initial capital, so sessions are independent and profits are not compounded. An account
that ends a session with nothing left trades no more: later sessions are as if they had stayed flat.
The paper loop (trading/live.py) books the same bars to the same money; a test compares them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np

from core.errors import DataError
from core.observation import ObservationSchema
from trading.costs import CostModel, Side
from trading.env import SessionEnv, Step, run_policy
from trading.features import Floats
from trading.market import Ints, Market, day_of, session_days
from trading.observations import Policy


@dataclass(frozen=True)
class HrmMetrics:
    """The seed's three (7.1.2), over all decisions; `depth` is the number of segments a decision took.

    avg_reasoning_depth       mean depth
    computation_efficiency    1 - (mean depth - 1) / (max_segments - 1): the share of the computation allowed
                              beyond the first segment that was not needed; 1 for a model of one segment
    hierarchical_convergence  share of decisions that stopped by themselves, below the limit on depth; 1 for a
                              model of one segment
    """

    avg_reasoning_depth: float
    computation_efficiency: float
    hierarchical_convergence: float


@dataclass(frozen=True)
class BacktestResult:
    """Money in rupees. Arrays are per session [S] in time order; equity is at each session's end."""

    symbol: str
    sessions: tuple[date, ...]
    initial_capital: float
    equity: Floats
    decisions: int  # of all sessions, those after a ruin included
    trades: int  # orders, forced exits included
    costs: float
    action_counts: Ints  # [5]
    hrm_metrics: HrmMetrics
    ruined_on: date | None  # the session that lost what was left of the capital

    @property
    def total_return(self) -> float:
        """Profit after costs as a ratio of the initial capital."""
        return float(self.equity[-1] / self.initial_capital - 1.0)

    @property
    def drawdown(self) -> Floats:
        """[S] distance of equity from its highest value so far, the start included, as a ratio of it."""
        peak = np.maximum(np.maximum.accumulate(self.equity), self.initial_capital)
        return np.asarray(1.0 - self.equity / peak)

    def summary(self) -> dict[str, Any]:
        """The result as JSON values, without the curves."""
        return {
            "symbol": self.symbol,
            "start_date": self.sessions[0].isoformat(),
            "end_date": self.sessions[-1].isoformat(),
            "sessions": len(self.sessions),
            "initial_capital": self.initial_capital,
            "final_equity": float(self.equity[-1]),
            "total_return": self.total_return,
            "max_drawdown": float(self.drawdown.max()),
            "ruined_on": None if self.ruined_on is None else self.ruined_on.isoformat(),
            "decisions": self.decisions,
            "trades": self.trades,
            "costs": self.costs,
            "action_counts": self.action_counts.tolist(),
            "hrm_metrics": asdict(self.hrm_metrics),
        }


def run(
    policy: Policy,
    market: Market,
    schema: ObservationSchema,
    *,
    cost: CostModel,
    initial_capital: float,
    max_segments: int = 1,
) -> BacktestResult:
    """Backtest `policy` over every session of `market` in which it can decide.

    Args:
        cost: rupees of one order (trading/costs.py).
        max_segments: the model's limit on depth (manifest.halting.max_segments), 1 for a model of one pass.

    Raises DataError if the policy's answer is illegal or a quantity is not a finite number of at least 1.
    """
    if not len(market.sessions):
        raise DataError(f"{market.name}: no session in which a decision can be taken; bring more history")
    env = SessionEnv(market, schema, market.sessions, cost_bps=0.0)
    book = _Book(market, len(env), cost)
    counts, depths = np.zeros(5, dtype=np.int64), np.zeros(max_segments + 1, dtype=np.int64)
    for _seen, decided, step in run_policy(policy, env):
        book.settle(step, _whole_units(decided.quantity, step), ending=~env.active)
        counts += np.bincount(np.asarray(decided.action)[step.active], minlength=5)
        depth = np.asarray(decided.segments)[step.active]
        depths += np.bincount(np.minimum(depth, max_segments), minlength=len(depths))
    days = session_days(market)
    equity = initial_capital + np.cumsum(book.pnl)
    ruin = int(np.argmax(equity <= 0)) if (equity <= 0).any() else None
    lived = len(days) if ruin is None else ruin + 1
    return BacktestResult(
        symbol=market.name,
        sessions=tuple(days),
        initial_capital=initial_capital,
        equity=np.where(np.arange(len(days)) < lived, equity, equity[lived - 1]),
        decisions=int(counts.sum()),
        trades=int(book.trades[:lived].sum()),
        costs=float(book.costs[:lived].sum()),
        action_counts=counts,
        hrm_metrics=hrm_metrics(depths),
        ruined_on=None if ruin is None else days[ruin],
    )


def hrm_metrics(depths: Ints) -> HrmMetrics:
    """From the number of decisions by depth: `depths[d]`, d in 0..max_segments."""
    limit = len(depths) - 1
    mean = float(np.average(np.arange(len(depths)), weights=depths))
    if limit == 1:
        return HrmMetrics(mean, 1.0, 1.0)
    return HrmMetrics(mean, 1.0 - (mean - 1.0) / (limit - 1), float(1.0 - depths[limit] / depths.sum()))


def _whole_units(quantity: np.ndarray[Any, Any], step: Step) -> Floats:
    units = np.floor(np.asarray(quantity, dtype=np.float64))
    if not (np.isfinite(units) & (units >= 1.0))[step.active].all():
        raise DataError("the policy answered a quantity that is not a finite number of at least 1")
    return units


class _Book:
    """Units held [S] and the money they made [S], charged order by order."""

    def __init__(self, market: Market, sessions: int, cost: CostModel) -> None:
        self.bars, self.cost = market.bars, cost
        self.units, self.pnl = np.zeros(sessions), np.zeros(sessions)
        self.trades, self.costs = np.zeros(sessions, dtype=np.int64), np.zeros(sessions)

    def settle(self, step: Step, quantity: Floats, ending: np.ndarray[Any, Any]) -> None:
        """Book one lock-step; `ending` marks the rows whose session is over after it."""
        at = np.where(step.active, step.at, 0)  # finished rows hold nothing: any bar will do
        close, open_after, close_after = self.bars.close[at], self.bars.open[at + 1], self.bars.close[at + 1]
        units = np.where(np.sign(self.units) == step.position, self.units, step.position * quantity)
        units = np.where(step.active, units, 0.0)
        self.pnl += self.units * (open_after - close) + units * (close_after - open_after)
        self._charge(units - self.units, open_after, at + 1)
        self.units = np.where(ending, 0.0, units)
        self._charge(self.units - units, close_after, at + 1)

    def _charge(self, orders: Floats, price: Floats, at: Ints) -> None:
        for row in np.flatnonzero(orders):
            side = Side.BUY if orders[row] > 0 else Side.SELL
            day = day_of(int(self.bars.timestamps[at[row]]))
            rupees = self.cost(day).of(side, float(price[row]), abs(float(orders[row])))
            self.pnl[row] -= rupees
            self.costs[row] += rupees
            self.trades[row] += 1
