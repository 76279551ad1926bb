"""From one stream of messages to every connection: written down once, numbered, and never waited for.

    publish --> ring (the newest, for who comes back) --> a queue of each client --> its own sender

A client that does not take what it is sent fills its own queue, and is dropped: nobody else waits for it. `epoch` names
the stream: numbers begin anew with every process, so a number without its epoch says nothing.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

RING = 2048  # messages that can be sent again
MOST_WAITING = 256  # of one client, beside what it missed
STUCK_S = 10.0  # with something waiting, of which nothing was taken
MOST_LATEST = 1024  # that a snapshot holds

Clock = Callable[[], float]
Kind = Literal["hrm_metrics", "decision", "fill", "position", "rollout", "alert"]


@dataclass(frozen=True)
class News:
    """What a source found. `state`: of several with the same one, only the newest counts in a snapshot."""

    kind: Kind
    data: Mapping[str, Any]
    timestamp: str  # ISO 8601, with an offset
    symbol: str | None = None  # None: of none, so everybody's
    state: str | None = None


@dataclass(frozen=True)
class Message:
    seq: int
    symbol: str | None
    text: str


def now() -> str:
    """As messages have it."""
    return utc(time.time())


def utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


class Client:
    """What waits for one connection. `symbols` None: all of them."""

    def __init__(
        self,
        symbols: frozenset[str] | None,
        first: Iterable[str],
        missed: Iterable[Message],
        clock: Clock = time.monotonic,
    ) -> None:
        self.symbols = symbols
        self.slow = False
        self._queue = deque([*first, *(message.text for message in missed if self._wants(message))])
        self._most = MOST_WAITING + len(self._queue)
        self._wake = asyncio.Event()
        self._clock, self._moved_s = clock, clock()

    def offer(self, message: Message) -> bool:
        """False, from then on, of one that does not keep up."""
        if not self.slow and self._wants(message):
            now_s = self._clock()
            self._moved_s = self._moved_s if self._queue else now_s
            self.slow = len(self._queue) >= self._most or now_s - self._moved_s > STUCK_S
            self._queue.append(message.text)
            self._wake.set()
        return not self.slow

    async def next(self) -> str | None:
        """The oldest message that waits; None once the client is too slow."""
        while not self._queue and not self.slow:
            self._wake.clear()
            await self._wake.wait()
        self._moved_s = self._clock()
        return None if self.slow else self._queue.popleft()

    def _wants(self, message: Message) -> bool:
        return self.symbols is None or message.symbol is None or message.symbol in self.symbols


class Hub:
    """For one event loop."""

    def __init__(self) -> None:
        self.epoch = secrets.token_hex(8)
        self.seq = 0
        self.dropped_slow = 0
        self.clients: set[Client] = set()
        self._ring: deque[Message] = deque(maxlen=RING)
        self._latest: dict[str, Message] = {}

    def publish(self, news: News) -> None:
        self.seq += 1
        document = {"type": news.kind, "data": news.data, "timestamp": news.timestamp, "symbol": news.symbol}
        text = json.dumps(document | {"seq": self.seq, "epoch": self.epoch}, allow_nan=False, separators=(",", ":"))
        message = Message(self.seq, news.symbol, text)
        self._ring.append(message)
        if news.state is not None:
            self._remember(news.state, message)
        for slow in [client for client in self.clients if not client.offer(message)]:
            self.clients.discard(slow)
            self.dropped_slow += 1

    def join(self, symbols: frozenset[str] | None, first: Iterable[str], missed: Iterable[Message] = ()) -> Client:
        """A client that gets `first`, what it wants of `missed`, and then of whatever comes."""
        client = Client(symbols, first, missed)
        self.clients.add(client)
        return client

    def leave(self, client: Client) -> None:
        self.clients.discard(client)

    def since(self, epoch: str, seq: int) -> list[Message] | None:
        """What came after that; None where it cannot be said: another stream, too long ago, or not yet."""
        oldest = self._ring[0].seq if self._ring else self.seq + 1
        if epoch != self.epoch or not oldest - 1 <= seq <= self.seq:
            return None
        return [message for message in self._ring if message.seq > seq]

    def snapshot(self, symbols: frozenset[str] | None) -> str:
        """How things stand, as a message of its own: the newest of every state, in their order."""
        standing = sorted(self._latest.values(), key=lambda message: message.seq)
        shown = [each.text for each in standing if symbols is None or each.symbol is None or each.symbol in symbols]
        begin = json.dumps({"type": "snapshot", "seq": self.seq, "epoch": self.epoch})[:-1]
        return f'{begin}, "data": {{"messages": [{",".join(shown)}]}}}}'

    def _remember(self, state: str, message: Message) -> None:
        self._latest.pop(state, None)
        self._latest[state] = message
        if len(self._latest) > MOST_LATEST:
            del self._latest[next(iter(self._latest))]
