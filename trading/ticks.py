"""A price as a feed tells it, and what a feed is.

Prices in rupees, times UTC nanoseconds. Nothing here is trusted: trading/bar_builder.py judges every tick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Tick:
    symbol: str  # as the desk calls it: the name of the instrument, such as NIFTY
    price: float
    at_ns: int  # of the exchange
    seen_ns: int  # of this machine


class Feed(Protocol):
    """Tells ticks from a thread of its own, until it is closed."""

    def start(self, tell: Callable[[Tick], None], symbols: Sequence[str]) -> None: ...

    def quotes(self, symbols: Sequence[str]) -> list[Tick]:
        """The last prices, asked for. Raises BrokerError (`retryable`) without an answer."""

    def restart(self) -> None:
        """Connect anew and subscribe again: what came so far has stopped."""

    def close(self) -> None: ...
