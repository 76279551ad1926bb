"""The scalar reference: one session at a time in plain Python, behind Gymnasium's interface.

The rules are trading/accounting.py's, written a second time and tested to be equal on random tapes of actions.
Action: (one of the five actions, quantity in units). An illegal action counts as HOLD and is told in `info`, so that
any agent can be plugged in; `info["action_mask"]` shows what is legal. Reward: the money earned after charges, in
bps of the initial capital; `info["direction_bps"]` is what our own models are trained on.

Every observation is memory of its own, as Gymnasium demands; `trading.observations.windows` has the view without
copies. Libraries that take neither Tuple actions nor negative numbers (stable-baselines3) get two of its wrappers:

    env = FilterObservation(env, ["bars", "account"])                  # the position is the account's last feature
    env = TransformAction(env, lambda a: (a[0], 10.0 ** a[1]), MultiDiscrete([5, 6]))       # 1 to 100,000 units
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from core.actions import LEGAL, N_ACTIONS, TARGET_OF, Action
from core.errors import DataError
from core.observation import ObservationSchema
from trading.costs import CostModel, Side, flat_costs
from trading.env import SessionEnv
from trading.market import Market, day_of
from trading.observations import observe, windows

Observed = dict[str, Any]
Acted = tuple[Any, ...]
_ONE_ROW = np.zeros(1, dtype=np.int64)


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
        if len(self._sessions) == 0:
            raise DataError(f"{market.name}: no session in which a decision can be taken; bring more bars")
        # The start of a session is looked up in one place; what happens in it is computed here.
        self._starts = SessionEnv(market, schema, self._sessions[:1], cost_bps)
        self._starts.observe()  # what the market cannot show is refused here, not in the middle of a session
        self._windows = None if schema.timeframes else windows(market, schema)
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
        session = int(self.np_random.choice(self._sessions) if chosen is None else chosen)
        self._starts.restart(_ONE_ROW, self._starts.places(np.array([session])))
        self._session = session
        self._at, self._last = int(self._starts.at[0]), int(self._starts.last[0])
        self._order_costs = self._costs_of(day_of(int(self.market.bars.timestamps[self._at])))
        self._position, self._units, self._done = 0, 0.0, False
        return self._observed(), self._info()

    def step(self, action: Acted) -> tuple[Observed, SupportsFloat, bool, bool, dict[str, Any]]:
        """(observation, reward, terminated, truncated=False, info); call `reset` after terminated.

        Raises DataError, with nothing changed, for what is no action or a quantity that is not a finite number of
        at least 1.
        """
        if self._done:
            raise gym.error.ResetNeeded("call reset() before step(): there is no session in progress")
        chosen, quantity = _decided(action)
        legal = bool(LEGAL[self._position + 1, chosen])
        told = self._settle(chosen if legal else int(Action.HOLD), quantity)
        told["legal"] = legal
        return self._observed(), 1e4 * told["pnl"] / self.capital, self._done, False, self._info() | told

    def _settle(self, action: int, quantity: float) -> dict[str, Any]:
        bars, t, old, held = self.market.bars, self._at, self._position, self._units
        new = int(TARGET_OF[old + 1, action])
        units = held if new == old else new * math.floor(quantity)
        before, fill, after = float(bars.close[t]), float(bars.open[t + 1]), float(bars.close[t + 1])
        orders = [(units - held, fill)] if units != held else []
        self._done = t >= self._last
        if self._done and units:
            orders.append((-units, after))
        charges = sum(
            self._order_costs.of(Side.BUY if size > 0 else Side.SELL, price, abs(size)) for size, price in orders
        )
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
        """What `trading.observations.observe` gives for a batch."""
        at = self._at
        account = np.empty(len(self.schema.account_features), dtype=np.float32)
        account[:-1], account[-1] = self.market.context[at], self._position
        return {
            "bars": self._bars(),
            "account": account,
            "complexity": self.market.complexity[at : at + 1].copy(),
            "position": np.int64(self._position),
        }

    def _bars(self) -> NDArray[np.float32]:
        bars: NDArray[np.float32]
        if self._windows is None:
            bars = observe(self.market, self.schema, np.array([self._at]), np.array([self._position])).bars[0]
        else:
            bars = self._windows[self._at - self.schema.window + 1].copy()
        return bars

    def _info(self) -> dict[str, Any]:
        return {"action_mask": LEGAL[self._position + 1].copy(), "session": self._session, "units": self._units}


def _decided(action: Acted) -> tuple[int, float]:
    """The action and the quantity of a pair. Raises DataError for anything else."""
    try:
        chosen, quantity = int(action[0]), float(np.asarray(action[1]).item())
        whole = chosen == action[0]
    except (TypeError, ValueError, IndexError, OverflowError):  # not a pair, not a number, infinite
        chosen, quantity, whole = -1, math.nan, False
    if not (whole and 0 <= chosen < N_ACTIONS and 1.0 <= quantity < math.inf):
        raise DataError(f"{action} is not an action 0 to 4 and a finite quantity of at least 1")
    return chosen, quantity
