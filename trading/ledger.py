"""The trading record in one SQLite file: append-only, and what is held is nothing but the sum of the fills.

    intent     what was decided for one bar and what follows from it; written first, one per (symbol, bar)
    order      accepted by the gateway, under an id that its sender chose
    fill       a trade of an order, booked once, to whoever owned the symbol then
    foreign    a trade on the same account that no order of ours made; what was adopted of it is a fill as well
    handover   a symbol's way from one owner to another, with the units that went along
    refusal    an order that the gateway did not accept
    book       what each symbol's owner holds: what the rows above add up to (`discrepancies`)
    fence      the highest epoch seen; one row
    event      what a live process was told, in order (trading/events.py)

Every id derives from symbol and bar, so that a process killed anywhere repeats its last step without effect. Only the
gateway (trading/gateway.py) writes anything but intents and events. Units are signed (positive buys), money is in
rupees, times are UTC nanoseconds.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, IntegrityError

from core.errors import BrokerError
from trading import ledger_statements as sql
from trading.broker import tag_of
from trading.ledger_tables import books, desks, fills, handovers, intents, orders, upgrade

OWNER = re.compile(r"(champion|challenger):\S+")  # as trading.ownership.Owner writes it
BUSY_S = 30.0  # an order may wait so long for other processes; it is judged by what is true then
BEGIN = "BEGIN IMMEDIATE"  # several processes may open a new file, or an old one, at once


@dataclass(frozen=True)
class Intent:
    """One decision for one bar, with each arm's own virtual direction before and after it, in {-1, 0, +1}."""

    symbol: str
    bar_ns: int
    reason: str  # an action's name, or square_off, flatten
    order_units: float  # 0: no order follows
    champion_from: int = 0
    champion_to: int = 0
    challenger_from: int = 0
    challenger_to: int = 0
    model_version: str = ""
    epoch: int = 0
    reported: bool = True  # nothing (more) to tell the service about it
    decision_id: str = ""
    owner: str = ""  # of the order; who takes the symbol over, if it is handed over
    handover: str | None = None  # its mode
    flatten_at_ns: int | None = None

    @property
    def intent_id(self) -> str:
        suffix = ":square_off" if self.reason == "square_off" else ""
        return f"{self.symbol}:{self.bar_ns}{suffix}"

    @property
    def is_exit(self) -> bool:
        """Whether its order closes what is held without any model having said so."""
        return self.reason in sql.EXITS


@dataclass(frozen=True)
class Order:
    """What is asked of the broker. Without an epoch it is no model's decision, and may only make a position smaller."""

    order_id: str  # the sender's own: a second time it is the same order
    symbol: str
    units: float
    owner: str
    epoch: int | None
    at_ns: int  # when it is sent
    bar_ns: int  # the bar it was decided at
    decision_id: str = ""
    model_version: str = ""
    exchange: str = "NSE"
    instrument: str = ""  # the broker's symbol; "": replayed on paper
    limit_price: float | None = None

    def __post_init__(self) -> None:
        if not self.order_id or not math.isfinite(self.units) or not self.units or self.units % 1:
            raise BrokerError(
                f"order {self.order_id!r}: {self.units} units of {self.symbol}; an order has an id and whole units",
                code="order_invalid",
            )
        if not OWNER.fullmatch(self.owner):
            raise BrokerError(
                f"order {self.order_id!r}: {self.owner!r} names no owner; write arm:name/version", code="order_invalid"
            )
        if self.limit_price is not None and not (math.isfinite(self.limit_price) and self.limit_price > 0.0):
            raise BrokerError(
                f"order {self.order_id!r}: limit price {self.limit_price}; give rupees above 0", code="order_invalid"
            )


@dataclass(frozen=True)
class OrderState:
    """An order, and what became of it.

    status: open; cancelling (its owner lost the symbol while the broker had it: it may still be filled); filled (all
    of it, whatever else was said before); cancelled or rejected (perhaps after a part of it was filled).
    """

    order: Order
    status: str
    filled_units: float = 0.0
    broker_id: str | None = None  # None: not acknowledged
    reason: str = ""  # why it was cancelled or rejected
    desk: str = ""  # whose it is: the ledger's name

    @property
    def is_open(self) -> bool:
        return self.status in sql.OPEN

    @property
    def open_units(self) -> float:
        """What the broker may still fill, signed."""
        return self.order.units - self.filled_units if self.is_open else 0.0

    @property
    def tag(self) -> str:
        """What the broker knows it by."""
        return tag_of(self.order.order_id, self.desk)


@dataclass(frozen=True)
class Fill:
    order_id: str  # "": of a trade by hand that was adopted
    symbol: str
    units: float
    price: float
    cost: float
    bar_ns: int  # of a replay: the bar; else when it was traded
    owner: str  # to whom it was booked; whoever ordered it may have lost the symbol since
    decision_id: str = ""
    trade_id: str = ""  # one of its order's
    instrument: str = ""


@dataclass(frozen=True)
class Position:
    """What the fills of one symbol add up to. `realised` is after costs; the average price is 0 when flat."""

    symbol: str
    units: float
    average_price: float
    realised: float
    costs: float
    fills: int


def position_of(symbol: str, history: Iterable[Fill]) -> Position:
    """Fold fills, oldest first, into a position at average cost; a part of an order is a fill like any other."""
    return reduce(position_after, history, Position(symbol, 0.0, 0.0, 0.0, 0.0, 0))


def position_after(before: Position, fill: Fill) -> Position:
    """The position after one more fill."""
    units, average, realised = before.units, before.average_price, before.realised - fill.cost
    if units * fill.units < 0:
        closed = min(abs(units), abs(fill.units)) * (1.0 if units > 0 else -1.0)
        realised += closed * (fill.price - average)
        if abs(fill.units) >= abs(units):
            average = fill.price  # reversed: what is left was opened here
    elif fill.units:
        average = (average * abs(units) + fill.price * abs(fill.units)) / (abs(units) + abs(fill.units))
    units += fill.units
    average = average if units else 0.0
    return Position(before.symbol, units, average, realised, before.costs + fill.cost, before.fills + 1)


class Ledger:
    """The record, readable by other processes while it is written. Files of older versions are brought up to date.

    Every method is one transaction. Raises BrokerError if the file is not a ledger or cannot be opened.
    """

    def __init__(self, path: Path, *, as_it_is: bool = False) -> None:
        """`as_it_is`: for who only looks, beside whoever writes it: neither locked nor brought up to date."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_S})
        sa.event.listen(self.engine, "connect", _durable)
        self.desk = ""  # its name, which its orders' tags carry
        if as_it_is:
            return
        try:
            with self.engine.begin() as connection:
                connection.exec_driver_sql(BEGIN)
                upgrade(connection)
                self.desk = connection.execute(sql.DESK).scalar_one_or_none() or ""
        except DatabaseError as error:
            self.engine.dispose()
            raise BrokerError(
                f"{path}: not usable as a ledger ({error.orig}); move it away or choose another state_dir",
                code="ledger_unusable",
            ) from None

    def close(self) -> None:
        self.engine.dispose()

    def name_desk(self, name: str) -> None:
        """Once; the first name stays."""
        with self.engine.begin() as connection:
            connection.execute(sa.insert(desks).prefix_with("OR IGNORE"), {"id": 1, "name": name})
            self.desk = connection.execute(sql.DESK).scalar_one()

    @contextmanager
    def quickly(self) -> Iterator[sa.Connection]:
        """A transaction that survives the process at once, and a power cut as soon as a later one does.

        SQLite writes them one behind the other: whatever an accepted order rests on is as durable as the order.
        """
        with self.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.invalidate()  # it is closed, in whatever transaction it was: the next one begins durably
                raise
            connection.exec_driver_sql("PRAGMA synchronous=FULL")

    def record_intent(self, intent: Intent) -> Intent:
        """Write an intent unless its bar has one already; returns the one on record."""
        try:
            with self.quickly() as connection:
                connection.execute(sa.insert(intents).values(asdict(intent) | {"intent_id": intent.intent_id}))
            return intent
        except IntegrityError:
            on_record = self.intent(intent.intent_id)
            if on_record is None:
                raise
            return on_record

    def intent(self, intent_id: str) -> Intent | None:
        return self._intent(sql.INTENT, wanted=intent_id)

    def last_intent(self, symbol: str) -> Intent | None:
        """The newest intent of a symbol: where a restarted loop goes on."""
        return self._intent(sql.LAST_INTENT, of_symbol=symbol)

    def last_acting(self, symbol: str) -> Intent | None:
        """The newest intent of a symbol that orders something, or closes what there is."""
        return self._intent(sql.LAST_ACTING, of_symbol=symbol)

    def _intent(self, query: sa.Select[Any], **values: str) -> Intent | None:
        with self.engine.connect() as connection:
            row = connection.execute(query, values).one_or_none()
        return None if row is None else Intent(**_fields(Intent, row))

    def claim_report(self, intent_id: str) -> bool:
        """True exactly once per intent: its outcome is reported at most once, even across crashes."""
        unreported = (intents.c.intent_id == intent_id) & ~intents.c.reported
        with self.quickly() as connection:
            return connection.execute(sa.update(intents).where(unreported).values(reported=True)).rowcount == 1

    def order(self, order_id: str) -> OrderState | None:
        found = self._orders(sql.ORDER, wanted=order_id)
        return found[0] if found else None

    def open_orders(self, symbol: str) -> list[Order]:
        """What the broker may still fill, oldest first."""
        return [state.order for state in self._orders(sql.OPEN_OF, of_symbol=symbol)]

    def unfinished(self) -> list[OrderState]:
        """What the broker may still fill of any symbol, oldest first."""
        return self._orders(sql.UNFINISHED)

    def orders_of(self, intent_id: str) -> list[OrderState]:
        """The slices of an intent: orders with its id, or with its id, a slash and more; oldest first."""
        return self._orders(
            sql.SLICES, first=intent_id, after=f"{intent_id}/", before=f"{intent_id}0"
        )  # 0 comes after /

    def _orders(self, query: sa.Select[Any], **values: str) -> list[OrderState]:
        with self.engine.connect() as connection:
            return [state_of(row, self.desk) for row in connection.execute(query, values)]

    def rows(self) -> list[int]:
        """How many there are of what is only added to, and how many orders and intents came how far.

        Whatever changes an order, an intent or a fill makes one of them larger.
        """
        tables = [sa.select(sa.func.count()).select_from(each) for each in sql.ADDED_TO]
        counts = sa.select(*(each.scalar_subquery() for each in (*tables, *sql.CAME_SO_FAR)))
        with self.engine.connect() as connection:
            return list(connection.execute(counts).one())

    def units(self, symbol: str) -> float:
        """Signed units the broker holds: the sum of the fills."""
        total = sa.select(sa.func.coalesce(sa.func.sum(fills.c.units), 0.0)).where(fills.c.symbol == symbol)
        with self.engine.connect() as connection:
            return float(connection.execute(total).scalar_one())

    def fills(self, symbol: str) -> list[Fill]:
        wanted = sa.select(fills).where(fills.c.symbol == symbol).order_by(fills.c.seq)
        with self.engine.connect() as connection:
            return [fill_of(row) for row in connection.execute(wanted)]

    def positions(self) -> list[Position]:
        """One per symbol ever traded, by name."""
        with self.engine.connect() as connection:
            symbols = connection.execute(sa.select(fills.c.symbol).distinct().order_by(fills.c.symbol)).scalars().all()
        return [position_of(symbol, self.fills(symbol)) for symbol in symbols]

    def holdings(self) -> dict[tuple[str, str], float]:
        """Units by (symbol, owner), added up from fills and hand-overs; who holds nothing is left out."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            return _holdings(connection)

    def discrepancies(self) -> list[str]:
        """What does not add up: a symbol's owners hold together what the broker does, and the book says the same."""
        with self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")  # what follows is read as of one instant
            held = _holdings(connection)
            broker = dict(connection.execute(sql.BROKER).tuples().all())
            booked = {row.symbol: (row.owner, row.units) for row in connection.execute(sa.select(books))}
            strange = connection.execute(
                sa.select(orders.c.order_id)
                .join(books, books.c.symbol == orders.c.symbol)
                .where(orders.c.status == "open", orders.c.owner != books.c.owner)
            ).scalars()
            found = [f"order {order_id} is open, and its owner does not own the symbol" for order_id in strange]
            for order_id, said, filled in connection.execute(sql.MISCOUNTED):
                found.append(f"order {order_id} says {said} units are filled, and its fills say {filled}")
        for symbol in sorted({*broker, *booked, *(symbol for symbol, _ in held)}):
            owner, units = booked.get(symbol, ("", 0.0))
            owners = {who: much for (of, who), much in held.items() if of == symbol}
            if sum(owners.values()) != broker.get(symbol, 0.0) or owners != ({owner: units} if units else {}):
                found.append(f"{symbol}: broker {broker.get(symbol, 0.0)}, owners {owners}, book {owner} {units}")
        return found


def state_of(row: Any, desk: str) -> OrderState:
    """A row of `ledger_statements.ORDERS`, of the ledger of that name."""
    order = Order(**_fields(Order, row))
    return OrderState(order, row.status, row.filled_units, row.broker_id, row.reason, desk)


def fill_of(row: Any) -> Fill:
    """A row of the table of fills."""
    return Fill(**_fields(Fill, row) | {"order_id": row.order_id or ""})


def _holdings(connection: sa.Connection) -> dict[tuple[str, str], float]:
    held: Counter[tuple[str, str]] = Counter()
    booked = sa.select(fills.c.symbol, fills.c.owner, sa.func.sum(fills.c.units)).group_by(
        fills.c.symbol, fills.c.owner
    )
    for symbol, owner, units in connection.execute(booked):
        held[symbol, owner] += units
    for row in connection.execute(sa.select(handovers)):
        held[row.symbol, row.from_owner] -= row.units
        held[row.symbol, row.to_owner] += row.units
    return {key: units for key, units in held.items() if units}


def _fields(kind: Any, row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in kind.__dataclass_fields__}


def _durable(connection: Any, _record: Any) -> None:
    """WAL lets the backend read while the loop writes; FULL makes a commit survive a power cut."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
