"""A market that plays by itself: bars as ticks, at the times they happened, on the venue's clock.

Of each bar four ticks are told: open, the extreme on the other side of where it goes, the other extreme, close. So the
bars that are built from the ticks are the bars that were given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from tests.fyers_emulator.clock import day_of
from tests.fyers_emulator.tape import Candle
from tests.fyers_emulator.venue import Venue

WITHIN_BAR = (0.0, 0.3, 0.6, 0.95)  # of its length
LEAD_S = 30.0  # before the first bar of a session
LONGEST_NAP_S = 0.25


@dataclass(frozen=True)
class Pace:
    first: date  # what came before is history
    bar_s: float
    speed: float  # times as fast as it was


@dataclass(frozen=True)
class Print:
    at: float
    symbol: str
    price: float
    volume: int


async def play(venue: Venue, bars: Mapping[str, Sequence[Candle]], pace: Pace) -> None:
    """Session after session; closed in between, without the nights."""
    days: dict[date, list[Print]] = {}
    for symbol, candles in bars.items():
        venue.tape.load(symbol, [list(candle) for candle in candles if day_of(candle[0]) < pace.first])
    for each in sorted(_prints(bars, pace), key=lambda it: it.at):
        days.setdefault(day_of(each.at), []).append(each)
    for prints in days.values():
        venue.set_clock(prints[0].at - LEAD_S, pace.speed)
        venue.set_status("OPEN", None)
        for each in prints:
            await _until(venue, each.at)
            venue.tick(each.symbol, each.price, each.at, each.volume)
        await _until(venue, prints[-1].at + (1 - WITHIN_BAR[-1]) * pace.bar_s)
        venue.set_status("CLOSED", None)


async def _until(venue: Venue, at: float) -> None:
    while (left := at - venue.clock.now()) > 0:
        await asyncio.sleep(min(left / venue.clock.speed if venue.clock.speed else LONGEST_NAP_S, LONGEST_NAP_S))


def _prints(bars: Mapping[str, Sequence[Candle]], pace: Pace) -> Iterator[Print]:
    for symbol, candles in bars.items():
        for start, opened, high, low, close, volume in candles:
            if day_of(start) < pace.first:
                continue
            path = (opened, low, high, close) if close >= opened else (opened, high, low, close)
            for part, price in zip(WITHIN_BAR, path, strict=True):
                yield Print(start + part * pace.bar_s, symbol, price, int(volume) // len(path))
