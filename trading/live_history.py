"""The bars before a live session, and those of today that this process has not seen: from a file, or from Fyers.

A source takes the name of an instrument and a time, and gives the bars of its signal that were closed by then, oldest
first, of as many sessions as its features need. pandas is imported by whoever asks: a restart seldom does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import DataError
from core.observation import ObservationSchema
from trading.features import WARM_UP_BARS
from trading.instruments import instrument
from trading.market import SECOND_NS, day_of
from trading.session_grid import Grid
from trading.stream import Bar, replay

if TYPE_CHECKING:
    from trading.fyers.client import Clients
    from trading.market import Bars

History = Callable[[str, int], list[Bar]]
LEAST_SESSIONS = 15  # the slowest averages have forgotten how they began
LONGEST_HOLIDAY_DAYS = 10


def sessions_needed(observation: ObservationSchema, session_bars: int) -> int:
    """Of history, so that every block of an observation is full and has settled."""
    sessions = max(WARM_UP_BARS, observation.base_window) / session_bars
    for timeframe in observation.timeframes:
        a_day = math.ceil(session_bars * observation.interval_s / timeframe.span_s)  # 1 for a day's bars
        sessions = max(sessions, timeframe.bars / a_day)
    return max(LEAST_SESSIONS, 2 * math.ceil(sessions) + 1)


def from_file(path: Path, grids: Mapping[str, Grid], sessions: int) -> History:
    """One file for the one symbol there is. Raises DataError for bars of another length than the session's."""
    from trading.files import load_market_bars

    if len(grids) != 1:
        told = f"{path}: of one symbol, and live.symbols names {len(grids)}; leave out --data, and Fyers is asked"
        raise DataError(told, code="wrong_data")
    bars = load_market_bars(path)
    (grid,) = grids.values()
    if bars.interval_s * SECOND_NS != grid.interval_ns:
        wanted = grid.interval_ns // (60 * SECOND_NS)
        raise DataError(f"{path}: bars of {bars.interval_s} s; live.interval_min is {wanted}", code="wrong_timeframe")
    return lambda _symbol, now_ns: _closed(bars, grid, now_ns, sessions)


def from_fyers(clients: Clients, grids: Mapping[str, Grid], sessions: int) -> History:
    """Asked for anew each time."""
    days = timedelta(days=sessions * 7 // 5 + LONGEST_HOLIDAY_DAYS)

    def history(symbol: str, now_ns: int) -> list[Bar]:
        from trading.files import to_market_bars
        from trading.fyers.history import Span, fetch_history

        traded, grid = instrument(symbol), grids[symbol]
        resolution = str(grid.interval_ns // (60 * SECOND_NS))
        span = Span(traded.index or str(traded.symbol), resolution, grid.day - days, grid.day)
        now = datetime.fromtimestamp(now_ns / SECOND_NS, UTC)
        frame = fetch_history(clients.here(), span, now=now)
        return _closed(to_market_bars(frame, symbol), grid, now_ns, sessions)

    return history


def _closed(bars: Bars, grid: Grid, now_ns: int, sessions: int) -> list[Bar]:
    """The last sessions of them, as a live session has its bars."""
    first = max(0, int(bars.session[-1]) - sessions + 1)
    kept = bars.part(int((bars.session < first).sum()), len(bars))
    found = (replace(bar, session=day_of(bar.timestamp_ns).toordinal()) for bar in replay(kept))
    return [
        replace(bar, last_of_session=bar.timestamp_ns == grid.last_ns) if bar.session == grid.session else bar
        for bar in found
        if bar.session < grid.session or grid.end_of(bar.timestamp_ns) <= now_ns
    ]
