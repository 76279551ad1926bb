"""Bars one at a time, and the observation after each: the live form of trading/market.py.

The features are the same recursion (`trading.features.advance`), so a live observation equals the batch one bit
for bit. A bar that cannot be right is refused, never repaired.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError
from core.observation import ObservationSchema
from trading.features import (
    BAR_FEATURES,
    CONTEXT_FEATURES,
    WARM_UP_BARS,
    FeatureSettings,
    advance,
    initial_state,
    one_hot,
)
from trading.market import MAX_BREAK_NS, SECOND_NS, Bars
from trading.timeframes import CoarseWindow


@dataclass(frozen=True)
class Bar:
    """One closed bar; `signal` is NaN where the market has none."""

    timestamp_ns: int  # UTC, start of the bar
    open: float
    high: float
    low: float
    close: float
    signal: float
    session: int
    last_of_session: bool

    def check(self) -> None:
        """Raise DataError if the prices cannot be right."""
        prices = (self.open, self.high, self.low, self.close)
        positive = all(math.isfinite(price) and price > 0 for price in prices)
        if not positive or self.high < max(prices) or self.low > min(prices):
            raise DataError(f"bar at {self.timestamp_ns} ns: impossible prices {prices}; the tick is skipped")


def replay(bars: Bars) -> Iterator[Bar]:
    """The bars of a file or a simulation, in order."""
    last = np.append(bars.session[1:] != bars.session[:-1], True)
    signal = np.full(len(bars), np.nan) if bars.signal is None else bars.signal
    columns = (bars.timestamps, bars.open, bars.high, bars.low, bars.close, signal, bars.session, last)
    for row in zip(*(column.tolist() for column in columns), strict=True):
        yield Bar(*row)


def usual_session_length(bars: Bars) -> int:
    """Bars in most of the sessions."""
    lengths = np.unique_counts(bars.session).counts
    return int(np.bincount(lengths).argmax())


class FeatureWindow:
    """What a model sees after each bar of one symbol: the windows of all timeframes and the account's context.

    Attributes after `push`: `context` float32 [C], `complexity` in [0, 1], `ready` once there is enough history.
    """

    def __init__(self, settings: FeatureSettings, schema: ObservationSchema, symbol: str) -> None:
        """Raises DataError if the schema names symbols and `symbol` is none of them."""
        self._settings, self._schema = settings, schema
        self._parameters = settings.vector()
        self.context = np.concatenate([np.zeros(len(CONTEXT_FEATURES), np.float32), one_hot(symbol, schema.symbols)])
        self.complexity = 1.0
        self._previous: Bar | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._state, self._seen, self._session_ns = initial_state(), 0, 0
        self._rows: deque[NDArray[np.float32]] = deque(maxlen=self._schema.base_window)
        interval_s = self._schema.interval_s
        self._coarse = [CoarseWindow(each, self._settings, interval_s) for each in self._schema.timeframes]

    @property
    def ready(self) -> bool:
        enough = self._seen >= max(self._schema.base_window, WARM_UP_BARS)
        return enough and all(window.ready for window in self._coarse)

    @property
    def bars(self) -> NDArray[np.float32]:
        """[W, F], oldest first; the coarsest timeframe first."""
        return np.stack([row for rows in (*(window.rows for window in self._coarse), self._rows) for row in rows])

    def push(self, bar: Bar) -> None:
        """Consume one bar. Raises DataError, with nothing changed, if it is impossible or out of order."""
        bar.check()
        previous = self._previous
        if previous is not None and bar.timestamp_ns <= previous.timestamp_ns:
            raise DataError(f"bar at {bar.timestamp_ns} ns is not after the last one; the tick is skipped")
        if previous is not None and bar.timestamp_ns - previous.timestamp_ns > MAX_BREAK_NS:
            self._start_over()
        first = previous is None or self._seen == 0 or bar.session != previous.session
        if first:
            self._session_ns = bar.timestamp_ns
        row = np.empty(len(BAR_FEATURES), dtype=np.float32)
        values = np.array([bar.open, bar.high, bar.low, bar.close, bar.signal])
        context = self.context[: len(CONTEXT_FEATURES)]
        _, complexity = advance(self._state, values, first, self._parameters, row, context)
        self.complexity = float(np.float32(complexity))
        self._rows.append(row)
        self._seen += 1
        self._previous = bar
        for window in self._coarse:
            window.push(values, (bar.timestamp_ns - self._session_ns) / SECOND_NS, first)
