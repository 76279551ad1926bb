"""vectorbt: SMA crossover, filled at the next open, flat at each session's end. Runs in its own environment (peers.py).

Reads {"arrays", "units", "fee", "capital", "runs"}; the arrays are open, close, session and decide (bool: a decision is
taken at this bar's close), [n] each. Every bar is two points of vectorbt's time line, its open and its close, so that
an order can be filled at either.
"""

import json
import statistics
import sys
import time

import numpy as np
import vectorbt as vbt

asked = json.load(sys.stdin)
with np.load(asked["arrays"], allow_pickle=False) as arrays:
    open_, close, session, decide = (arrays[name] for name in ("open", "close", "session", "decide"))


def play() -> tuple[float, float, int]:
    """Seconds from bars to final equity, that equity, and the number of orders."""
    started = time.perf_counter()
    fast, slow = (vbt.MA.run(close, window).ma.to_numpy().ravel() for window in (20, 50))
    target = np.where(fast > slow, asked["units"], -asked["units"])
    price, size = np.empty(2 * len(close)), np.full(2 * len(close), np.nan)
    price[0::2], price[1::2] = open_, close
    decisions = np.flatnonzero(decide)
    size[2 * (decisions + 1)] = target[decisions]
    last = np.append(np.flatnonzero(np.diff(session)), len(session) - 1)
    size[2 * last + 1] = 0.0
    portfolio = vbt.Portfolio.from_orders(
        price, size, size_type="targetamount", price=price, fees=asked["fee"], init_cash=asked["capital"]
    )
    equity = float(portfolio.final_value())
    return time.perf_counter() - started, equity, int(portfolio.orders.count())


play()  # compiles
found = [play() for _ in range(asked["runs"])]
seconds = statistics.median(run[0] for run in found)
answer = {"bars_per_s": len(close) / seconds, "final_equity": found[0][1], "orders": found[0][2]}
print(json.dumps(answer))  # noqa: T201 - the answer
