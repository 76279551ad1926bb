"""Many sessions in lock-step: the environment, the backtest and the shadow arms (trading/accounting.py has the rules).

B rows, one session each; a row whose session has ended earns nothing and ignores its actions. No row ever sees or
holds anything across a session's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.observation import ObservationSchema
from trading.accounting import ILLEGAL_ACTION, refusal, settle
from trading.costs import CostModel, flat_costs
from trading.features import Floats
from trading.market import Ints, Market, session_days
from trading.observations import Observations, Policy, PolicyDecisions, observe


@dataclass(frozen=True)
class Step:
    """What one lock-step did, arrays over rows [B]; rows that were already done show zeros."""

    at: Ints  # bar of the decision
    active: NDArray[np.bool_]  # the rows that decided
    reward_bps: Floats
    pnl: Floats  # rupees, after charges
    charges: Floats  # rupees
    position: Ints  # after the decision, in {-1, 0, +1}
    turnover: Ints  # units of direction traded, the forced exit included
    orders: Ints  # the forced exit included


class SessionEnv:
    """One virtual portfolio over many sessions at once.

    Args:
        market: prepared market.
        schema: the observation the policy expects.
        sessions: session ids, one row each.
        cost_bps: per unit of turnover in the rewards, slippage included.
        costs: of orders by day, in the money; by default `cost_bps` of their value.

    Attributes, over rows [B]: `sessions`, `at` (the bar decided at next: an observation by index), `position`,
    `units` (signed), `active`.
    """

    def __init__(
        self,
        market: Market,
        schema: ObservationSchema,
        sessions: Ints,
        cost_bps: float,
        *,
        costs: CostModel | None = None,
    ) -> None:
        self.market, self.schema, self.cost_bps = market, schema, cost_bps
        self._prices = (market.bars.open, market.bars.close)
        self._ids = market.sessions
        decided_in = market.bars.session[market.decision_bars]
        self._first = market.decision_bars[np.searchsorted(decided_in, self._ids, side="left")]
        self._last = market.decision_bars[np.searchsorted(decided_in, self._ids, side="right") - 1]
        by_day = costs or flat_costs(cost_bps)
        self._costs = np.array([by_day(day).vector() for day in session_days(market)])
        rows = len(sessions)
        self.sessions = np.array(sessions, dtype=np.int64)  # a copy: restart writes into it
        self.at, self.last, self.position = (np.zeros(rows, dtype=np.int64) for _ in range(3))
        self.units, self.order_costs = np.zeros(rows), np.zeros((rows, 5))
        self.active = np.zeros(rows, dtype=np.bool_)
        self._one_unit = np.ones(rows)
        self.restart(np.ones(rows, dtype=np.bool_), self.sessions)

    def restart(self, rows: NDArray[np.bool_], sessions: Ints) -> None:
        """Put the rows in mask [B] at the start of new sessions, flat. Raises DataError for an unknown session."""
        index = np.searchsorted(self._ids, sessions)
        known = self._ids.take(index, mode="clip") == sessions if len(self._ids) else np.zeros(len(index), np.bool_)
        if not known.all():
            missing = np.asarray(sessions)[~known][:5].tolist()
            raise DataError(f"{self.market.name}: no decision can be taken in sessions {missing}")
        self.sessions[rows] = sessions
        self.at[rows], self.last[rows], self.order_costs[rows] = (
            self._first[index],
            self._last[index],
            self._costs[index],
        )
        self.position[rows], self.units[rows], self.active[rows] = 0, 0.0, True

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def done(self) -> bool:
        return not self.active.any()

    def observe(self) -> Observations:
        """Observations of every row, windows copied; a finished row shows its last one again."""
        return observe(self.market, self.schema, self.at, self.position.copy())  # step() writes into its own

    def step(self, action: NDArray[np.integer], quantity: NDArray[np.floating] | None = None) -> Step:
        """Take actions [B] with quantities [B] in units, by default one: they size the money, not the rewards.

        Raises DataError, with nothing changed, for an action that is illegal in its position or a quantity that is
        not a finite number of at least 1, in an active row.
        """
        taken: Ints = np.ascontiguousarray(action, dtype=np.int64)
        size: Floats = self._one_unit if quantity is None else np.ascontiguousarray(quantity, dtype=np.float64)
        if not len(taken) == len(size) == len(self):
            raise DataError(f"{len(taken)} actions and {len(size)} quantities for {len(self)} rows")
        refused = refusal(taken, size, self.position, self.active)
        if refused == ILLEGAL_ACTION:
            raise DataError("illegal action for the position held; mask with core.actions.legal_actions")
        if refused:
            raise DataError("a quantity is not a finite number of at least 1")
        at, active = self.at.copy(), self.active.copy()
        earned, traded = np.empty((3, len(self))), np.empty((3, len(self)), dtype=np.int64)
        state = (self.at, self.position, self.units, self.active)
        settle((taken, size), self._prices, (self.cost_bps, self.order_costs), self.last, state, earned, traded)
        return Step(at, active, *earned, *traded)


class EndlessEnv:
    """Sessions drawn at random, for ever: what a reinforcement learner trains in.

    `log_quantity` [n] is the sizing target of every bar of the market.
    """

    def __init__(self, env: SessionEnv, log_quantity: NDArray[np.float32], seed: int) -> None:
        self.env, self.log_quantity = env, log_quantity
        self.rng = np.random.default_rng(seed)
        self.choices = env.market.sessions

    @property
    def complexity(self) -> NDArray[np.float32]:
        """Market complexity [B] of what `observe` shows."""
        return self.env.market.complexity[self.env.at]

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.float32], Ints, NDArray[np.float32]]:
        """(bars [B, W, F], account [B, A], position [B], log quantity target [B])."""
        seen = self.env.observe()
        return seen.bars, seen.account, seen.position, self.log_quantity[self.env.at]

    def step(self, action: Ints) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """(reward in bps [B], cost in it [B], terminated [B]); a terminated row already stands in a new session."""
        step = self.env.step(action)
        ended = ~self.env.active
        if ended.any():
            self.env.restart(ended, self.rng.choice(self.choices, size=int(ended.sum())))
        return step.reward_bps, self.env.cost_bps * step.turnover.astype(np.float64), ended


def run_policy(policy: Policy, env: SessionEnv) -> Iterator[tuple[Observations, PolicyDecisions, Step]]:
    """Drive every session to its end, yielding one lock-step at a time."""
    while not env.done:
        seen = env.observe()
        decided = policy(*seen)
        yield seen, decided, env.step(decided.action, decided.quantity)
