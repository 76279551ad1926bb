"""What a live process is connected to. Real or simulated, on this machine's time or an emulator's: it cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from trading.broker import Broker, OrderReport, Trade
from trading.clock import Clock
from trading.service import DecisionClient
from trading.stream import Bar
from trading.ticks import Feed, Tick


class OrderStream(Protocol):
    """Tells orders and trades from a thread of its own, as they happen."""

    def start(self, tell: Callable[[OrderReport | Trade], None], missed: Callable[[], None]) -> None:
        """`missed`: something may have happened that was not told; a snapshot says it."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Ports:
    service: DecisionClient
    broker: Broker
    stream: OrderStream
    feed: Feed
    history: Callable[[str, int], list[Bar]]  # of a symbol: closed by that time, oldest first; BrokerError, DataError
    market_status: Callable[[], Mapping[str, str]]  # by segment, such as OPEN; BrokerError without an answer
    server_time: Callable[[], tuple[int, int] | None]  # what the broker's server said, and when it was heard
    clock: Clock
    watch: Callable[[Tick], None] = lambda _: None  # is shown every good tick

    def close(self) -> None:
        """No tick and no report comes afterwards."""
        self.feed.close()
        self.stream.close()
        self.service.close()
        self.clock.close()
