"""The data socket of one client: who it is, what it follows, and what it has been told already.

The first word about a topic is a snapshot, every other one an update of what changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.websockets import WebSocket

from tests.fyers_emulator import hsm
from tests.fyers_emulator.contracts import Contract, plain
from tests.fyers_emulator.faults import Malformation
from tests.fyers_emulator.lines import Line
from tests.fyers_emulator.tape import Quote

if TYPE_CHECKING:
    from tests.fyers_emulator.venue import Venue

HOUR_S = 3600
DISPLAYED = 100  # units at each price of the book


@dataclass
class Topic:
    id: int
    name: str
    contract: Contract
    channel: int
    told: list[int] = field(default_factory=list)  # none: no snapshot yet

    @property
    def kind(self) -> str:
        return self.name.split("|")[0]


class DataLine(Line):
    def __init__(self, websocket: WebSocket, venue: Venue) -> None:
        super().__init__(websocket)
        self._venue = venue
        self._known = False
        self._lite = False
        self._paused: set[int] = set()
        self._frames = 0
        self._next_id = 1000
        self.topics: dict[str, Topic] = {}

    def hear(self, message: str | bytes) -> None:
        """One frame of the client. What cannot be read is passed over, as the broker does."""
        try:
            request = hsm.parse(message if isinstance(message, bytes) else message.encode())
        except hsm.FrameError as error:
            self._venue.note(f"data socket: {error}")
            return
        if request.type == hsm.AUTH:
            self._known = self._venue.logins.knows_hsm(request.key)
            self.tell(hsm.authenticated(self._known))
        elif self._known and request.type in self._answers:
            self._answers[request.type](self, request)

    def follows(self, symbol: str) -> bool:
        return any(topic.contract.symbol == symbol for topic in self.topics.values())

    def tick(self, symbol: str, quote: Quote, malformed: Malformation | None = None) -> None:
        for topic in self.topics.values():
            if topic.contract.symbol == symbol and topic.channel not in self._paused:
                values = _values(topic, quote, self._venue.clock.told(quote.at))
                if malformed:
                    self._tell_malformed(topic, list(values), malformed)
                self._tell(topic, values)

    def _subscribe(self, request: hsm.Request) -> None:
        contracts = _by_topic(self._venue.exchange.contracts)
        found = {name: contract for name in request.topics if (contract := contracts.get(_plain_topic(name)))}
        self.tell(hsm.done(hsm.SUBSCRIBE, bool(found)))
        for name, contract in found.items():
            self._next_id += 1
            topic = self.topics[name] = Topic(self._next_id, name, contract, request.channels[0])
            quote = self._venue.tape.quotes.get(contract.symbol)
            if quote is not None:
                self._tell(topic, _values(topic, quote, self._venue.clock.told(quote.at)))

    def _unsubscribe(self, request: hsm.Request) -> None:
        for name in request.topics:
            self.topics.pop(name, None)
        self.tell(hsm.done(hsm.UNSUBSCRIBE))

    def _pause(self, request: hsm.Request) -> None:
        self._paused |= set(request.channels)
        self.tell(hsm.done(hsm.PAUSE))

    def _resume(self, request: hsm.Request) -> None:
        self._paused -= set(request.channels)
        self.tell(hsm.done(hsm.RESUME))

    def _mode(self, request: hsm.Request) -> None:
        self._lite = request.lite
        self.tell(hsm.done(hsm.MODE))

    _answers: Mapping[int, Callable[[DataLine, hsm.Request], None]] = {
        hsm.SUBSCRIBE: _subscribe,
        hsm.UNSUBSCRIBE: _unsubscribe,
        hsm.PAUSE: _pause,
        hsm.RESUME: _resume,
        hsm.MODE: _mode,
    }

    def _tell(self, topic: Topic, values: list[int]) -> None:
        if not topic.told:
            item = _snapshot(topic, values)
        elif self._lite:
            item = hsm.lite(topic.id, values[0])
        else:
            pairs = zip(values, topic.told, strict=True)
            item = hsm.update(topic.id, [new if new != old else hsm.UNCHANGED for new, old in pairs])
        topic.told = values
        self._tell_item(item)

    def _tell_malformed(self, topic: Topic, values: list[int], how: Malformation) -> None:
        time_at = 2 if topic.kind == "if" else 3
        if how in ("truncated", "truncated_snapshot"):
            whole = how == "truncated_snapshot" or not topic.told
            frame = self._frame(_snapshot(topic, values) if whole else hsm.update(topic.id, values))
            self.tell(frame[: len(frame) // 2])
        elif how == "unknown_symbol":
            self._tell_item(hsm.snapshot(60_000, "sf|nse_cm|1", values, ("nse_cm", "1", "GHOST")))
        elif how in ("future", "past"):
            values[time_at] += HOUR_S if how == "future" else -HOUR_S
            self._tell(topic, values)
        else:
            values[0] = {"zero": 0, "negative": -values[0], "outlier": 2 * values[0]}.get(how, hsm.UNCHANGED)
            self._tell(topic, values)

    def _tell_item(self, item: bytes) -> None:
        self.tell(self._frame(item))

    def _frame(self, item: bytes) -> bytes:
        self._frames += 1
        return hsm.datafeed(self._frames, item)


def _by_topic(contracts: Mapping[str, Contract]) -> dict[tuple[str, ...], Contract]:
    found: dict[tuple[str, ...], Contract] = {}
    for contract in contracts.values():
        for kind in ("if",) if contract.is_index else ("sf", "dp"):
            found[contract.topic(kind)] = contract
    return found


def _plain_topic(name: str) -> tuple[str, ...]:
    kind, _, rest = name.partition("|")
    segment, _, token = rest.partition("|")
    return kind, segment, plain(token)


def _snapshot(topic: Topic, values: list[int]) -> bytes:
    _, segment, token = topic.name.split("|")
    return hsm.snapshot(topic.id, topic.name, values, (segment, token, topic.contract.symbol))


def _values(topic: Topic, quote: Quote, at: float) -> list[int]:
    """In the order of the SDK's map.json."""
    prices = [hsm.scaled(price) for price in (quote.price, quote.high, quote.low, quote.open, quote.previous_close)]
    last, high, low, opened, closed = prices
    step = hsm.scaled(topic.contract.tick_at(quote.price))
    if topic.kind == "if":
        return [last, closed, int(at), high, low, opened]
    if topic.kind == "dp":
        bids = [last - level * step for level in range(1, 6)]
        asks = [last + level * step for level in range(1, 6)]
        return bids + asks + [DISPLAYED] * 10 + [1] * 10
    spread = [DISPLAYED, DISPLAYED, last - step, last + step]
    sizes = [quote.bought, DISPLAYED, DISPLAYED]
    average, interest, bounds = last, 0, [0, 0, 0, 0]  # of the year and of the circuit
    trades = [last, quote.volume, int(at), int(at)]
    return [*trades, *spread, *sizes, average, interest, low, high, *bounds, opened, closed]
