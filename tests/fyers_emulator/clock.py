"""The exchange's clock: real, standing still, or faster than real; and what it tells others may be skewed."""

from __future__ import annotations

import time
from datetime import date, datetime

from trading.calendar import KOLKATA


class Clock:
    """Seconds since the epoch. `speed` 0 stands still (ticks move it on), 1 is real time, 60 a minute a second."""

    def __init__(self) -> None:
        self.skew_s = 0.0
        self.set(time.time(), 1.0)

    def set(self, now: float, speed: float) -> None:
        self._anchor = (time.monotonic(), now)
        self.speed = speed

    def now(self) -> float:
        since, now = self._anchor
        return now + self.speed * (time.monotonic() - since)

    def told(self, at: float | None = None) -> float:
        """`at` (by default now) as the exchange tells it."""
        return (self.now() if at is None else at) + self.skew_s

    def advance_to(self, at: float) -> None:
        """Of a clock that stands still; it never goes back."""
        if self.speed == 0 and at > self.now():
            self.set(at, 0.0)

    def day(self) -> date:
        return day_of(self.now())


def datetime_in_india(at: float) -> datetime:
    return datetime.fromtimestamp(at, KOLKATA)


def day_of(at: float) -> date:
    """The day in India."""
    return datetime_in_india(at).date()


def written(at: float) -> str:
    """As order and trade books write a time: 22-Nov-2026 09:15:00."""
    return datetime_in_india(at).strftime("%d-%b-%Y %H:%M:%S")
