"""Many sessions in lock-step: the environment, the backtest and the shadow arms (trading/accounting.py has the rules).

B rows, one session each; a row whose session has ended earns nothing and ignores its actions. No row ever sees or
holds anything across a session's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.observation import ObservationSchema
from trading.accounting import BAD_QUANTITY, ILLEGAL_ACTION, begin, settle
from trading.costs import CostModel, flat_costs
from trading.features import Floats
from trading.market import Ints, Market, session_days
from trading.observations import Observations, Policy, PolicyDecisions, observe


class Step(NamedTuple):
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
    `units` (signed), `active`. Whoever needs no copies of windows finds them all, as a view, in
    `trading.observations.windows(market, schema)`: a row's is `[at - W + 1]`.
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
        self.market, self.schema, self.cost_bps = market, schema, float(cost_bps)
        self._prices = (market.bars.open, market.bars.close)
        self._ids = market.sessions
        decided_in = market.bars.session[market.decision_bars]
        self._first = market.decision_bars[np.searchsorted(decided_in, self._ids, side="left")]
        self._last = market.decision_bars[np.searchsorted(decided_in, self._ids, side="right") - 1]
        by_day = costs or flat_costs(cost_bps)
        self._costs = np.array([by_day(day).vector() for day in session_days(market)]).reshape(-1, 5)
        rows = len(sessions)
        self.sessions, self.at, self.last, self.position = (np.zeros(rows, dtype=np.int64) for _ in range(4))
        self.units, self.order_costs = np.zeros(rows), np.zeros((rows, 5))
        self.active = np.zeros(rows, dtype=np.bool_)
        self._one_unit = np.ones(rows)
        self.restart(np.arange(rows), self.places(sessions))

    def places(self, sessions: Ints) -> Ints:
        """Where `sessions` [R] stand in `market.sessions`. Raises DataError for one without decisions."""
        found = np.searchsorted(self._ids, sessions)
        known = self._ids.take(found, mode="clip") == sessions if len(self._ids) else np.zeros(len(found), np.bool_)
        if not known.all():
            missing = np.asarray(sessions)[~known][:5].tolist()
            raise DataError(f"{self.market.name}: no decision can be taken in sessions {missing}")
        return found

    def restart(self, rows: Ints, places: Ints) -> None:
        """Put `rows` [R], by number, at the start of the sessions at `places` [R] in `market.sessions`, flat.

        Raises IndexError for a row or a place that does not exist.
        """
        starts = (self._ids, self._first, self._last, self._costs)
        state = (self.sessions, self.at, self.last, self.order_costs, self.position, self.units, self.active)
        begin(rows, places, starts, state)

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
        not a finite number of at least 1, in an active row, and for arrays of another shape or of another kind.
        """
        taken, size = self._arrays(action, self._one_unit if quantity is None else quantity)
        at, active = self.at.copy(), self.active.copy()
        earned, traded = np.empty((3, len(self))), np.empty((3, len(self)), dtype=np.int64)
        state = (self.at, self.position, self.units, self.active)
        costs = (self.cost_bps, self.order_costs)
        refused = settle((taken, size), self._prices, costs, self.last, state, earned, traded)
        if refused == ILLEGAL_ACTION:
            raise DataError("illegal action for the position held; mask with core.actions.legal_actions")
        if refused == BAD_QUANTITY:
            raise DataError("a quantity is not a finite number of at least 1")
        return Step(at, active, *earned, *traded)

    def _arrays(self, action: NDArray[np.integer], quantity: NDArray[np.floating]) -> tuple[Ints, Floats]:
        """As compiled code takes them: it checks neither shapes nor kinds."""
        if not action.shape == quantity.shape == self.at.shape or action.dtype.kind not in "iu":
            raise DataError(
                f"actions {action.dtype} {action.shape} and quantities {quantity.shape} for {len(self)} rows; give "
                f"whole numbers, one of each a row"
            )
        return np.ascontiguousarray(action, dtype=np.int64), np.ascontiguousarray(quantity, dtype=np.float64)


class EndlessEnv:
    """Sessions drawn at random, for ever: what a reinforcement learner trains in.

    `log_quantity` [n] is the sizing target of every bar of the market.
    """

    def __init__(self, env: SessionEnv, log_quantity: NDArray[np.float32], seed: int) -> None:
        self.env, self.log_quantity = env, log_quantity
        self.rng = np.random.default_rng(seed)
        self._choices, self._ahead = len(env.market.sessions), np.zeros(0, dtype=np.int64)

    @property
    def complexity(self) -> NDArray[np.float32]:
        """Market complexity [B] of what `observe` shows."""
        return self.env.market.complexity[self.env.at]

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.float32], Ints, NDArray[np.float32]]:
        """(bars [B, W, F], account [B, A], position [B], log quantity target [B])."""
        seen = self.env.observe()
        return seen.bars, seen.account, seen.position, self.log_quantity[self.env.at]

    def step(
        self, action: NDArray[np.integer], quantity: NDArray[np.floating] | None = None
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """(reward in bps [B], cost in it [B], terminated [B]); a terminated row already stands in a new session.

        Arguments and errors are `SessionEnv.step`'s.
        """
        step = self.env.step(action, quantity)
        ended = ~self.env.active
        (rows,) = ended.nonzero()
        if len(rows):
            self.env.restart(rows, self._drawn(len(rows)))
        return step.reward_bps, self.env.cost_bps * step.turnover.astype(np.float64), ended

    def _drawn(self, count: int) -> Ints:
        """Places of `count` sessions, drawn ahead: most lock-steps end a few rows, and a draw costs as much as 500."""
        if len(self._ahead) < count:
            self._ahead = self.rng.integers(self._choices, size=max(count, 4096))
        drawn, self._ahead = self._ahead[:count], self._ahead[count:]
        return drawn


def run_policy(policy: Policy, env: SessionEnv) -> Iterator[tuple[Observations, PolicyDecisions, Step]]:
    """Drive every session to its end, yielding one lock-step at a time."""
    while not env.done:
        seen = env.observe()
        decided = policy(*seen)
        yield seen, decided, env.step(decided.action, decided.quantity)
