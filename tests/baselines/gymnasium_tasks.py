"""Standard Gymnasium tasks for the reference PPO, and greedy returns of whoever decides in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from baselines.ppo import Arrays, Step


class GymnasiumTask:
    """E copies of a Gymnasium task in lock-step."""

    def __init__(self, name: str, rows: int, seed: int) -> None:
        make = [lambda: gym.make(name)] * rows
        self.env = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
        self.seen, _ = self.env.reset(seed=seed)

    def observe(self) -> Arrays:
        return (self.seen,)

    def step(self, action: NDArray[np.int64]) -> Step:
        self.seen, reward, terminated, truncated, info = self.env.step(action)
        return Step(reward, terminated, truncated, (self._last(truncated, info),))

    def _last(self, truncated: NDArray[np.bool_], info: dict[str, Any]) -> NDArray[np.float32]:
        last = self.seen.copy()
        for row in np.flatnonzero(truncated):
            last[row] = info["final_obs"][row]
        return last


def greedy_return(
    name: str, decide: Callable[[NDArray[np.float32]], NDArray[np.int64]], *, episodes: int, seed: int
) -> float:
    """Mean return of one episode in each of `episodes` copies."""
    env = SyncVectorEnv([lambda: gym.make(name)] * episodes)
    seen, _ = env.reset(seed=seed)
    total, alive = np.zeros(episodes), np.ones(episodes, dtype=bool)
    while alive.any():
        seen, reward, terminated, truncated, _ = env.step(decide(seen))
        total += reward * alive
        alive &= ~(terminated | truncated)
    return float(total.mean())
