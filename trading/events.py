"""The event log: all that a live process was told, in order, in its ledger's own file; nothing of it ever changes.

An event is written, durably, before it is handled, so that the desk (trading/desk.py) does the same again from the log:
after a crash with the last event, in a replay (trading/event_replay.py) with those of a day.

    start, history, bar, clock     the process begins; bars before it; a closed bar; time and prices go on
    answer                         of the service, to a question
    placed, declined, unknown      of the broker, to a ticket; unsent: it never went out
    order, trade, snapshot         what the broker says by itself, or asked for everything
    state, epoch, command          of the switch, the rollout, a person

Bodies are JSON; floats keep every bit. Times are UTC nanoseconds and never go back.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any, Literal, TypeVar, cast, get_args

import sqlalchemy as sa
from pydantic import TypeAdapter, ValidationError

from core.errors import DataError
from trading.broker import OrderReport, Snapshot, Trade
from trading.ledger import Ledger
from trading.ledger_tables import events
from trading.market import DAY_NS
from trading.service import DecisionAnswer
from trading.stream import Bar
from trading.switch import Switch

Kind = Literal[
    "start",
    "history",
    "bar",
    "answer",
    "placed",
    "declined",
    "unknown",
    "unsent",
    "order",
    "trade",
    "snapshot",
    "state",
    "epoch",
    "clock",
    "command",
]
KINDS: frozenset[str] = frozenset(get_args(Kind))
Body = dict[str, Any]
Quotes = Mapping[str, tuple[float, int]]  # of what is traded, by symbol: rupees, and when the exchange said so
EPOCH = date(1970, 1, 1)
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    seq: int
    at_ns: int
    kind: Kind
    symbol: str  # "": of none, or of all
    body: Mapping[str, Any]


class EventLog:
    """The events of a ledger, by one writer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._engine = ledger, ledger.engine
        last = self.last()
        self._last_ns = 0 if last is None else last.at_ns

    @property
    def now_ns(self) -> int:
        """The newest event's time: what the desk takes for now."""
        return self._last_ns

    def append(self, kind: Kind, body: Mapping[str, Any], *, at_ns: int, symbol: str = "") -> Event:
        """Write an event; it is durable when this returns. A clock that went back stands still.

        Raises DataError (`event_invalid`) for what is no JSON, such as a NaN.
        """
        try:
            text = json.dumps(body, allow_nan=False, separators=(",", ":"))
        except (ValueError, TypeError) as error:
            raise DataError(f"{kind} of '{symbol}': {error}; it is not written", code="event_invalid") from None
        at_ns = max(at_ns, self._last_ns)
        row = {"at_ns": at_ns, "kind": kind, "symbol": symbol, "body": text}
        with self._ledger.quickly() as connection:
            seq: int = connection.execute(sa.insert(events).returning(events.c.seq), row).scalar_one()
        self._last_ns = at_ns
        return Event(seq, at_ns, kind, symbol, json.loads(text))

    def copy(self, event: Event) -> None:
        """Write an event of another log as it is."""
        with self._ledger.quickly() as connection:
            connection.execute(sa.insert(events), asdict(event) | {"body": json.dumps(event.body)})
        self._last_ns = event.at_ns

    def last(self) -> Event | None:
        return self._newest(sa.true())

    def last_of(self, kind: Kind, symbol: str = "", *, before: int | None = None) -> Event | None:
        """The newest of a kind; with `before`, of those with a lower number."""
        wanted = (events.c.kind == kind) & (events.c.symbol == symbol)
        return self._newest(wanted if before is None else wanted & (events.c.seq < before))

    def features(self, symbol: str) -> Iterator[Event]:
        """The newest history of a symbol and all its bars since."""
        newest = self.last_of("history", symbol)
        since = 0 if newest is None else newest.seq
        shown = events.c.kind.in_(("history", "bar")) & (events.c.symbol == symbol)
        return self._found((events.c.seq >= since) & shown)

    def before(self, seq: int) -> Event | None:
        """The event before another one."""
        return self._newest(events.c.seq < seq)

    def after(self, seq: int) -> Event | None:
        """The event after another one."""
        return next(self._found(events.c.seq > seq), None)

    def of_day(self, day: date) -> Iterator[Event]:
        """All events of a UTC day, which is a trading day of the exchange."""
        begins_ns = (day - EPOCH).days * DAY_NS
        return self._found((events.c.at_ns >= begins_ns) & (events.c.at_ns < begins_ns + DAY_NS))

    def _newest(self, wanted: sa.ColumnElement[bool]) -> Event | None:
        query = sa.select(events).where(wanted).order_by(events.c.seq.desc()).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _event(row)

    def _found(self, wanted: sa.ColumnElement[bool]) -> Iterator[Event]:
        with self._engine.connect() as connection:
            for row in connection.execute(sa.select(events).where(wanted).order_by(events.c.seq)):
                yield _event(row)


def _event(row: Any) -> Event:
    if row.kind not in KINDS:
        raise DataError(f"event {row.seq} is of an unknown kind, '{row.kind}'", code="event_invalid")
    return Event(row.seq, row.at_ns, cast(Kind, row.kind), row.symbol, json.loads(row.body))


def digest_of(request: Mapping[str, Any]) -> str:
    """SHA-256 of a question, as it is sent."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def history_body(bars: Iterable[Bar]) -> Body:
    return {"bars": [_bar_row(bar) for bar in bars]}


def bar_body(bar: Bar, prices: Quotes) -> Body:
    return {"bar": _bar_row(bar), "prices": prices_body(prices)}


def answer_body(bar_ns: int, answer: DecisionAnswer | None, *, asked: str, elapsed_ms: float, prices: Quotes) -> Body:
    """An answer, or that there was none; `asked`: the digest of the question."""
    said = None if answer is None else answer.model_dump(mode="json")
    about = {"request_sha256": asked, "elapsed_ms": elapsed_ms}
    return {"bar_ns": bar_ns, "answer": said, **about, "prices": prices_body(prices)}


def order_body(order_id: str, broker_id: str) -> Body:
    return {"order_id": order_id, "broker_id": broker_id}


def reason_body(order_id: str, reason: str) -> Body:
    return {"order_id": order_id, "reason": reason}


def report_body(report: OrderReport) -> Body:
    return asdict(report)


def trade_body(trade: Trade) -> Body:
    return asdict(trade)


def snapshot_body(snapshot: Snapshot, before: Snapshot | None) -> Body:
    """A snapshot; where only time and funds differ from `before`, the last one that was written, only those."""
    if before is None or _as_of(before, snapshot.at_ns, snapshot.funds_rupees) != snapshot:
        return asdict(snapshot)
    return {"at_ns": snapshot.at_ns, "funds_rupees": snapshot.funds_rupees, "unchanged": True}


def state_body(switch: Switch) -> Body:
    return asdict(switch)


def clock_body(prices: Quotes, gate: str | None) -> Body:
    """`gate`: why nothing may be opened now, such as market_closed; None where it may."""
    return {"prices": prices_body(prices), "gate": gate}


def bars_of(event: Event) -> list[Bar]:
    """Of a history or a bar."""
    rows = event.body["bars"] if event.kind == "history" else [event.body["bar"]]
    return [_bar(*row) for row in rows]


def answer_of(event: Event) -> DecisionAnswer | None:
    said = event.body["answer"]
    return None if said is None else DecisionAnswer.model_validate(said)


def report_of(event: Event) -> OrderReport:
    return _read(_REPORT, event)


def trade_of(event: Event) -> Trade:
    return _read(_TRADE, event)


def snapshot_of(event: Event, before: Snapshot | None) -> Snapshot | None:
    """None if nothing is known of what did not change: after a restart."""
    if "unchanged" not in event.body:
        return _read(_SNAPSHOT, event)
    return None if before is None else _as_of(before, event.body["at_ns"], event.body["funds_rupees"])


def switch_of(event: Event) -> Switch:
    return _read(_SWITCH, event)


def quotes_of(event: Event) -> Quotes:
    return {symbol: (row[0], row[1]) for symbol, row in event.body.get("prices", {}).items()}


_REPORT, _TRADE = TypeAdapter(OrderReport), TypeAdapter(Trade)
_SNAPSHOT, _SWITCH = TypeAdapter(Snapshot), TypeAdapter(Switch)


def _read(kind: TypeAdapter[T], event: Event) -> T:
    try:
        return kind.validate_json(json.dumps(event.body))
    except ValidationError as error:
        raise DataError(f"event {event.seq}, {event.kind}: {error}", code="event_invalid") from None


def _as_of(snapshot: Snapshot, at_ns: int, funds_rupees: float) -> Snapshot:
    return replace(snapshot, at_ns=at_ns, funds_rupees=funds_rupees)


def _bar(*row: Any) -> Bar:
    """Of what `_bar_row` wrote."""
    timestamp_ns, opened, high, low, close, signal, session, last = row
    return Bar(timestamp_ns, opened, high, low, close, math.nan if signal is None else signal, session, last)


def _bar_row(bar: Bar) -> list[Any]:
    signal = None if math.isnan(bar.signal) else bar.signal
    return [bar.timestamp_ns, bar.open, bar.high, bar.low, bar.close, signal, bar.session, bar.last_of_session]


def prices_body(prices: Quotes) -> dict[str, list[Any]]:
    return {symbol: list(quote) for symbol, quote in prices.items()}
