"""Generalised advantage estimation (Schulman et al. 2016), for every agent that learns from rewards.

    delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1},    0 beyond an episode's end

T steps of E environments in lock-step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def gae(rewards: Floats, values: Floats, terminated: NDArray[np.bool_], *, gamma: float, gae_lambda: float) -> Floats:
    """Advantages [T, E] from rewards and terminated [T, E], and values [T + 1, E]: the last are where it stops."""
    advantage, running = np.zeros_like(rewards), np.zeros_like(rewards[0])
    for t in range(len(rewards) - 1, -1, -1):
        alive = (~terminated[t]).astype(rewards.dtype)
        delta = rewards[t] + gamma * values[t + 1] * alive - values[t]
        running = delta + gamma * gae_lambda * alive * running
        advantage[t] = running
    return advantage
