"""What a live process watches: that prices come, that clocks agree, that the market is open. Pure, time is given.

`due` says what is to be done, `gate` why nothing may be opened now; exits never ask. Outside the session nothing is
late. Prices that do not come by themselves are asked for, and the feed is connected anew: soon where nothing comes at
all, later where only some are silent, which may have no trades. Openings wait while not even asking helps.
Market times are UTC nanoseconds (`now_ns`); waits are in seconds of a clock that nobody sets (`at_s`).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from core.live_settings import Live
from trading.market import SECOND_NS
from trading.session_grid import Grid
from trading.ticks import Tick

STATUS_S = 15.0  # between two questions for the market's status
STATUS_UNKNOWN_S = 60.0  # without an answer nothing is opened
QUOTES_S = 2.0  # between two questions for prices that do not come by themselves
UNKNOWN_TIMES = 3  # `stale_ticks_s`: without a price, asked for or not, nothing is opened
SILENT_S = 60.0  # while others have prices: its subscription may be lost
RESTART_S = 30.0  # between two new connections, twice as long each time
RESTART_MAX_S = 300.0
SKEWS = 31  # ticks whose median is the skew
REMEDIES = {  # of what the gate says; docs/runbook.md has more
    "market_closed": "it is outside the session",
    "market_not_open": "the broker says that the market is not open, though the calendar does",
    "status_unknown": "the broker does not say whether the market is open; look at the network and its status page",
    "clock_skew": "this machine's clock and the exchange's differ; put it right, and start this process again",
    "feed_stale": "prices do not come, not even asked for; look at the network and the broker's status page",
}


@dataclass(frozen=True)
class AskQuotes:
    symbols: tuple[str, ...]


@dataclass(frozen=True)
class RestartFeed:
    """Connect anew and subscribe again."""


@dataclass(frozen=True)
class AskStatus:
    """Whether the market is open; comes back by `told_status`."""


@dataclass(frozen=True)
class Warn:
    severity: Literal["info", "warning", "critical"]
    text: str


Deed = AskQuotes | RestartFeed | AskStatus | Warn


class Vigil:
    """Of one session and all symbols of its feed, from `at_s` on."""

    def __init__(self, rules: Live, symbols: Sequence[str], grids: Mapping[str, Grid], at_s: float) -> None:
        self.rules = rules
        self.opens_ns = min(grid.opens_ns for grid in grids.values())
        self.closes_ns = max(grid.closes_ns for grid in grids.values())
        # When the newest good tick of each symbol came, by itself or asked for; before the first they are asked for.
        self._came = dict.fromkeys(symbols, at_s - 2 * rules.stale_ticks_s)
        self._known = dict(self._came)
        self._began_s = at_s
        self._skews: deque[int] = deque(maxlen=SKEWS)
        self._server_skew_ns = 0
        self._open: bool | None = None
        self._status_s = self._asked_s = self._quoted_s = -math.inf
        self._restart_s, self._restarted_s = RESTART_S, at_s
        self._told: str | None = "nothing yet"

    def seen(self, tick: Tick, at_s: float, *, asked: bool = False) -> None:
        """A good tick; `asked`: an answer to AskQuotes, which says nothing about the feed or the clocks."""
        self._known[tick.symbol] = at_s
        if not asked:
            self._came[tick.symbol] = at_s
            self._skews.append(tick.seen_ns - tick.at_ns)

    def told_status(self, is_open: bool | None, at_s: float, server: tuple[int, int] | None) -> None:
        """The answer to AskStatus, None without one; `server`: its time, to the second, and ours when it was heard."""
        if is_open is not None:
            self._open, self._status_s = is_open, at_s
        if server is not None:
            ahead_ns = server[0] - server[1]  # what it says is up to a second old
            self._server_skew_ns = max(ahead_ns, -ahead_ns - SECOND_NS, 0)

    def gate(self, now_ns: int, at_s: float) -> str | None:
        """Why nothing may be opened now; None if it may."""
        if not self._in_session(now_ns):
            return "market_closed"
        if at_s - self._status_s > STATUS_UNKNOWN_S:
            return "status_unknown"
        if not self._open:
            return "market_not_open"  # though the calendar says so
        if self._skewed():
            return "clock_skew"
        unknown_s = UNKNOWN_TIMES * self.rules.stale_ticks_s
        return "feed_stale" if any(at_s - known_s > unknown_s for known_s in self._known.values()) else None

    def due(self, now_ns: int, at_s: float) -> list[Deed]:
        """What is to be done now."""
        deeds: list[Deed] = []
        if at_s - self._asked_s >= STATUS_S:
            self._asked_s = at_s
            deeds.append(AskStatus())
        if self._in_session(now_ns):
            deeds += self._about_prices(at_s)
            deeds += self._about_the_gate(now_ns, at_s)
        else:
            self._came = dict.fromkeys(self._came, at_s)
            self._known = dict(self._came)
        return deeds

    def _about_prices(self, at_s: float) -> list[Deed]:
        stale = tuple(each for each, came_s in self._came.items() if at_s - came_s > self.rules.stale_ticks_s)
        if not stale:
            self._restart_s = RESTART_S
            return []
        deeds: list[Deed] = []
        if at_s - self._quoted_s >= QUOTES_S:
            self._quoted_s = at_s
            deeds.append(AskQuotes(stale))
        if at_s - self._restarted_s >= self._restart_s and self._is_lost(stale, at_s):
            self._restarted_s, self._restart_s = at_s, min(2 * self._restart_s, RESTART_MAX_S)
            deeds += [RestartFeed(), Warn("warning", f"no prices of {', '.join(stale)} by themselves; connecting anew")]
        return deeds

    def _is_lost(self, stale: Sequence[str], at_s: float) -> bool:
        return len(stale) == len(self._came) or any(at_s - self._came[each] > SILENT_S for each in stale)

    def _about_the_gate(self, now_ns: int, at_s: float) -> list[Deed]:
        why = self.gate(now_ns, at_s)
        beginning = at_s - self._began_s <= STATUS_UNKNOWN_S and self._status_s == -math.inf
        if why == self._told or (why == "status_unknown" and beginning):
            return []
        self._told = why
        if why is None:
            return [Warn("info", "openings are allowed")]
        return [Warn("warning", f"no openings: {why}; {REMEDIES[why]}")]

    def _in_session(self, now_ns: int) -> bool:
        return self.opens_ns <= now_ns < self.closes_ns

    def _skewed(self) -> bool:
        limit_ns = self.rules.max_clock_skew_s * SECOND_NS
        ahead_ns = -statistics.median(self._skews) if self._skews else 0.0  # of the exchange; a delay is no skew
        return ahead_ns > limit_ns or self._server_skew_ns > limit_ns
