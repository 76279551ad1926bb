"""Several symbols in one market: episodes, training rows and splits may mix them.

Each symbol's bars stay in a row, so that a window is one block of memory and lies within one symbol; sessions are
numbered on from symbol to symbol. Numbers of sessions therefore follow symbols first and time second: whoever cuts by
time (splits, walk-forward, purging) cuts by days, with `Market.between`, and no symbol's test day is another's
training day.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import DataError
from trading.features import Floats
from trading.market import Bars, Market
from trading.timeframes import CoarseBars


def concatenate(markets: Sequence[Market]) -> Market:
    """One market of several symbols, in the order given, all with labels or none.

    Raises DataError for a symbol that occurs twice, and for markets that were not prepared alike.
    """
    _require_alike(markets)
    bars = [market.bars for market in markets]
    begins = np.cumsum([0, *(len(each) for each in bars[:-1])]).tolist()
    values = [market.values for market in markets if market.values is not None]
    return Market(
        _joined_bars(bars),
        np.concatenate([market.bar_features for market in markets]),
        np.concatenate([market.context for market in markets]),
        np.concatenate([market.volatility for market in markets]),
        np.concatenate([market.complexity for market in markets]),
        np.concatenate([market.decision_bars + begin for market, begin in zip(markets, begins, strict=True)]),
        np.concatenate(values) if values else None,
        tuple(_joined_coarse(parts) for parts in zip(*(market.coarse for market in markets), strict=True)),
        tuple((each.name, begin) for each, begin in zip(bars, begins, strict=True)),
    )


def require_distinct(symbols: Sequence[str]) -> None:
    """Raise DataError unless there are symbols, each once."""
    if not symbols or len(set(symbols)) < len(symbols):
        raise DataError(f"symbols {list(symbols)}: give each symbol once, and at least one", code="duplicate_symbol")


def _require_alike(markets: Sequence[Market]) -> None:
    names = [market.name for market in markets]
    require_distinct(names)
    intervals = {market.name: market.bars.interval_s for market in markets}
    if len(set(intervals.values())) > 1:
        found = ", ".join(f"{name} {interval} s" for name, interval in intervals.items())
        raise DataError(
            f"bars of different lengths ({found}); give all symbols in one timeframe", code="wrong_timeframe"
        )
    kinds = {
        (market.context.shape[1], market.values is None, tuple(coarse.timeframe for coarse in market.coarse))
        for market in markets
    }
    if len(kinds) > 1:
        raise DataError(
            f"{', '.join(names)}: prepared with different symbols, timeframes or labels; prepare them alike"
        )


def _joined_bars(bars: Sequence[Bars]) -> Bars:
    sessions, so_far = [], 0
    for each in bars:
        sessions.append(np.cumsum(each.first_of_session) - 1 + so_far)
        so_far = int(sessions[-1][-1]) + 1
    return Bars(
        "+".join(each.name for each in bars),
        np.concatenate([each.timestamps for each in bars]),
        np.concatenate([each.open for each in bars]),
        np.concatenate([each.high for each in bars]),
        np.concatenate([each.low for each in bars]),
        np.concatenate([each.close for each in bars]),
        np.concatenate(sessions),
        _joined_signals(bars),
    )


def _joined_signals(bars: Sequence[Bars]) -> Floats | None:
    if all(each.signal is None for each in bars):
        return None
    return np.concatenate([np.full(len(each), np.nan) if each.signal is None else each.signal for each in bars])


def _joined_coarse(parts: Sequence[CoarseBars]) -> CoarseBars:
    """One timeframe of all symbols: rows are numbered on."""
    begins = np.cumsum([0, *(len(part.bar_features) for part in parts[:-1])])
    return CoarseBars(
        parts[0].timeframe,
        np.concatenate([part.bar_features for part in parts]),
        np.concatenate([part.closed + begin for part, begin in zip(parts, begins, strict=True)]),
        np.concatenate([part.behind for part in parts]),
    )
