"""What can be traded: lots, freeze quantities, ticks, expiries, charges and tradable symbols, by date.

An index cannot be traded itself: `traded_symbol` names the month's future as the broker does. The contract is
rolled `ROLL_SESSIONS` before its expiry, when the next month's is already the liquid one.
"""

from __future__ import annotations

import calendar
import math
import re
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from core.errors import DataError
from trading.calendar import Segment, is_session, previous_session
from trading.tables import Ratio, Row, Table, section

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
ROLL_SESSIONS = 1


@dataclass(frozen=True)
class ChargeRates:
    """Of one day: ratios of the order's value, and rupees an order."""

    brokerage_ratio: float
    brokerage_cap_rupees: float
    stt_ratio: float
    exchange_ratio: float
    sebi_ratio: float
    stamp_ratio: float
    gst_ratio: float


class Charges(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    brokerage_ratio: Table[Ratio]
    brokerage_cap_rupees: Table[Ratio]
    stt_ratio: Table[Ratio]
    exchange_ratio: Table[Ratio]
    sebi_ratio: Table[Ratio]
    stamp_ratio: Table[Ratio]
    gst_ratio: Table[Ratio]

    def on(self, day: date) -> ChargeRates:
        return ChargeRates(**{name: table.on(day).value for name, table in self})


class LotRow(Row):
    units: int = Field(ge=1)


class FreezeRow(Row):
    units: int | None = Field(ge=1, description="None: not known")


class Band(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    above: float = Field(ge=0.0)
    rupees: float = Field(gt=0.0)


class TickRow(Row):
    bands: tuple[Band, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _bands_ascend_from_0(self) -> TickRow:
        starts = [band.above for band in self.bands]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"bands must ascend from 0, found {starts}")
        return self


class ExpiryRow(Row):
    weekday: int = Field(ge=0, le=4, description="0 is Monday")


class Instrument(BaseModel):
    """One row of `instruments`. Days before a table's first row are DataErrors (`not_known`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    index: str | None = None  # the broker's symbol of the index whose bars give the signal
    symbol: str | None = None  # the broker's symbol, of what has no contracts
    segment: Segment
    lots: Table[LotRow]
    freeze: Table[FreezeRow]
    ticks: Table[TickRow]
    expiry_days: Table[ExpiryRow] = Field(alias="expiry")

    @model_validator(mode="after")
    def _contracts_or_a_symbol(self) -> Instrument:
        if bool(self.symbol) == bool(self.expiry_days.root):
            raise ValueError("give either symbol or expiry days")
        return self

    def lot_units(self, day: date) -> int:
        return self.lots.on(day).units

    def has_lots(self, day: date) -> bool:
        """Whether it is known what a lot was on `day`."""
        return bool(self.lots.root) and self.lots.root[0].first_day <= day

    def whole_lots(self, units: float, day: date) -> int:
        """`units`, at least 0, rounded down to whole lots; in units."""
        if not (math.isfinite(units) and units >= 0.0):
            raise DataError(f"{self.name}: {units} units cannot be rounded to lots; give a number from 0 on")
        lot = self.lot_units(day)
        return int(units // lot) * lot

    def freeze_units(self, day: date) -> float:
        """The largest order the exchange takes; inf where that is not known."""
        units = self.freeze.on(day).units
        return math.inf if units is None else float(units)

    def tick_rupees(self, price: float, day: date) -> float:
        """The smallest step of a price near `price`."""
        return next(band.rupees for band in reversed(self.ticks.on(day).bands) if price > band.above)

    def charge_rates(self, day: date) -> ChargeRates:
        return _charges().root[self.segment].on(day)

    def expiry(self, day: date) -> date:
        """The last day of the contract of `day`'s month: the rule's weekday, or the session before a holiday."""
        last = day.replace(day=calendar.monthrange(day.year, day.month)[1])
        weekday = self.expiry_days.on(day.replace(day=1)).weekday
        expires = last - timedelta(days=(last.weekday() - weekday) % 7)
        return expires if is_session(expires) else previous_session(expires)

    def contract_month(self, day: date) -> date:
        """The first day of the month whose contract is traded on `day`."""
        roll = self.expiry(day)
        for _ in range(ROLL_SESSIONS):
            roll = previous_session(roll)
        month = day.replace(day=1)
        return month if day < roll else (month + timedelta(days=31)).replace(day=1)

    def traded_symbol(self, day: date) -> str:
        """What an order on `day` names, such as NSE:NIFTY26NOVFUT or NSE:NIFTYBEES-EQ."""
        if self.symbol is not None:
            return self.symbol
        month = self.contract_month(day)
        return f"NSE:{self.name}{month.year % 100:02d}{MONTHS[month.month - 1]}FUT"


def instrument(name: str) -> Instrument:
    """By its name or by the broker's symbol of its index: NIFTY, NSE:NIFTY50-INDEX, NSE:NIFTYBEES-EQ.

    Raises DataError (`unknown_symbol`) naming the known ones.
    """
    known = _instruments()
    for entry in known.values():
        if name in (entry.name, entry.index, entry.symbol):
            return entry
    names = ", ".join(f"{entry.name} ({entry.index or entry.symbol})" for entry in known.values())
    raise DataError(f"'{name}' is no known instrument; choose one of: {names}", code="unknown_symbol")


def expires_on(day: date) -> bool:
    """Whether a contract of any known instrument expires at the close of `day`."""
    return any(entry.expiry_days.root and entry.expiry(day) == day for entry in _instruments().values())


def named_after(name: str) -> Instrument | None:
    """The instrument that bars of this name are of: NIFTY50_5MIN, BANKNIFTY_15. None if the name is of no known one."""
    words = [word for word in re.split(r"[^A-Z]+", name.upper().removeprefix("NSE")) if word]
    try:
        return instrument(words[0]) if words else None
    except DataError:
        return None


def lot_of(name: str, day: date) -> int:
    """Units of a lot of what bars of this name are of; 1 where that is not known: single units are traded."""
    own = named_after(name)
    return own.lot_units(day) if own is not None and own.has_lots(day) else 1


def in_lots(quantity: ArrayLike, lot_units: ArrayLike) -> NDArray[np.float64]:
    """Rounded down to whole lots, one at least; what is no quantity stays none, for the accounting to refuse."""
    wanted, lot = np.asarray(quantity, np.float64), np.asarray(lot_units, np.float64)
    return np.where(wanted >= 1.0, np.maximum(lot, np.floor(wanted / lot) * lot), wanted)


def charged_lot(name: str, day: date) -> int:
    """Units whose charges stand for those of bars of this name: its own lot, or NIFTY's where that is not known."""
    own = named_after(name)
    return (own if own is not None and own.has_lots(day) else instrument("NIFTY")).lot_units(day)


class _ChargesBySegment(RootModel[dict[Segment, Charges]]):
    pass


class _Instruments(RootModel[dict[str, Instrument]]):
    @model_validator(mode="before")
    @classmethod
    def _names(cls, rows: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
        return {name: {**row, "name": name} for name, row in rows.items()}


@cache
def _charges() -> _ChargesBySegment:
    return section("charges", _ChargesBySegment)


@cache
def _instruments() -> dict[str, Instrument]:
    return section("instruments", _Instruments).root
