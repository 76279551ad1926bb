"""How fast Fyers is asked: 10 calls a second and 200 a minute, over all processes of one state directory.

The broker counts by account, and shuts out for the day whoever breaks the minute's limit three times: a download must
not take the desk's calls away. The instants of the last minute's calls lie in one file, locked for the microseconds
of a look, in seconds of the machine's monotonic clock, which its processes share. First of all stands the instant
until which the broker has shut the account out.
"""

from __future__ import annotations

import fcntl
import time
from array import array
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

WINDOW_S = 60.0
LONGEST_BLOCK_S = 86_400.0  # for the rest of the day


@dataclass(frozen=True)
class Share:
    """A call goes out while fewer than this many of all calls did in the last second and minute."""

    per_second: int
    per_minute: int


# Orders and cancels are counted and never held up: the gateway bounds them, and between the look at the kill switch
# and the call nothing may wait.
AT_ONCE = Share(10**6, 10**6)
DESK = Share(4, 150)  # the rest is for orders
DOWNLOADS = Share(3, 100)


class Pace:
    def __init__(self, file: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = file
        self._sleep = sleep

    def wait(self, share: Share = DESK) -> float:
        """Wait for a turn, and count one call: 0.0. Or, at once, the seconds for which nothing may be sent."""
        with self._file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            now = time.monotonic()
            blocked_until, calls = _read(file, now)
            if blocked_until > now:
                return blocked_until - now
            due = _due(calls, share, now)
            insort(calls, due)
            _write(file, blocked_until, calls)
        self._sleep(due - now)
        return 0.0

    def block(self, seconds: float) -> None:
        """The broker has shut the account out for so long."""
        with self._file.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            now = time.monotonic()
            until, calls = _read(file, now)
            _write(file, max(until, now + min(seconds, LONGEST_BLOCK_S)), calls)


def _due(calls: list[float], share: Share, now: float) -> float:
    due = now
    if len(calls) >= share.per_second:
        due = max(due, calls[-share.per_second] + 1.0)
    if len(calls) >= share.per_minute:
        due = max(due, calls[-share.per_minute] + WINDOW_S)
    return due


def _read(file: BinaryIO, now: float) -> tuple[float, list[float]]:
    """What an older boot or a torn write left there is passed over."""
    file.seek(0)
    content = file.read()
    numbers = array("d", content[: len(content) // 8 * 8])
    until = numbers[0] if numbers and now < numbers[0] <= now + LONGEST_BLOCK_S else 0.0
    return until, sorted(at for at in numbers[1:] if now - WINDOW_S < at <= now + WINDOW_S)


def _write(file: BinaryIO, blocked_until: float, calls: list[float]) -> None:
    file.truncate(0)  # opened for appending: what is written goes to the end
    file.write(array("d", [blocked_until, *calls]).tobytes())
