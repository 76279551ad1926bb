"""Whole sessions of the exchange, made here: random walks in bars of any length on real session days."""

from __future__ import annotations

from datetime import date

import numpy as np
import pandas as pd

from trading.calendar import hours, next_session


def exchange_bars(sessions: int = 60, minutes: int = 5, *, start: date = date(2023, 1, 1), level: float = 18000.0):
    """Clean bars of the `sessions` sessions after `start`, stamped at their start in Kolkata."""
    days = [start]
    while len(days) <= sessions:
        days.append(next_session(days[-1]))
    spans = [hours(day, "cash") for day in days[1:]]
    step = pd.Timedelta(minutes=minutes)
    times = [time for span in spans for time in pd.date_range(span.open, span.close, freq=step, inclusive="left")]
    close = level * np.exp(np.cumsum(np.random.default_rng(0).normal(0, 2e-4, len(times))))
    opens = np.concatenate([[level], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": pd.DatetimeIndex(times).tz_convert("Asia/Kolkata").as_unit("ns"),
            "open": opens,
            "high": np.maximum(opens, close) * 1.0002,
            "low": np.minimum(opens, close) * 0.9998,
            "close": close,
            "volume": 0.0,
        }
    )


def rows_of(bars: pd.DataFrame, session: int) -> pd.Series:
    """Mask of the bars of session number `session`."""
    return pd.Series(pd.factorize(bars["timestamp"].dt.normalize())[0] == session, index=bars.index)
