"""Bars from ticks: pure, with the time given. Only good ticks count; the others are counted by what is wrong with them.

A bar is over when a tick of a later one comes, or GRACE_S after its end; what comes for it later is too late. Each bar
of the session is told once and in order; without a tick, or if the process began in the middle of it, it has no prices:
`bar` is None. Signals (names of instruments) have bars, what is traded (the broker's symbols) has prices alone.

A price far from the last one is not believed until others have agreed with it for OUTLIER_S: one wrong price never
moves anything. A first one is held against the last close of its signal, as far as one is known: the exchange stops an
index at the same distance. The bar in which that happens had prices that contradict each other, and is not built.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from trading.market import SECOND_NS
from trading.session_grid import Grid
from trading.stream import Bar
from trading.ticks import Tick

GRACE_S = 1.0  # after a bar's end, for ticks that are on their way
FUTURE_S = 2.0  # an exchange's clock may be ahead by so much
OUTLIER_RATIO = 0.1  # from the last good price
OUTLIER_S = 30.0

Reason = Literal["unknown_symbol", "malformed", "not_positive", "outside_session", "future", "out_of_order", "outlier"]


@dataclass(frozen=True)
class Closed:
    """A bar that is over; None: its prices are not known."""

    symbol: str
    start_ns: int
    bar: Bar | None


class BarBuilder:
    """`last` has the newest good tick of each symbol, `counts` the bad ones by reason."""

    def __init__(
        self, grids: Mapping[str, Grid], traded: Mapping[str, str], expected: Callable[[str], float | None]
    ) -> None:
        """`grids`: of the signals, all of one day; `traded`: what is traded for each.

        `expected`: about what the price of a signal should be before its first tick, None where that is not known.
        """
        self.grids, self.traded, self.expected = grids, frozenset(traded.values()), expected
        self._signals = {name: symbol for symbol, name in traded.items()}
        self.last: dict[str, Tick] = {}
        self.counts: Counter[str] = Counter()
        self._next = {symbol: grid.opens_ns for symbol, grid in grids.items()}  # start of the first that was not told
        self._whole_from = dict(self._next)
        self._building: dict[str, Bar] = {}
        self._far: dict[str, Tick] = {}  # the first of those that agree with each other, and not with `last`
        self._opens_ns = min(grid.opens_ns for grid in grids.values())

    def begin(self, symbol: str, now_ns: int) -> None:
        """Bars that are over are known, and the one that now is forming cannot be built."""
        over = self.grids[symbol].closed_by(now_ns)
        self._next[symbol] = over.stop
        self._whole_from[symbol] = over.stop + (self.grids[symbol].interval_ns if now_ns > over.stop else 0)

    def push(self, tick: Tick, now_ns: int) -> list[Closed]:
        """The bars that are over with this tick, oldest first."""
        wrong = self._judge(tick, now_ns)
        if wrong is not None:
            self.counts[f"tick:{wrong}"] += 1
            return []
        self.last[tick.symbol] = tick
        if tick.symbol not in self.grids:
            return []
        start_ns = self.grids[tick.symbol].start_of(tick.at_ns)
        if start_ns is None or start_ns < self._next[tick.symbol]:
            self.counts["tick:late"] += 1
            return []
        closed = self._close_before(tick.symbol, start_ns)
        self._add(tick, start_ns)
        return closed

    def close_due(self, now_ns: int) -> list[Closed]:
        """The bars whose time is over, oldest first of each symbol."""
        closed = []
        for symbol, grid in self.grids.items():
            closed += self._close_before(symbol, grid.closed_by(now_ns - int(GRACE_S * SECOND_NS)).stop)
        return closed

    def _close_before(self, symbol: str, stop_ns: int) -> list[Closed]:
        closed = []
        while self._next[symbol] < stop_ns:
            start_ns = self._next[symbol]
            bar = self._building.pop(symbol, None)
            whole = bar is not None and start_ns >= self._whole_from[symbol]
            closed.append(Closed(symbol, start_ns, bar if whole else None))
            self._next[symbol] += self.grids[symbol].interval_ns
        return closed

    def _add(self, tick: Tick, start_ns: int) -> None:
        price, grid, bar = tick.price, self.grids[tick.symbol], self._building.get(tick.symbol)
        if bar is None:
            last = start_ns == grid.last_ns
            bar = Bar(start_ns, price, price, price, price, math.nan, grid.session, last)
        self._building[tick.symbol] = replace(bar, high=max(bar.high, price), low=min(bar.low, price), close=price)

    def _judge(self, tick: Tick, now_ns: int) -> Reason | None:
        if tick.symbol not in self.grids and tick.symbol not in self.traded:
            return "unknown_symbol"
        if not math.isfinite(tick.price):
            return "malformed"
        if tick.price <= 0:
            return "not_positive"
        return self._judge_time(tick, now_ns) or self._judge_change(tick)

    def _judge_time(self, tick: Tick, now_ns: int) -> Reason | None:
        if tick.at_ns > now_ns + int(FUTURE_S * SECOND_NS):
            return "future"
        grid = self.grids.get(tick.symbol)
        if tick.at_ns < self._opens_ns or (grid is not None and grid.start_of(tick.at_ns) is None):
            return "outside_session"
        return None

    def _judge_change(self, tick: Tick) -> Reason | None:
        before, first = self.last.get(tick.symbol), self._far.get(tick.symbol)
        usual = self.expected(self._signals.get(tick.symbol, tick.symbol)) if before is None else before.price
        if before is not None and tick.at_ns < before.at_ns:
            return "out_of_order"
        if usual is None or not _is_far(tick, usual):
            self._far.pop(tick.symbol, None)
            return None
        if first is None or _is_far(tick, first.price):
            self._far[tick.symbol] = tick
            return "outlier"
        if tick.at_ns - first.at_ns < OUTLIER_S * SECOND_NS:
            return "outlier"
        del self._far[tick.symbol]
        self._doubt(tick)
        return None

    def _doubt(self, tick: Tick) -> None:
        """The bar of a tick is not to be built: prices before it are far away."""
        grid = self.grids.get(tick.symbol)
        start_ns = None if grid is None else grid.start_of(tick.at_ns)
        if grid is not None and start_ns is not None:
            self._whole_from[tick.symbol] = max(self._whole_from[tick.symbol], start_ns + grid.interval_ns)


def _is_far(tick: Tick, price: float) -> bool:
    return abs(tick.price - price) > OUTLIER_RATIO * price
