"""Prices of a live session: from the feed, or asked for, into bars; and what the vigil wants done about them.

All of this runs in the thread of the live process (trading/live.py), but for the calls that it sends out. Every tick
is judged by the bar builder; only good ones count as prices, and as a sign that the feed lives.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import structlog

from core.errors import BrokerError, DataError
from core.live_settings import Live as Rules
from trading.effects import Severity
from trading.events import Quotes
from trading.instruments import instrument
from trading.live_bars import LiveBars
from trading.live_ports import Ports
from trading.session_grid import INDEX_HOURS
from trading.threads import Threads
from trading.ticks import Tick
from trading.vigil import AskQuotes, AskStatus, Deed, RestartFeed, Vigil, Warn

log = structlog.get_logger(__name__)


class LivePrices:
    """Of all symbols of a session and of what is traded for each. `begin` once, `look` now and then."""

    def __init__(
        self,
        bars: LiveBars,
        traded: Mapping[str, str],
        ports: Ports,
        rules: Rules,
        *,
        threads: Threads,
        alert: Callable[[Severity, str], None],
    ) -> None:
        """`traded`: what is traded for each symbol of the bars."""
        self._bars, self._traded, self._builder = bars, traded, bars.builder
        self.ports, self.threads, self.alert = ports, threads, alert
        self._feed_symbols = list(dict.fromkeys([*traded, *traded.values()]))
        self._vigil = Vigil(rules, self._feed_symbols, bars.grids, time.monotonic())
        self._counts: Counter[str] = Counter()
        self._quoting = False  # a call that hangs has no second one behind it

    @property
    def counts(self) -> Counter[str]:
        return self._counts + self._builder.counts + self._bars.counts

    def begin(self) -> None:
        self._bars.begin()
        self.threads.do("aside", partial(self.ports.feed.start, self._hear, self._feed_symbols))

    def look(self, now_ns: int, at_s: float) -> None:
        """Bars that are over, and whatever else is due."""
        self._bars.look(now_ns)
        for deed in self._vigil.due(now_ns, at_s):
            self._do(deed)

    def gate(self) -> str | None:
        """Why nothing may be opened now; None if it may."""
        return self._vigil.gate(self.ports.clock(), time.monotonic())

    def newest(self) -> Quotes:
        """Of what is traded, by the desk's names."""
        found = {symbol: self._builder.last.get(name) for symbol, name in self._traded.items()}
        return {symbol: (tick.price, tick.at_ns) for symbol, tick in found.items() if tick is not None}

    def _hear(self, tick: Tick) -> None:
        """From the feed's thread."""
        self.threads.put(partial(self._tick, tick))

    def _tick(self, tick: Tick, *, asked: bool = False) -> None:
        self.ports.clock.told(tick.at_ns)
        tick = replace(tick, seen_ns=self.ports.clock())
        if self._bars.push(tick):
            self._vigil.seen(tick, time.monotonic(), asked=asked)
            self.ports.watch(tick)

    def _do(self, deed: Deed) -> None:
        match deed:
            case AskQuotes(symbols) if not self._quoting:
                self._quoting = True
                self.threads.do("aside", partial(self._quotes, symbols), self._quoted)
            case RestartFeed():
                self._counts["feed_restarted"] += 1
                self.threads.do("aside", self.ports.feed.restart)
            case AskStatus():
                self.threads.do("aside", self._status, self._status_came)
            case Warn(severity, text):
                self.alert(severity, text)

    def _quotes(self, symbols: tuple[str, ...]) -> list[Tick]:
        """In a thread."""
        try:
            return self.ports.feed.quotes(symbols)
        except (BrokerError, DataError) as error:
            log.warning("no_quotes", error=str(error))
            return []

    def _quoted(self, ticks: list[Tick]) -> None:
        self._quoting = False
        for tick in ticks:
            self._tick(tick, asked=True)

    def _status(self) -> bool | None:
        """In a thread: whether every segment that is needed is open."""
        needed = {INDEX_HOURS, *(instrument(symbol).segment for symbol in self._traded)}
        try:
            told = self.ports.market_status()
        except (BrokerError, DataError) as error:
            log.warning("market_status_unknown", error=str(error))
            return None
        return all(told.get(segment) == "OPEN" for segment in needed)

    def _status_came(self, is_open: bool | None) -> None:
        self._vigil.told_status(is_open, time.monotonic(), self.ports.server_time())
