"""What has been traded: the last price of each symbol with its day so far, and candles made of ticks.

Candles are kept by minute; a coarser candle that was loaded stands at the minute it begins. Asked for in any
resolution, they are put together from 09:15 in India on.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime, time

from tests.fyers_emulator.clock import datetime_in_india, day_of
from trading.calendar import KOLKATA

OPENS = time(9, 15)
MOST_VOLUME = 2**31 - 1  # that the data socket can tell
Candle = list[float]  # start (epoch s), open, high, low, close, volume


@dataclass
class Quote:
    """Of one symbol and day."""

    day: date
    price: float
    at: float
    open: float
    high: float
    low: float
    previous_close: float
    volume: int = 0
    bought: int = 0  # of the last tick

    def take(self, price: float, at: float, volume: int) -> None:
        self.price, self.at, self.bought = price, at, volume
        self.high, self.low = max(self.high, price), min(self.low, price)
        self.volume = min(self.volume + volume, MOST_VOLUME)


class Tape:
    def __init__(self) -> None:
        self.quotes: dict[str, Quote] = {}
        self._candles: defaultdict[str, dict[int, Candle]] = defaultdict(dict)

    def print(self, symbol: str, price: float, at: float, volume: int) -> Quote:
        """One trade of the market."""
        quote, day = self.quotes.get(symbol), day_of(at)
        if quote is None or quote.day != day:
            previous = self._last_close(symbol, price) if quote is None else quote.price
            quote = self.quotes[symbol] = Quote(day, price, at, price, price, price, previous)
        quote.take(price, at, volume)
        self._merge(symbol, [int(at // 60 * 60), price, price, price, price, volume])
        return quote

    def load(self, symbol: str, candles: list[Candle]) -> None:
        for start, *rest in candles:
            self._candles[symbol][int(start)] = [int(start), *rest]

    def candles(self, symbol: str, first: float, last: float, seconds: int | None) -> list[Candle]:
        """That begin in [first, last]; `seconds` None: one a day."""
        found: dict[int, Candle] = {}
        for start, candle in sorted(self._candles[symbol].items()):
            if first <= start <= last:
                _merged(found, [_bucket(start, seconds), *candle[1:]])
        return list(found.values())

    def _last_close(self, symbol: str, otherwise: float) -> float:
        candles = self._candles[symbol]
        return candles[max(candles)][4] if candles else otherwise

    def _merge(self, symbol: str, candle: Candle) -> None:
        _merged(self._candles[symbol], candle)


def _merged(into: dict[int, Candle], candle: Candle) -> None:
    start = int(candle[0])
    before = into.get(start)
    if before is None:
        into[start] = list(candle)
        return
    before[2], before[3] = max(before[2], candle[2]), min(before[3], candle[3])
    before[4], before[5] = candle[4], before[5] + candle[5]


def _bucket(start: float, seconds: int | None) -> int:
    day = datetime_in_india(start).date()
    if seconds is None:
        return int(datetime.combine(day, time(), KOLKATA).timestamp())
    opens = int(datetime.combine(day, OPENS, KOLKATA).timestamp())
    return int(opens + (start - opens) // seconds * seconds)
