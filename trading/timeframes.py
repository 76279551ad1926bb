"""Coarser bars made of base bars: a block of every observation for each timeframe (`core.observation.Timeframe`).

A coarse bar covers `span_s` seconds, counted from its session's first bar, or the whole session; none crosses a
session's end, the last of a session may be shorter. It is seen once it is complete: when the base bar that fills it
closes, else (bars are missing, the session is over) when the first bar after it closes. So a day's bar is never seen
on that day. Its features are `trading.features.advance` over the coarse bars, which have a history of their own.

n base bars, m coarse bars, F bar features.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.observation import Timeframe
from trading.features import (
    BAR_FEATURES,
    CONTEXT_FEATURES,
    FeatureSettings,
    Floats,
    advance,
    advance_all,
    initial_state,
)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CoarseBars:
    """One timeframe of a market. The last rows complete at base bar t end before row `closed[t]`."""

    timeframe: Timeframe
    bar_features: NDArray[np.float32]  # [m, F]
    closed: Ints  # [n]
    behind: Ints  # [n] complete since history began: after a hole it begins again

    @property
    def filled(self) -> NDArray[np.bool_]:
        """[n]: enough of them are complete for an observation."""
        return self.behind >= self.timeframe.bars


class BaseBars(NamedTuple):
    """What coarse bars are made of."""

    raw: Floats  # open, high, low, close, signal [n, 5]
    first: NDArray[np.bool_]  # [n] of its session, or of a history
    offset_s: Floats  # [n] from the start of its session
    edges: list[int]  # where histories begin, and n
    interval_s: int


def coarse_bars(timeframe: Timeframe, base: BaseBars, settings: FeatureSettings) -> CoarseBars:
    """All coarse bars of a market, with the features of each history for itself."""
    bucket = np.floor_divide(base.offset_s, timeframe.span_s)
    complete = base.offset_s + base.interval_s >= (bucket + 1.0) * timeframe.span_s
    starts = np.flatnonzero(base.first | (bucket != np.roll(bucket, 1)) | np.roll(complete, 1))  # first[0] is true
    rows, first = _merged(base.raw, starts), base.first[starts]
    parameters = settings.coarser(timeframe, base.interval_s).vector()
    histories = np.searchsorted(starts, base.edges)  # every history begins with a coarse bar of its own
    features = [
        advance_all(initial_state(), rows[begin:end], first[begin:end], parameters)[0]
        for begin, end in itertools.pairwise(histories)
    ]
    closed = np.searchsorted(starts, np.arange(len(base.raw)), side="right") - 1 + complete
    begun = np.repeat(histories[:-1], np.diff(base.edges))
    return CoarseBars(timeframe, np.concatenate(features), closed, closed - begun)


def _merged(raw: Floats, starts: Ints) -> Floats:
    """Bars [m, 5] of base bars [n, 5] from each of `starts` to the next."""
    last = np.append(starts[1:], len(raw)) - 1
    high, low = np.maximum.reduceat(raw[:, 1], starts), np.minimum.reduceat(raw[:, 2], starts)
    return np.stack([raw[starts, 0], high, low, raw[last, 3], raw[last, 4]], axis=1)


class CoarseWindow:
    """The live form: the last complete bars of one timeframe, built from base bars one at a time."""

    def __init__(self, timeframe: Timeframe, settings: FeatureSettings, interval_s: int) -> None:
        self._span_s, self._interval_s = timeframe.span_s, interval_s
        self._parameters = settings.coarser(timeframe, interval_s).vector()
        self._state, self._context = initial_state(), np.empty(len(CONTEXT_FEATURES), np.float32)
        self._bar: Floats | None = None  # the one that is not complete yet
        self._first, self._bucket = True, 0.0
        self.rows: deque[NDArray[np.float32]] = deque(maxlen=timeframe.bars)

    @property
    def ready(self) -> bool:
        return len(self.rows) == self.rows.maxlen

    def push(self, values: Floats, offset_s: float, first_of_session: bool) -> None:
        """Take one base bar: open, high, low, close, signal; `offset_s` from its session's first."""
        bucket = np.floor_divide(offset_s, self._span_s)
        if self._bar is not None and (first_of_session or bucket != self._bucket):
            self._complete(self._bar)
        if self._bar is None:
            self._bar, self._first, self._bucket = values.copy(), first_of_session, bucket
        else:
            self._bar[1], self._bar[2] = max(self._bar[1], values[1]), min(self._bar[2], values[2])
            self._bar[3:] = values[3:]
        if offset_s + self._interval_s >= (bucket + 1.0) * self._span_s:
            self._complete(self._bar)

    def _complete(self, bar: Floats) -> None:
        row = np.empty(len(BAR_FEATURES), np.float32)
        advance(self._state, bar, self._first, self._parameters, row, self._context)
        self.rows.append(row)
        self._bar = None
