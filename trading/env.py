"""Many sessions in lock-step: the one place where decisions become positions and positions become returns.

    reward_bps[t] = 1e4 * (p_old (open[t+1] - close[t]) + p_new (close[t+1] - open[t+1])) / close[t]
                    - cost_bps * |p_new - p_old|          and - cost_bps * |p_new| at a session's last bar

p in {-1, 0, +1} is the direction held; the quantity sizes money (trading/backtest.py), not these rewards.
B rows, one session each; a row whose session has ended earns nothing and ignores its actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.actions import LEGAL, TARGET_OF
from core.errors import DataError
from core.observation import ObservationSchema
from trading.features import Floats
from trading.market import Ints, Market
from trading.observations import Observations, Policy, PolicyDecisions, observe


@dataclass(frozen=True)
class Step:
    """What one lock-step did, arrays over rows [B]; rows that were already done show zeros."""

    at: Ints  # bar of the decision
    position: Ints  # after it
    reward_bps: Floats
    turnover: Ints  # units of direction traded, the forced exit included
    active: NDArray[np.bool_]


class SessionEnv:
    """One virtual portfolio over many sessions at once.

    Args:
        market: prepared market.
        schema: the observation the policy expects.
        sessions: session ids, one row each.
        cost_bps: per unit of turnover, slippage included.
    """

    def __init__(self, market: Market, schema: ObservationSchema, sessions: Ints, cost_bps: float) -> None:
        self.market, self.schema, self.cost_bps = market, schema, cost_bps
        self._decision_sessions = market.bars.session[market.decision_bars]
        self.sessions = np.array(sessions, dtype=np.int64)  # a copy: restart writes into it
        self.at, self.last = self._span(self.sessions)
        self.position: Ints = np.zeros(len(self.sessions), dtype=np.int64)
        self.active = np.ones(len(self.sessions), dtype=np.bool_)

    def restart(self, rows: NDArray[np.bool_], sessions: Ints) -> None:
        """Put the rows in mask [B] at the start of new sessions, flat."""
        self.sessions[rows] = sessions
        self.at[rows], self.last[rows] = self._span(sessions)
        self.position[rows] = 0
        self.active[rows] = True

    def _span(self, sessions: Ints) -> tuple[Ints, Ints]:
        """First and last decision bar of each session."""
        first = np.searchsorted(self._decision_sessions, sessions, side="left")
        last = np.searchsorted(self._decision_sessions, sessions, side="right") - 1
        if (last < first).any():
            missing = np.asarray(sessions)[last < first][:5].tolist()
            raise DataError(f"{self.market.name}: no decision can be taken in sessions {missing}")
        return self.market.decision_bars[first], self.market.decision_bars[last]

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def done(self) -> bool:
        return not self.active.any()

    def observe(self) -> Observations:
        """Observations of every row; a finished row shows its last one again."""
        return observe(self.market, self.schema, self.at, self.position)

    def step(self, action: NDArray[np.integer]) -> Step:
        """Take actions [B], one per row. Raises DataError for an action that is illegal in its position."""
        action = np.asarray(action, dtype=np.int64)
        if not LEGAL[self.position + 1, action][self.active].all():
            raise DataError("illegal action for the position held; mask with core.actions.legal_actions")
        at, active = self.at.copy(), self.active.copy()
        target = np.where(active, TARGET_OF[self.position + 1, action], self.position)
        reward, turnover = _earn(self.market, at, self.position, target, self.cost_bps)
        ending = at >= self.last
        exit_turnover = np.where(ending, np.abs(target), 0)
        reward = np.where(active, reward - self.cost_bps * exit_turnover, 0.0)
        turnover = np.where(active, turnover + exit_turnover, 0)
        self.position = np.where(active, np.where(ending, 0, target), 0)
        self.active = active & ~ending
        self.at = np.where(self.active, at + 1, at)
        return Step(at, np.where(active, target, 0), reward, turnover, active)


def _earn(market: Market, at: Ints, old: Ints, new: Ints, cost_bps: float) -> tuple[Floats, Ints]:
    close, after = market.bars.close[at], at + 1
    gap = (market.bars.open[after] - close) / close
    bar = (market.bars.close[after] - market.bars.open[after]) / close
    turnover = np.abs(new - old)
    return 1e4 * (old * gap + new * bar) - cost_bps * turnover, turnover


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
        yield seen, decided, env.step(decided.action)
