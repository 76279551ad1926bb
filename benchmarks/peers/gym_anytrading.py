"""gym-anytrading: one environment, random actions, steps per second. Runs in its own environment (peers.py).

Reads {"arrays", "window", "steps", "runs"}; of the arrays it uses close [n]: its features are the price and its
difference. Built directly, without the checking wrappers that `gymnasium.make` would put around it.
"""

import json
import statistics
import sys
import time

import numpy as np
import pandas as pd
from gym_anytrading.envs import StocksEnv

asked = json.load(sys.stdin)
with np.load(asked["arrays"], allow_pickle=False) as arrays:
    table = pd.DataFrame({"Close": arrays["close"]})

env = StocksEnv(df=table, window_size=asked["window"], frame_bound=(asked["window"], len(table)))
rng = np.random.default_rng(0)


def play() -> float:
    """Seconds for `steps` steps; an episode that ends is followed by the next."""
    started = time.perf_counter()
    env.reset()
    for action in rng.integers(0, 2, asked["steps"]).tolist():
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return time.perf_counter() - started


play()
seconds = statistics.median(play() for _ in range(asked["runs"]))
found = {"steps_per_s": asked["steps"] / seconds, "observation": list(env.observation_space.shape)}
print(json.dumps(found))  # noqa: T201 - the answer
