"""Fixtures of the trading tests: bars made here, no file and no market data needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest


def _make_bars(sessions: int = 5, bars: int = 20, seed: int = 0) -> pd.DataFrame:
    """Clean 5-minute bars from 09:15 India time on weekdays from 2023-01-02."""
    days = pd.bdate_range("2023-01-02", periods=sessions, tz="Asia/Kolkata") + pd.Timedelta(
        hours=9, minutes=15
    )
    times = [day + pd.Timedelta(minutes=5 * bar) for day in days for bar in range(bars)]
    close = 18000 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 5e-4, len(times))))
    opens = np.concatenate([[18000.0], close[:-1]])
    return pd.DataFrame(
        {
            "timestamp": times,
            "open": opens,
            "high": np.maximum(opens, close) * 1.0002,
            "low": np.minimum(opens, close) * 0.9998,
            "close": close,
            "volume": 0,
        }
    )


@pytest.fixture(scope="session")
def make_bars() -> Callable[..., pd.DataFrame]:
    return _make_bars
