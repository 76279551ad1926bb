"""Generalised advantage estimation (Schulman et al. 2016), for every agent that learns from rewards.

    delta_t = r_t + gamma V_{t+1} - V_t,    A_t = delta_t + gamma lambda A_{t+1}

At an episode's last step A_{t+1} is 0 and V_{t+1} is what the episode would still have earned: nothing if it
terminated, the value of its last observation if it was cut short (truncated).

T steps of E environments in lock-step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def gae(
    rewards: Floats,
    values: Floats,
    ended: NDArray[np.bool_],
    *,
    gamma: float,
    gae_lambda: float,
    final_values: Floats | None = None,
) -> Floats:
    """Advantages [T, E] from rewards and ended [T, E], and values [T + 1, E]: the last are where it stops.

    `ended` marks the last steps of episodes. `final_values` [T, E] is V of the observation with which an episode was
    truncated and 0 wherever it terminated; without it all of them terminated.
    """
    advantage, running = np.zeros_like(rewards), np.zeros_like(rewards[0])
    for t in range(len(rewards) - 1, -1, -1):
        after = np.where(ended[t], 0.0 if final_values is None else final_values[t], values[t + 1])
        delta = rewards[t] + gamma * after - values[t]
        running = delta + gamma * gae_lambda * ~ended[t] * running
        advantage[t] = running
    return advantage
