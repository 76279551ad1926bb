"""A market for a whole session: twenty made-up index futures under NIFTY's rules, and their bars.

Bars come from a generator, or from a file: then each symbol is another of its days, as if all were one. Prices are
whole paisa, as the exchange tells them. The symbols are in a file of tables, which `HRM_INSTRUMENTS` names to the
processes of the session.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from core.errors import DataError
from trading.calendar import KOLKATA, sessions
from trading.files import load_market_bars
from trading.market import Bars
from trading.tables import SHIPPED

DAY = date(2026, 11, 18)
BARS = 75  # of a session, five minutes each
BAR_S = 300
HISTORY_SESSIONS = 8  # before the day: windows are full, and slow averages have seen some days
LETTERS = "ABCDEFGHIJKLMNOPQRST"

Prices = NDArray[np.float64]  # [sessions, BARS, 4]: open, high, low, close, in rupees


@dataclass(frozen=True)
class Market:
    """`prices` by symbol: of the sessions before the day, and of the day as the last one."""

    prices: dict[str, Prices]

    @property
    def days(self) -> list[date]:
        count = len(next(iter(self.prices.values())))
        return list(sessions(DAY - timedelta(days=3 * count + 10), DAY)[-count:])

    def candles(self, symbol: str) -> list[list[float]]:
        """Of the days before, as the broker tells them: epoch seconds, open, high, low, close, volume."""
        rows = zip(self.days[:-1], self.prices[symbol][:-1], strict=True)
        return [[start_s(bar, day), *session[bar].tolist(), 0.0] for day, session in rows for bar in range(BARS)]

    def path(self, symbol: str, bar: int) -> list[float]:
        """The prices of a bar of the day in the order they come: open, both extremes, close."""
        opened, high, low, close = self.prices[symbol][-1, bar].tolist()
        return [opened, low, high, close] if close >= opened else [opened, high, low, close]


def names(count: int) -> list[str]:
    """Of made-up instruments. Raises DataError beyond as many as there are letters."""
    if not 1 <= count <= len(LETTERS):
        raise DataError(f"{count} symbols; choose 1 to {len(LETTERS)}", code="usage")
    return [f"SYN{letter}" for letter in LETTERS[:count]]


def index_of(symbol: str) -> str:
    return f"NSE:{symbol}-INDEX"


def start_s(bar: int, day: date = DAY) -> int:
    """Epoch seconds at which a bar of a session begins."""
    return int(datetime.combine(day, time(9, 15), KOLKATA).timestamp()) + BAR_S * bar


def write_tables(folder: Path, symbols: list[str]) -> Path:
    """The shipped tables and these instruments, with NIFTY's lots, ticks, freeze quantities and expiries."""
    tables = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    nifty = tables["instruments"]["NIFTY"]
    tables["instruments"] |= {symbol: nifty | {"index": index_of(symbol)} for symbol in symbols}
    file = folder / "instruments.yaml"
    file.write_text(yaml.safe_dump(tables), encoding="utf-8")
    return file


def synthetic(symbols: list[str], seed: int = 0) -> Market:
    """Long swings with noise, so that whoever follows momentum trades."""
    return Market({symbol: _walk(np.random.default_rng([seed, place])) for place, symbol in enumerate(symbols)})


def of_file(path: Path, symbols: list[str]) -> Market:
    """The last sessions of a file: another day of it for each symbol, with the sessions before it as history.

    Raises DataError where it has too few whole sessions of five-minute bars.
    """
    whole = list(_sessions(load_market_bars(path)))
    needed = HISTORY_SESSIONS + len(symbols)
    if len(whole) < needed:
        told = f"{path}: {len(whole)} sessions of {BARS} bars; {len(symbols)} symbols need {needed}"
        raise DataError(told, code="too_few_sessions")
    parts = [whole[len(whole) - HISTORY_SESSIONS - 1 - place : len(whole) - place] for place in range(len(symbols))]
    return Market({symbol: np.round(part, 2) for symbol, part in zip(symbols, parts, strict=True)})


def _walk(random: np.random.Generator) -> Prices:
    count = (HISTORY_SESSIONS + 1) * BARS
    swing = 2e-3 * np.sin(np.arange(count) / 6.0 + random.uniform(0, 6))
    close = 24_000.0 * np.exp(swing + np.cumsum(random.normal(0, 2e-4, count)))
    opened = np.concatenate([close[:1], close[:-1]]) * (1 + random.normal(0, 2e-5, count))
    high = np.maximum(opened, close) * (1 + random.uniform(0, 1e-4, count))
    low = np.minimum(opened, close) * (1 - random.uniform(0, 1e-4, count))
    return np.stack([opened, high, low, close], axis=1).round(2).reshape(-1, BARS, 4).astype(np.float64)


def _sessions(bars: Bars) -> Iterator[Prices]:
    """[BARS, 4] of each session that is whole."""
    if bars.interval_s != BAR_S:
        raise DataError(f"{bars.name}: bars of {bars.interval_s} s; bring some of {BAR_S} s", code="wrong_timeframe")
    prices = np.stack([bars.open, bars.high, bars.low, bars.close], axis=1)
    for session in np.unique(bars.session):
        part = prices[bars.session == session]
        if len(part) == BARS:
            yield part
