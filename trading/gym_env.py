"""The scalar reference: one session at a time in plain Python, behind Gymnasium's interface.

The rules are trading/accounting.py's, written a second time and tested to be equal on random tapes of actions.
Action: (one of the five actions, quantity in units). An illegal action counts as HOLD and is told in `info`, so that
any agent can be plugged in; `info["action_mask"]` shows what is legal. Reward: the money earned after charges, in
bps of the initial capital; `info["direction_bps"]` is what our own models are trained on.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from core.actions import LEGAL, N_ACTIONS, TARGET_OF, Action
from core.errors import DataError
from core.observation import ObservationSchema
from trading.costs import CostModel, Side, flat_costs
from trading.env import SessionEnv
from trading.market import Market, day_of
from trading.observations import observe

Observed = dict[str, Any]
Acted = tuple[Any, ...]


class TradingEnv(gym.Env[Observed, Acted]):
    """One episode is one session drawn at random; the last bar forces the position flat and terminates.

    Args:
        cost_bps: per unit of turnover in `direction_bps`.
        costs: of orders by day, in the money; by default `cost_bps` of their value.
        capital: rupees that rewards are measured against.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        market: Market,
        schema: ObservationSchema,
        cost_bps: float,
        *,
        costs: CostModel | None = None,
        capital: float = 1e6,
        max_quantity: float = 100_000.0,
    ) -> None:
        self.market, self.schema, self.cost_bps, self.capital = market, schema, cost_bps, capital
        self._costs_of = costs or flat_costs(cost_bps)
        self._sessions = market.sessions
        unbounded = np.float32(1e6)  # finite, as wrappers that normalise expect; features stay far inside
        bars = (schema.window, len(schema.bar_features))
        self.observation_space = spaces.Dict(
            {
                "bars": spaces.Box(-unbounded, unbounded, bars, np.float32),
                "account": spaces.Box(-unbounded, unbounded, (len(schema.account_features),), np.float32),
                "complexity": spaces.Box(0.0, 1.0, (1,), np.float32),
                "position": spaces.Discrete(3, start=-1),
            }
        )
        self.action_space = spaces.Tuple((spaces.Discrete(N_ACTIONS), spaces.Box(1.0, max_quantity, (1,), np.float32)))
        self._done = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Start a session: `options={"session": id}` chooses one, otherwise it is drawn. Raises DataError."""
        super().reset(seed=seed)
        chosen = (options or {}).get("session")
        self._session = int(self.np_random.choice(self._sessions) if chosen is None else chosen)
        # The start of a session is looked up in one place; what happens in it is computed here.
        started = SessionEnv(self.market, self.schema, np.array([self._session]), self.cost_bps)
        self._at, self._last = int(started.at[0]), int(started.last[0])
        self._order_costs = self._costs_of(day_of(int(self.market.bars.timestamps[self._at])))
        self._position, self._units, self._done = 0, 0.0, False
        return self._observed(), self._info()

    def step(self, action: Acted) -> tuple[Observed, SupportsFloat, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated=False, info); call `reset` after terminated.

        Raises DataError, with nothing changed, for a quantity that is not a finite number of at least 1.
        """
        if self._done:
            raise gym.error.ResetNeeded("call reset() before step(): there is no session in progress")
        quantity = float(np.asarray(action[1]).reshape(-1)[0])
        if not 1.0 <= quantity < math.inf:
            raise DataError(f"a quantity of {quantity} is not a finite number of at least 1")
        legal = bool(LEGAL[self._position + 1, int(action[0])])
        told = self._settle(int(action[0]) if legal else int(Action.HOLD), quantity)
        return (
            self._observed(),
            1e4 * told["pnl"] / self.capital,
            self._done,
            False,
            self._info() | told | {"legal": legal},
        )

    def _settle(self, action: int, quantity: float) -> dict[str, Any]:
        bars, t, old, held = self.market.bars, self._at, self._position, self._units
        new = int(TARGET_OF[old + 1, action])
        units = held if new == old else new * math.floor(quantity)
        before, fill, after = float(bars.close[t]), float(bars.open[t + 1]), float(bars.close[t + 1])
        orders = [(units - held, fill)] if units != held else []
        self._done = t >= self._last
        if self._done and units:
            orders.append((-units, after))
        charges = sum(self._order_costs.of(Side(int(math.copysign(1, size))), at, abs(size)) for size, at in orders)
        turnover = abs(new - old) + (abs(new) if self._done else 0)
        direction = 1e4 * (old * (fill - before) + new * (after - fill)) / before - self.cost_bps * turnover
        self._position, self._units = (0, 0.0) if self._done else (new, float(units))
        self._at = t if self._done else t + 1
        pnl = held * (fill - before) + units * (after - fill) - charges
        return {
            "direction_bps": direction,
            "pnl": pnl,
            "charges": charges,
            "turnover": turnover,
            "orders": len(orders),
            "target": new,
        }

    def _observed(self) -> Observed:
        seen = observe(self.market, self.schema, np.array([self._at]), np.array([self._position]))
        return {
            "bars": seen.bars[0],
            "account": seen.account[0],
            "complexity": np.clip(seen.complexity[:1], 0.0, 1.0),
            "position": np.int64(self._position),
        }

    def _info(self) -> dict[str, Any]:
        return {"action_mask": LEGAL[self._position + 1].copy(), "session": self._session, "units": self._units}
