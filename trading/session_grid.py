"""The bars of one live session: when each begins, and which of them squares off.

Signals come from an index, so the bars are those of its hours, aligned at its open. What is traded must be closed some
time before the broker does it itself: the bar that ends at or after that time is the session's last one for trading;
later bars are for the features. Times are UTC nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime

from core.live_settings import Live
from trading.calendar import Segment, closing_from, hours
from trading.instruments import instrument
from trading.market import SECOND_NS

INDEX_HOURS: Segment = "cash"


@dataclass(frozen=True)
class Grid:
    """Bars start at `opens_ns`, every `interval_ns`, before `closes_ns`; the one at `last_ns` squares off."""

    day: date
    opens_ns: int
    closes_ns: int
    interval_ns: int
    last_ns: int

    @classmethod
    def of(cls, name: str, day: date, rules: Live) -> Grid:
        """Of an instrument's signal on a day. Raises DataError (`no_session`) on a day without one."""
        signal, square_off = hours(day, INDEX_HOURS), closing_from(day, instrument(name).segment)
        opens_ns, closes_ns = _ns(signal.open), _ns(signal.close)
        interval_ns = 60 * SECOND_NS * rules.interval_min
        flat_ns = min(_ns(square_off) - int(rules.flatten_before_square_off_s * SECOND_NS), closes_ns)
        last = max(0, -(-(flat_ns - opens_ns) // interval_ns) - 1)  # its end is the first one not before flat_ns
        return cls(day, opens_ns, closes_ns, interval_ns, opens_ns + last * interval_ns)

    @property
    def session(self) -> int:
        """The session's number in every bar: the day's, so that it grows over restarts and days."""
        return self.day.toordinal()

    def start_of(self, at_ns: int) -> int | None:
        """The start of the bar in which a time lies; None outside the session."""
        if not self.opens_ns <= at_ns < self.closes_ns:
            return None
        return at_ns - (at_ns - self.opens_ns) % self.interval_ns

    def end_of(self, start_ns: int) -> int:
        return min(start_ns + self.interval_ns, self.closes_ns)

    def closed_by(self, at_ns: int) -> range:
        """The starts of all bars that are over at a time."""
        whole = max(0, min(at_ns, self.closes_ns) - self.opens_ns)
        bars = whole // self.interval_ns if at_ns < self.closes_ns else -(-whole // self.interval_ns)
        return range(self.opens_ns, self.opens_ns + bars * self.interval_ns, self.interval_ns)


def _ns(when: datetime) -> int:
    return int(when.timestamp()) * SECOND_NS
