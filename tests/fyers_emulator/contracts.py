"""What the emulated exchange lists: indices, futures and shares, with their lots, ticks and the broker's tokens.

`listed(day)` is what config/instruments.yaml has on that day; a test lists more by `POST /emulator/instruments`.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from pydantic import RootModel

from core.errors import DataError
from trading.instruments import MONTHS, Instrument, instrument
from trading.tables import section

Bands = tuple[tuple[float, float], ...]  # (above this price, rupees of a tick)

FUTURES_MARGIN_RATIO = 0.15
SHARES_MARGIN_RATIO = 0.2
USUAL_TICK: Bands = ((0.0, 0.05),)
# Names of indices on the data socket that are not the symbol's own letters ("Nifty 50" is NIFTY50).
IRREGULAR_TOPICS = {"NSE:FINNIFTY-INDEX": "NIFTYFINSERVICE", "NSE:MIDCPNIFTY-INDEX": "NIFTYMIDSELECT"}


@dataclass(frozen=True)
class Contract:
    symbol: str
    lot: int = 1
    bands: Bands = USUAL_TICK
    freeze: int | None = None
    tradable: bool = True
    margin_ratio: float = SHARES_MARGIN_RATIO
    follows: str | None = None  # its price is this index's, plus `basis` rupees
    basis: float = 0.0

    @property
    def is_index(self) -> bool:
        return self.symbol.endswith("-INDEX")

    @property
    def segment(self) -> int:
        """10 shares and indices, 11 futures and options."""
        return 11 if re.search(r"(FUT|\d(CE|PE))$", self.symbol) else 10

    @property
    def token(self) -> str:
        """The exchange's number of it: made up, but always the same."""
        return str(zlib.crc32(self.symbol.encode()))

    @property
    def fy_token(self) -> str:
        """Exchange (10), segment, an expiry that nobody reads, the exchange's number."""
        return f"10{self.segment}000000{self.token}"

    def tick_at(self, price: float) -> float:
        return next(rupees for above, rupees in reversed(self.bands) if price > above or above == 0)

    def fits_tick(self, price: float) -> bool:
        steps = price / self.tick_at(price)
        return abs(steps - round(steps)) < 1e-6

    def topic(self, kind: str) -> tuple[str, str, str]:
        """What the data socket calls it: kind if, sf or dp; segment; a name without spaces and case."""
        if kind == "if":
            core = self.symbol.split(":")[1].removesuffix("-INDEX")
            return kind, "nse_cm", plain(IRREGULAR_TOPICS.get(self.symbol, core))
        return kind, "nse_fo" if self.segment == 11 else "nse_cm", self.token


def plain(name: str) -> str:
    return re.sub(r"[\s_]", "", name).upper()


def listed(day: date) -> dict[str, Contract]:
    """By symbol: each instrument's index, its futures of this month and the next two, or its share."""
    found: dict[str, Contract] = {}
    for name in section("instruments", RootModel[dict[str, Any]]).root:
        found |= {contract.symbol: contract for contract in _contracts(instrument(name), day)}
    return found


def _contracts(entry: Instrument, day: date) -> list[Contract]:
    if entry.symbol is not None:
        return [Contract(entry.symbol, entry.lot_units(day), _bands(entry, day), _freeze(entry, day))]
    index = [] if entry.index is None else [Contract(entry.index, tradable=False)]
    if not entry.has_lots(day):
        return index
    return index + [
        Contract(
            f"NSE:{entry.name}{month.year % 100:02d}{MONTHS[month.month - 1]}FUT",
            entry.lot_units(day),
            _bands(entry, day),
            _freeze(entry, day),
            margin_ratio=FUTURES_MARGIN_RATIO,
            follows=entry.index,
        )
        for month in _months(day)
    ]


def _months(day: date) -> list[date]:
    first = day.replace(day=1)
    second = (first + timedelta(days=31)).replace(day=1)
    return [first, second, (second + timedelta(days=31)).replace(day=1)]


def _bands(entry: Instrument, day: date) -> Bands:
    try:
        return tuple((band.above, band.rupees) for band in entry.ticks.on(day).bands)
    except DataError:  # not known for every instrument (config/instruments.yaml): any paisa is taken
        return ((0.0, 0.01),)


def _freeze(entry: Instrument, day: date) -> int | None:
    units = entry.freeze_units(day)
    return None if units == float("inf") else int(units)
