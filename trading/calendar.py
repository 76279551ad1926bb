"""Sessions and hours of the National Stock Exchange of India.

The days are exchange_calendars' XBOM (it shares its holidays with NSE) with the corrections of
`config/instruments.yaml`: special sessions on weekends, days that XBOM has wrong, the later close of derivatives.
Outside the calendar's bounds every question is a DataError (`outside_calendar`).
"""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, model_validator

from core.errors import DataError
from core.files import write_atomically
from trading.tables import Fact, Row, Table, section

ZONE = "Asia/Kolkata"
KOLKATA = ZoneInfo(ZONE)
Segment = Literal["cash", "index_futures"]
KEPT = Path(__file__).parent / "__pycache__" / "xbom_sessions.txt"


class HoursRow(Row):
    open: time
    close: time
    square_off: time

    @model_validator(mode="after")
    def _in_order(self) -> HoursRow:
        if not self.open < self.square_off <= self.close:
            raise ValueError(f"open {self.open}, square_off {self.square_off}, close {self.close}: not in order")
        return self


class SpecialSession(Fact):
    day: date
    open: time
    close: time

    @model_validator(mode="after")
    def _in_order(self) -> SpecialSession:
        if self.open >= self.close:
            raise ValueError(f"{self.day} opens at {self.open} and closes at {self.close}")
        return self


class ClosedDay(Fact):
    day: date


class Corrections(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    segments: dict[Segment, Table[HoursRow]]
    special: tuple[SpecialSession, ...]
    closed: tuple[ClosedDay, ...]

    @model_validator(mode="after")
    def _each_day_once(self) -> Corrections:
        days = [row.day for row in self.special] + [row.day for row in self.closed]
        if len(set(days)) < len(days):
            raise ValueError("special and closed: a day occurs twice")
        return self


@dataclass(frozen=True)
class Hours:
    """Of one session, in Kolkata time. `square_off` is None where the broker's time is not known."""

    open: datetime
    close: datetime  # the last bar starts before it
    square_off: datetime | None


def is_session(day: date) -> bool:
    """Whether the exchange holds a session that day. An evening of muhurat trading alone is none."""
    _require(day)
    days = _sessions()
    at = bisect_left(days, day)
    return at < len(days) and days[at] == day


def sessions(start: date, end: date) -> tuple[date, ...]:
    """The session days from `start` to `end`, both inclusive; none if `end` is before `start`."""
    _require(start)
    _require(end)
    days = _sessions()
    return days[bisect_left(days, start) : bisect_right(days, end)]


def next_session(day: date) -> date:
    """The first session day after `day`."""
    _require(day)
    days = _sessions()
    at = bisect_right(days, day)
    if at == len(days):
        raise _outside(day, "the session after")
    return days[at]


def previous_session(day: date) -> date:
    """The last session day before `day`."""
    _require(day)
    days = _sessions()
    at = bisect_left(days, day)
    if at == 0:
        raise _outside(day, "the session before")
    return days[at - 1]


def hours(day: date, segment: Segment) -> Hours:
    """Open, close and square-off of a session. Raises DataError (`no_session`) on any other day."""
    if not is_session(day):
        raise DataError(f"{day} is no session of the exchange; ask for a session day", code="no_session")
    usual = corrections().segments[segment].on(day)
    opens, closes = trading_hours(day, segment)
    square_off = None if day in _special() else datetime.combine(day, usual.square_off, KOLKATA)
    return Hours(datetime.combine(day, opens, KOLKATA), datetime.combine(day, closes, KOLKATA), square_off)


def closing_from(day: date, segment: Segment) -> datetime:
    """When the broker begins to close intraday positions; if that is not known, as long before the close as usually."""
    session, usual = hours(day, segment), corrections().segments[segment].on(day)
    before = datetime.combine(day, usual.close) - datetime.combine(day, usual.square_off)
    return session.square_off or session.close - before


def trading_hours(day: date, segment: Segment) -> tuple[time, time]:
    """(open, close) in Kolkata time that a session on `day` has, whether or not there is one."""
    row = _special().get(day) or corrections().segments[segment].on(day)
    return row.open, row.close


def bounds() -> tuple[date, date]:
    """The first and the last day the calendar knows."""
    return known_from(), _sessions()[-1]


def known_from() -> date:
    """The first day on which the hours of every segment are known."""
    return max(table.root[0].first_day for table in corrections().segments.values())


@cache
def corrections() -> Corrections:
    return section("calendar", Corrections)


@cache
def _special() -> dict[date, SpecialSession]:
    return {session.day: session for session in corrections().special}


def _regular() -> list[date]:
    """XBOM's sessions. Calculated once a day and kept beside this module, as compiled code is: a process that was
    killed in the middle of a session should not take most of a second for them."""
    release = f"{metadata.version('exchange_calendars')} from {known_from()}, on {date.today()}"
    try:
        said, *days = KEPT.read_text(encoding="ascii").split("\n")
        if said == release:
            return [date.fromisoformat(day) for day in days]
    except (OSError, ValueError):  # not there yet, or not as it was written
        pass
    found = _calculated()
    with suppress(OSError):  # a place that is not ours to write to
        write_atomically(KEPT, "\n".join([release, *(day.isoformat() for day in found)]).encode())
    return found


def _calculated() -> list[date]:
    import exchange_calendars  # half a second, with pandas: only for those who ask for days

    with warnings.catch_warnings():  # it uses what pandas 4 will change; both are pinned
        warnings.simplefilter("ignore", DeprecationWarning)
        regular = exchange_calendars.get_calendar("XBOM", start=known_from().isoformat()).sessions
    return [day.date() for day in regular]


@cache
def _sessions() -> tuple[date, ...]:
    """Every session day, ascending."""
    days = set(_regular()) | set(_special())
    return tuple(sorted(days - {row.day for row in corrections().closed}))


def _require(day: date) -> None:
    first, last = bounds()
    if not first <= day <= last:
        raise _outside(day, "it")


def _outside(day: date, what: str) -> DataError:
    first, last = bounds()
    return DataError(
        f"{day}: {what} lies outside the exchange calendar ({first} to {last}); "
        f"a newer release of exchange_calendars knows later years",
        code="outside_calendar",
    )
