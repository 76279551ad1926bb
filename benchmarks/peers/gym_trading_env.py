"""gym-trading-env: one environment, random positions, steps per second. Runs in its own environment (peers.py).

Reads {"arrays", "window", "steps", "runs"}; the arrays are open, high, low, close [n], timestamps (UTC ns) [n] and
features [n, 16]. Built directly, without the checking wrappers that `gymnasium.make` would put around it.
"""

import json
import statistics
import sys
import time

import numpy as np
import pandas as pd
from gym_trading_env.environments import TradingEnv

asked = json.load(sys.stdin)
with np.load(asked["arrays"], allow_pickle=False) as arrays:
    table = pd.DataFrame(
        {name: arrays[name] for name in ("open", "high", "low", "close")}, index=pd.to_datetime(arrays["timestamps"])
    )
    for column, feature in enumerate(arrays["features"].T[:-2]):  # it adds two of its own
        table[f"feature_{column}"] = feature

env = TradingEnv(df=table, positions=[-1, 0, 1], windows=asked["window"], trading_fees=1.5e-4, verbose=0)
rng = np.random.default_rng(0)


def play() -> float:
    """Seconds for `steps` steps; an episode that ends is followed by the next."""
    started = time.perf_counter()
    env.reset()
    for position in rng.integers(0, 3, asked["steps"]).tolist():
        _, _, terminated, truncated, _ = env.step(position)
        if terminated or truncated:
            env.reset()
    return time.perf_counter() - started


play()
seconds = statistics.median(play() for _ in range(asked["runs"]))
found = {"steps_per_s": asked["steps"] / seconds, "observation": list(env.observation_space.shape)}
print(json.dumps(found))  # noqa: T201 - the answer
