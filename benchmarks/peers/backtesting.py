"""backtesting.py: SMA crossover, filled at the next open. Runs in its own environment (peers.py).

Reads {"arrays", "fee", "capital", "runs"}; the arrays are open, high, low and close [n]. It has no orders at a close,
so positions stay open over night: the same work, another equity.
"""

import json
import statistics
import sys
import time

import numpy as np
import pandas as pd
from backtesting import Backtest, Strategy
from backtesting.lib import crossover

asked = json.load(sys.stdin)
with np.load(asked["arrays"], allow_pickle=False) as arrays:
    bars = pd.DataFrame({name.capitalize(): arrays[name] for name in ("open", "high", "low", "close")})


def mean(prices: np.ndarray, window: int) -> pd.Series:
    return pd.Series(prices).rolling(window).mean()


class Crossover(Strategy):
    def init(self) -> None:
        self.fast, self.slow = (self.I(mean, self.data.Close, window) for window in (20, 50))

    def next(self) -> None:
        if crossover(self.fast, self.slow):
            self.buy(size=1)
        elif crossover(self.slow, self.fast):
            self.sell(size=1)


def play() -> tuple[float, float, int]:
    started = time.perf_counter()
    test = Backtest(bars, Crossover, cash=asked["capital"], commission=asked["fee"], exclusive_orders=True)
    stats = test.run()
    return time.perf_counter() - started, float(stats["Equity Final [$]"]), int(stats["# Trades"])


found = [play() for _ in range(asked["runs"])]
seconds = statistics.median(run[0] for run in found)
answer = {"bars_per_s": len(bars) / seconds, "final_equity": found[0][1], "trades": found[0][2]}
print(json.dumps(answer))  # noqa: T201 - the answer
