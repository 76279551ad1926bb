"""A desk's ledger beside the exchange's own book: was anything sent twice, lost, or written down that never was?

Both are read as they are, from outside: the book by the emulator's control, which no fault touches, the ledger from its
file. A trade is the day's, known by its order and its number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import sqlalchemy as sa

from trading.broker import TAG_PREFIX
from trading.ledger import Ledger, OrderState, state_of
from trading.ledger_statements import ORDERS
from trading.ledger_tables import fills, foreign_trades, orders
from trading.market import day_of

Book = Mapping[str, Any]  # of one day: orders, trades, positions
TradeKey = tuple[str, str, float, float]  # order, number, units, rupees


@dataclass
class Verdict:
    """What is wrong, in words."""

    duplicate_orders: list[str] = field(default_factory=list)
    lost_fills: list[str] = field(default_factory=list)
    ledger_mismatches: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.duplicate_orders or self.lost_fills or self.ledger_mismatches)

    def add(self, other: Verdict) -> None:
        self.duplicate_orders += other.duplicate_orders
        self.lost_fills += other.lost_fills
        self.ledger_mismatches += other.ledger_mismatches


def judged(ledger: Ledger, book: Book, day: date) -> Verdict:
    """Of a day, when nothing is under way any more."""
    states = _orders(ledger, day)
    lost, invented = _trades(ledger, book, day, states)
    return Verdict(
        [*_twice_at_the_exchange(book), *live_twice(states.values(), book)],
        [*lost, *_unmarked_trades(ledger, book, day)],
        [*invented, *_ends(states, book), *_positions(ledger, book, day), *ledger.discrepancies()],
    )


def live_twice(states: Iterable[OrderState], book: Book) -> list[str]:
    """Intents of which the exchange has more than one open order at this instant."""
    intents = {state.tag: state.order.order_id.split("/")[0] for state in states}
    live = Counter(intents.get(each["tag"], each["tag"]) for each in _ours(book["orders"]) if each["status"] == "open")
    return [f"{count} open orders of {intent}" for intent, count in live.items() if count > 1]


def all_orders(ledger: Ledger) -> list[OrderState]:
    with ledger.engine.connect() as connection:
        return [state_of(row, ledger.desk) for row in connection.execute(ORDERS)]


def _orders(ledger: Ledger, day: date) -> dict[str, OrderState]:
    """By tag: the day's."""
    return {state.tag: state for state in all_orders(ledger) if day_of(state.order.at_ns) == day}


def _ours(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["tag"].startswith(TAG_PREFIX)]


def _twice_at_the_exchange(book: Book) -> list[str]:
    tags = Counter(each["tag"] for each in _ours(book["orders"]))
    return [f"{count} orders with the tag {tag}" for tag, count in tags.items() if count > 1]


def _trades(ledger: Ledger, book: Book, day: date, states: Mapping[str, OrderState]) -> tuple[list[str], list[str]]:
    """Those of our orders that the ledger lacks, and those that only the ledger has, or has twice."""
    names = {tag: state.order.order_id for tag, state in states.items()}
    there: Counter[TradeKey] = Counter(
        (names.get(each["tag"], each["tag"]), each["number"], float(each["units"]), each["price"])
        for each in _ours(book["trades"])
    )
    wanted = sa.select(fills).join(orders)
    with ledger.engine.connect() as connection:
        rows = [row for row in connection.execute(wanted) if day_of(row.bar_ns) == day]
    here: Counter[TradeKey] = Counter((row.order_id, row.trade_id, row.units, row.price) for row in rows)
    return [f"not booked: {each}" for each in there - here], [f"booked, and not there: {each}" for each in here - there]


def _unmarked_trades(ledger: Ledger, book: Book, day: date) -> list[str]:
    """Trades that are not ours, and not on record as that."""
    there = Counter(
        (each["order_id"], each["number"], float(each["units"]))
        for each in book["trades"]
        if not each["tag"].startswith(TAG_PREFIX)
    )
    wanted = sa.select(foreign_trades).where(foreign_trades.c.day == day.isoformat())
    with ledger.engine.connect() as connection:
        here = Counter((row.broker_id, row.trade_id, row.units) for row in connection.execute(wanted))
    return [f"by hand, and not as the exchange has it: {each}" for each in (there - here) + (here - there)]


def _ends(states: Mapping[str, OrderState], book: Book) -> list[str]:
    """Orders that have not ended, or otherwise than at the exchange."""
    there: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for each in _ours(book["orders"]):
        there[each["tag"]].append(each)
    unknown = [f"the ledger does not know {tag} of the exchange" for tag in there if tag not in states]
    return [*unknown, *(text for tag, state in states.items() if (text := _end(state, there[tag])))]


def _end(state: OrderState, there: list[Mapping[str, Any]]) -> str | None:
    name, filled = state.order.order_id, sum(each["filled"] for each in there)
    if state.is_open:
        return f"{name} is {state.status} here, and {[each['status'] for each in there]} there"
    if any(each["status"] == "open" for each in there):
        return f"{name} is open there, and {state.status} here"
    if filled != state.filled_units:
        return f"{name}: {filled} units are filled there, {state.filled_units} here"
    if state.broker_id is not None and state.broker_id not in {each["id"] for each in there}:
        return f"{name}: the exchange has no order {state.broker_id}"
    return None


def _positions(ledger: Ledger, book: Book, day: date) -> list[str]:
    """What is held there beside what all fills, and the day's trades by hand, add up to here."""
    here: Counter[str] = Counter()
    with ledger.engine.connect() as connection:
        for row in connection.execute(sa.select(fills)):
            here[row.instrument] += row.units
        for row in connection.execute(sa.select(foreign_trades).where(foreign_trades.c.day == day.isoformat())):
            here[row.instrument] += row.units - row.adopted_units
    there: Counter[str] = Counter()
    for each in book["positions"]:
        there[each["symbol"]] += each["units"]
    names = sorted({*here, *there})
    return [f"{name}: {there[name]} held there, {here[name]} here" for name in names if there[name] != here[name]]
