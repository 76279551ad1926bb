"""The closed bars of a live session, in order and none left out without a word: from ticks, else from history.

History is asked for when the process begins and the log lacks bars, and for a bar that had no ticks or began before the
process did. It holds its symbol's bars up until the next one closes: then a bar that is not found is missing for good,
and a symbol whose history did not come starts without one, so that it decides nothing until it does.

`tell` and `alert` are the live process's; all of this runs in its core's thread.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from core.errors import BrokerError, DataError
from trading import events
from trading.bar_builder import BarBuilder, Closed
from trading.events import EventLog
from trading.live_ports import Ports
from trading.market import day_of
from trading.session_grid import Grid
from trading.stream import Bar
from trading.switch import utc
from trading.threads import Threads
from trading.ticks import Tick

HISTORY_AGAIN_S = 3.0  # after it did not have what was wanted
Found = list[Bar] | BrokerError | DataError

log = structlog.get_logger(__name__)


class LiveBars:
    """Of all symbols. `push` ticks, `look` now and then; `tell` is called with each bar that is to be decided."""

    def __init__(
        self,
        grids: Mapping[str, Grid],
        builder: BarBuilder,
        ports: Ports,
        *,
        threads: Threads,
        event_log: EventLog,
        tell: Callable[[str, Bar | list[Bar]], None],
    ) -> None:
        """`tell` takes a symbol and its next bar, or the bars that its features are to start anew with."""
        self.grids, self.builder, self.ports, self.threads = grids, builder, ports, threads
        self.log, self.tell = event_log, tell
        self.counts: Counter[str] = Counter()
        self._waiting: dict[str, deque[Closed]] = {symbol: deque() for symbol in grids}
        self._behind: set[str] = set()  # their history is to come
        self._asking: set[str] = set()
        self._again: dict[str, float] = {}  # when history is asked for again

    def begin(self) -> None:
        for symbol in self.grids:
            self.builder.begin(symbol, self.ports.clock())
            if not self._is_whole(symbol):
                self._behind.add(symbol)
            else:
                self._take_last(symbol, {})
        self._give()

    def push(self, tick: Tick) -> bool:
        """Whether it was a good one."""
        for closed in self.builder.push(tick, tick.seen_ns):
            self._waiting[closed.symbol].append(closed)
        self._give()
        return self.builder.last.get(tick.symbol) is tick

    def look(self, now_ns: int) -> None:
        for closed in self.builder.close_due(now_ns):
            self._waiting[closed.symbol].append(closed)
        self._give()

    def _give(self) -> None:
        """Tell what may be told, and ask history for the rest."""
        for symbol, waiting in self._waiting.items():
            while waiting and not self._holds(symbol, waiting):
                self._tell(symbol, waiting.popleft())
            wanted = symbol in self._behind or bool(waiting and waiting[0].bar is None)
            if wanted and symbol not in self._asking and time.monotonic() >= self._again.get(symbol, 0.0):
                self._asking.add(symbol)
                self.threads.do("history", partial(self._history, symbol), partial(self._came, symbol))

    def _holds(self, symbol: str, waiting: deque[Closed]) -> bool:
        """Whether the first of them waits for history; not once the next one is there, nor if it squares off."""
        first = waiting[0]
        if len(waiting) > 1:
            return False
        return first.bar is None or (symbol in self._behind and not first.bar.last_of_session)

    def _tell(self, symbol: str, closed: Closed) -> None:
        if closed.bar is None:
            self.counts["missing_bar"] += 1
            log.warning("bar_missing", symbol=symbol, start=utc(closed.start_ns))
            return
        if symbol in self._behind and not self._blank(symbol):
            self.tell(symbol, [])  # what is known has holes: no features are better than wrong ones
        self.tell(symbol, closed.bar)

    def _history(self, symbol: str) -> Found:
        try:
            return self.ports.history(symbol, self.ports.clock())
        except (BrokerError, DataError) as error:
            return error

    def _came(self, symbol: str, found: Found) -> None:
        self._asking.discard(symbol)
        self._again[symbol] = time.monotonic() + HISTORY_AGAIN_S
        if not isinstance(found, list):
            self.counts["no_history"] += 1
            log.warning("no_history", symbol=symbol, error=str(found))
        else:
            there = {bar.timestamp_ns: bar for bar in found}
            if symbol in self._behind:
                self._start_anew(symbol, there)
            waiting = self._waiting[symbol]
            for at, closed in enumerate(waiting):
                if closed.bar is None and closed.start_ns in there:
                    waiting[at] = Closed(symbol, closed.start_ns, there[closed.start_ns])
        self._give()

    def _start_anew(self, symbol: str, found: dict[int, Bar]) -> None:
        """Features from all bars there are, and then the last one, which may still be decided."""
        self._behind.discard(symbol)
        known = found | self._logged(symbol)
        self._take_last(symbol, known)
        waiting = self._waiting[symbol]
        upto_ns = waiting[0].start_ns if waiting else self.ports.clock()
        self.tell(symbol, [known[start] for start in sorted(known) if start < upto_ns])

    def _take_last(self, symbol: str, known: Mapping[int, Bar]) -> None:
        """The newest bar that is over, unless it was told: the next one is not closed, so it may still be decided."""
        over, waiting = self.grids[symbol].closed_by(self.ports.clock()), self._waiting[symbol]
        if over and not waiting and over[-1] not in self._logged(symbol):
            waiting.append(Closed(symbol, over[-1], known.get(over[-1])))

    def _is_whole(self, symbol: str) -> bool:
        """Whether the log has this day's history and all bars since, but for the newest."""
        newest, grid = self.log.last_of("history", symbol), self.grids[symbol]
        if newest is None or day_of(newest.at_ns) != grid.day or not newest.body["bars"]:
            return False
        logged = self._logged(symbol)
        return all(start in logged for start in grid.closed_by(self.ports.clock())[:-1])

    def _logged(self, symbol: str) -> dict[int, Bar]:
        return {bar.timestamp_ns: bar for event in self.log.features(symbol) for bar in events.bars_of(event)}

    def _blank(self, symbol: str) -> bool:
        """Whether its features have started without history already."""
        newest = self.log.last_of("history", symbol)
        return newest is not None and not newest.body["bars"]
