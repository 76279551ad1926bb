"""Backtest in money: the environment's decisions, sized by their quantity, charged by a cost model.

All sessions of all symbols run in lock-step (trading/journal.py), by the accounting of trading/accounting.py. Sizes
come from the fixed initial capital, so sessions are independent and profits are not compounded. An account that ends
a session with nothing left trades no more: later sessions are as if it had stayed flat. With `lot_units` every order
is a whole number of lots, one at least.
The paper loop (trading/paper_replay.py) books the same bars to the same money; a test compares them.

D decisions; S sessions in time order: what several symbols do on a day is one session of the account.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.actions import N_ACTIONS
from core.errors import DataError
from core.observation import ObservationSchema
from trading.costs import CostModel
from trading.env import SessionEnv
from trading.features import Floats
from trading.journal import Journal, Plan, Watch, follow, play
from trading.market import Ints, Market, session_days
from trading.observations import Policy


@dataclass(frozen=True)
class BacktestResult:
    """Money in rupees. Arrays over sessions [S] in time order, but for `journal`."""

    market: Market
    journal: Journal  # [D]
    session_of: Ints  # [D] the session of each decision, 0..S - 1
    days: tuple[date, ...]
    initial_capital: float
    gross: Floats  # before charges
    charges: Floats
    ruined: int | None  # the session that lost what was left of the capital

    @property
    def net(self) -> Floats:
        return self.gross - self.charges

    @property
    def equity(self) -> Floats:
        """At each session's end."""
        return np.asarray(self.initial_capital + np.cumsum(self.net))

    @property
    def returns(self) -> Floats:
        """Net profit of each session as a ratio of the initial capital: what sizes are made for, never compounded."""
        return self.net / self.initial_capital

    @property
    def drawdown(self) -> Floats:
        """Distance of equity from its highest value so far, the start included, as a ratio of it."""
        return drawdown_of(self.equity, self.initial_capital)

    @property
    def trades(self) -> Ints:
        """Orders, forced exits included."""
        return self._per_session(self.journal.orders).astype(np.int64)

    @property
    def time_in_market(self) -> Floats:
        """Share of the decisions after which something was held."""
        return self._per_session(self.journal.position != 0) / self._per_session(np.ones(len(self.session_of)))

    @property
    def total_return(self) -> float:
        """Profit after costs as a ratio of the initial capital."""
        return float(self.equity[-1] / self.initial_capital - 1.0)

    @property
    def ruined_on(self) -> date | None:
        return None if self.ruined is None else self.days[self.ruined]

    @property
    def action_counts(self) -> Ints:
        """Of all decisions, those after a ruin included, [5]."""
        return np.bincount(self.journal.action, minlength=N_ACTIONS).astype(np.int64)

    def _per_session(self, per_decision: NDArray[Any]) -> Floats:
        return _sums(self.session_of, per_decision)


def _sums(session_of: Ints, per_decision: NDArray[Any]) -> Floats:
    return np.bincount(session_of, weights=per_decision).astype(np.float64)


def drawdown_of(equity: Floats, initial_capital: float) -> Floats:
    """[S] of an equity curve [S] that began at `initial_capital`."""
    peak = np.maximum(np.maximum.accumulate(equity), initial_capital)
    return np.asarray(1.0 - equity / peak)


def run(
    policy: Policy | Plan,
    market: Market,
    schema: ObservationSchema,
    *,
    cost: CostModel,
    initial_capital: float,
    lot_units: Callable[[date], float] | None = None,
    watch: Watch = lambda _: None,
) -> BacktestResult:
    """Backtest `policy` over every session of `market` in which it can decide.

    Args:
        policy: asked in every lock-step; or a plan, which costs no observation.
        cost: rupees of one order (trading/costs.py).
        lot_units: units in a lot of the day; without it every whole number of units can be traded.
        watch: told the ratio done after every lock-step of a policy.

    Raises DataError if the policy's answer is illegal or a quantity is not a finite number of at least 1.
    """
    if not len(market.decision_bars):
        raise DataError(
            f"{market.name}: no session in which a decision can be taken; bring more history", code="no_sessions"
        )
    env = SessionEnv(market, schema, market.sessions, cost_bps=0.0, costs=cost)
    days = session_days(market)
    lots = np.array([1.0 if lot_units is None else float(lot_units(day)) for day in days])
    journal = follow(policy, env, lots) if isinstance(policy, Plan) else play(policy, env, lots, watch)
    return _by_session(market, journal, days, initial_capital)


def _by_session(market: Market, journal: Journal, days: list[date], initial_capital: float) -> BacktestResult:
    """Sums over sessions, up to a ruin; `days` is of each of the market's sessions."""
    ordered = sorted(set(days))
    number = {day: place for place, day in enumerate(ordered)}
    row = np.cumsum(np.diff(market.bars.session[journal.at], prepend=market.bars.session[journal.at[0]]) != 0)
    session_of = np.array([number[day] for day in days])[row]
    net = _sums(session_of, journal.net)
    lost = np.flatnonzero(initial_capital + np.cumsum(net) <= 0)
    ruined = int(lost[0]) if len(lost) else None
    if ruined is not None:
        journal = journal.without(session_of > ruined)
        net = _sums(session_of, journal.net)
    charges = _sums(session_of, journal.charges)
    return BacktestResult(market, journal, session_of, tuple(ordered), initial_capital, net + charges, charges, ruined)
