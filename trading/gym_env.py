"""The same accounting as `trading.env`, one session at a time, behind Gymnasium's interface.

Action: (one of the five actions, quantity in units). An illegal action counts as HOLD and is told in `info`, so that
any agent can be plugged in; `info["action_mask"]` shows what is legal. Reward: bps of the capital at work, after costs.
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from core.actions import N_ACTIONS, Action, legal_actions
from core.observation import ObservationSchema
from trading.env import SessionEnv
from trading.market import Market

Observed = dict[str, Any]
Acted = tuple[Any, ...]


class TradingEnv(gym.Env[Observed, Acted]):
    """One episode is one session drawn at random; the last bar forces the position flat and terminates."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self, market: Market, schema: ObservationSchema, cost_bps: float, *, max_quantity: float = 100_000.0
    ) -> None:
        self.market, self.schema, self.cost_bps = market, schema, cost_bps
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
        self._env: SessionEnv | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        """Start a session: `options={"session": id}` chooses one, otherwise it is drawn."""
        super().reset(seed=seed)
        chosen = (options or {}).get("session")
        session = self.np_random.choice(self.market.sessions) if chosen is None else chosen
        self._env = SessionEnv(self.market, self.schema, np.array([session]), self.cost_bps)
        return self._observed(), self._info(self._env)

    def step(self, action: Acted) -> tuple[Observed, SupportsFloat, bool, bool, dict[str, Any]]:
        """(observation, reward in bps, terminated, truncated=False, info); call `reset` after terminated."""
        if self._env is None or self._env.done:
            raise gym.error.ResetNeeded("call reset() before step(): there is no session in progress")
        env = self._env
        wanted, quantity = int(action[0]), float(np.asarray(action[1]).reshape(-1)[0])
        legal = bool(legal_actions(env.position)[0, wanted])
        done = env.step(np.array([wanted if legal else Action.HOLD]))
        info = self._info(env) | {"legal": legal, "quantity": quantity, "turnover": int(done.turnover[0])}
        return self._observed(), float(done.reward_bps[0]), env.done, False, info

    def _observed(self) -> Observed:
        assert self._env is not None  # noqa: S101 - reset() and step() see to it
        seen = self._env.observe()
        return {
            "bars": seen.bars[0],
            "account": seen.account[0],
            "complexity": np.clip(seen.complexity[:1], 0.0, 1.0),
            "position": np.int64(seen.position[0]),
        }

    @staticmethod
    def _info(env: SessionEnv) -> dict[str, Any]:
        return {"action_mask": legal_actions(env.position)[0], "session": int(env.sessions[0])}
