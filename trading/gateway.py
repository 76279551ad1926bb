"""The only way to the broker: every order, cancellation, trade and hand-over, each one transaction on the ledger.

    submit      one order, judged by: its epoch against the fence, the symbol's freeze, its owner, whether it may only
                make the position smaller, the risk engine, and how many orders the exchange had within a second
    acknowledge, cancel, reject   what became of it at the broker
    book_trade  what the broker did is a fact: booked once, to its decision, and to whoever owns the symbol now
    foreign     a trade that no order of ours made
    hand_over   a symbol with all its units goes to another owner; open orders of the old one are to be cancelled
    release     a person lifts what a hand-over forbade

The fence is the highest epoch that was ever seen. It is durable and never falls, and whoever would write takes it
first: so any number of threads and processes act one after the other, on SQLite (where it takes the one write lock) and
on Postgres (where it locks the row), and no order of an older epoch is accepted after a newer one was seen.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import sqlalchemy as sa

from core.errors import BrokerError
from core.settings import Trading
from delivery.crash import crash_at
from trading import gateway_statements as sql
from trading.broker import Trade
from trading.ledger import Ledger, Order
from trading.ledger_tables import LEGACY_OWNER
from trading.market import day_of
from trading.ownership import Book, Handover, Owner, closed_by_hand, filled, handed_over, restricted

SECOND_NS = 1_000_000_000
SAME_CLOCK_NS = 60 * SECOND_NS  # orders stamped later than this belong to a replay of other bars, not to a late sender

# In the order they are looked at, but for the last, which is the first.
Reason = Literal["stale_epoch", "frozen", "not_owner", "raises_exposure", "too_many_orders", "order_id_taken"]
Judge = Callable[[Order, Book], tuple[str, str] | None]  # why an order may not be, and the detail (trading/risk.py)


@dataclass(frozen=True)
class Accepted:
    order_id: str
    status: str = "open"  # of an order that is sent again (OrderState)


@dataclass(frozen=True)
class Refused:
    order_id: str
    reason: str  # a Reason, or the judge's
    detail: str
    retry_at_ns: int | None = None  # too_many_orders: when the exchange may have it


class OrderGateway:
    """The gateway over one ledger.

    `rules` are the algo id and the order rate of the settings. `risk` judges each order within the transaction that
    would accept it, after the gateway itself: so nothing goes round it. It touches no database.
    """

    def __init__(self, ledger: Ledger, rules: Trading, risk: Judge | None = None) -> None:
        self.ledger, self.rules, self.risk = ledger, rules, risk
        self._turn = threading.Lock()  # SQLite lets those that wait for its lock starve: threads wait here

    def submit(self, order: Order) -> Accepted | Refused:
        return self.submit_all([order])[0]

    def submit_all(self, wanted: Sequence[Order]) -> list[Accepted | Refused]:
        """Each order as if it were alone, in this order, in one transaction."""
        results = []
        with self._locked() as (connection, seen):
            epoch = seen
            for order in wanted:
                if order.epoch is not None and order.epoch > epoch:
                    epoch = order.epoch
                    connection.execute(sql.LOCK, {"seen": epoch})
                results.append(self._submit(connection, order, epoch))
        return results

    def acknowledge(self, order_id: str, broker_id: str) -> bool:
        """The broker has it, under its own id. False if one is on record: the first one stays.

        A power cut may lose it, until something durable follows: then the order is found by its tag.
        """
        with self._locked(durably=False) as (connection, _):
            self._known(connection, order_id)
            row = {"wanted": order_id, "broker_id": broker_id}
            return connection.execute(sql.ACKNOWLEDGED, row).rowcount == 1

    def cancel(self, order_id: str, reason: str = "") -> bool:
        """An order is cancelled at the broker, or never went there. False if it was over already."""
        return self._over(order_id, "cancelled", reason)

    def reject(self, order_id: str, reason: str) -> bool:
        """The broker does not take an order. False if it was over already."""
        return self._over(order_id, "rejected", reason)

    def book_trade(self, order_id: str, trade: Trade, cost: float) -> bool:
        """Book what an order traded, whatever was said of the order; False if that is booked already.

        What the broker fills beyond the order is booked as well, and then the symbol may only be made smaller until
        it is flat. Trades of an order have different ids; the exchange's come again another day.

        Raises BrokerError for an order that never went through here, and for a trade that cannot be its own.
        """
        with self._locked() as (connection, _):
            return self._book_trade(connection, self._known(connection, order_id), trade, cost)

    def fill(self, order_id: str, price: float, cost: float, bar_ns: int) -> bool:
        """Book that all that is left of an order was filled, cancelled or not; False if nothing is left."""
        with self._locked() as (connection, _):
            order = self._known(connection, order_id)
            if order.status == "filled":
                return False
            left = int(order.units - order.filled_units)
            trade = Trade(order_id, "", "", order.instrument, left, price, bar_ns)
            return self._book_trade(connection, order, trade, cost)

    def foreign(self, trade: Trade, symbol: str | None, *, adopt: bool, cost: float = 0.0) -> bool:
        """Put a trade on record that no order of ours made; False if it is already.

        Args:
            symbol: that trades this instrument; None: none of ours.
            adopt: book it to the symbol's owner. Else it is kept apart, but for what closes our own position: what is
                gone is gone. `cost` is the whole trade's, in rupees; adopted units bear their part.
        """
        _require_possible(trade, cost)
        key = {"day": day_of(trade.at_ns).isoformat(), "broker_id": trade.broker_id, "trade_id": trade.trade_id}
        with self._locked() as (connection, _):
            if connection.execute(sql.FOREIGN, {f"of_{name}": value for name, value in key.items()}).first():
                return False
            book = None if symbol is None else self._book(connection, symbol)
            ours = 0.0 if book is None else float(trade.units)
            if book is not None and not adopt:
                where = {"of_day": key["day"], "wanted": trade.instrument}
                ours = closed_by_hand(trade.units, connection.execute(sql.APART, where).scalar_one(), book.units)
            what = {name: getattr(trade, name) for name in ("instrument", "units", "price", "at_ns")}
            connection.execute(sql.NEW_FOREIGN, key | what | {"adopted_units": ours})
            if book is not None and ours:
                self._adopt(connection, book, trade, ours, cost * ours / trade.units)
        return True

    def hand_over(self, handover: Handover) -> bool:
        """Give a symbol to another owner. False, and no effect, if it is that one's already or the epoch is over."""
        with self._locked(handover.epoch) as (connection, epoch):
            book = self._book(connection, handover.symbol)
            if handover.epoch < epoch or book.owner is None or book.owner == handover.to:
                return False
            connection.execute(sql.TAKEN_AWAY, {"of_symbol": handover.symbol})
            row = asdict(handover) | {"from_owner": str(book.owner), "to_owner": str(handover.to), "units": book.units}
            del row["to"]
            connection.execute(sql.NEW_HANDOVER, row)
            self._write(connection, handed_over(book, handover))
        return True

    def release(self, symbol: str, at_ns: int) -> bool:
        """Lift what a hand-over forbade; False if nothing is forbidden."""
        with self._locked() as (connection, epoch):
            book = self._book(connection, symbol)
            if book.mode == "normal":
                return False
            who = {"symbol": symbol, "from_owner": str(book.owner), "to_owner": str(book.owner), "units": book.units}
            what = {"mode": "release", "flatten_at_ns": None, "epoch": epoch, "at_ns": at_ns}
            connection.execute(sql.NEW_HANDOVER, who | what)
            self._write(connection, Book(symbol, book.owner, book.units))
        return True

    def epoch(self) -> int:
        """The highest that was seen."""
        with self.ledger.engine.connect() as connection:
            return int(connection.execute(sql.FENCE).scalar_one())

    def raise_fence(self, epoch: int) -> None:
        """Accept no order of an epoch below this one any more; a lower one changes nothing."""
        with self._locked(epoch):
            pass

    def book(self, symbol: str) -> Book:
        with self.ledger.engine.connect() as connection:
            return self._book(connection, symbol)

    @contextmanager
    def _locked(self, epoch: int = 0, *, durably: bool = True) -> Iterator[tuple[sa.Connection, int]]:
        """A transaction that nobody else writes beside, and the fence, at least at `epoch`."""
        transaction = self.ledger.engine.begin if durably else self.ledger.quickly
        with self._turn, transaction() as connection:
            connection.execute(sql.LOCK, {"seen": epoch})
            yield connection, connection.execute(sql.FENCE).scalar_one()
            crash_at("transaction_written")
        crash_at("transaction_committed")

    def _submit(self, connection: sa.Connection, order: Order, epoch: int) -> Accepted | Refused:
        known = connection.execute(sql.ORDER, {"wanted": order.order_id}).one_or_none()
        if known is not None:
            if (known.symbol, known.units, known.owner) == (order.symbol, order.units, order.owner):
                return Accepted(order.order_id, known.status)
            return self._refuse(connection, order, "order_id_taken", "another order has this id")
        book = self._book(connection, order.symbol)
        refusal = self._reason(connection, order, book, epoch) or (self.risk and self.risk(order, book))
        if refusal is not None:
            return self._refuse(connection, order, *refusal)
        if (retry_at_ns := self._retry_at_ns(connection, order)) is not None:
            detail = f"{order.exchange} takes {self.rules.orders_per_s} orders a second"
            return Refused(order.order_id, "too_many_orders", detail, retry_at_ns)
        self._accept(connection, order, book, epoch)
        return Accepted(order.order_id)

    def _reason(self, connection: sa.Connection, order: Order, book: Book, epoch: int) -> tuple[Reason, str] | None:
        if order.epoch is not None and order.epoch < epoch:
            return "stale_epoch", f"decided in epoch {order.epoch}, and {epoch} was seen; decide again"
        if book.mode == "freeze":
            return "frozen", f"hrm trade release {order.symbol}"
        foreign, restrained = order.owner != str(book.owner), order.epoch is None or book.mode != "normal"
        if not foreign and not restrained:
            return None
        pending = connection.execute(sql.PENDING, {"wanted": order.symbol}).scalars().all()
        if foreign and (book.units or pending):
            return "not_owner", f"{book.owner} holds {book.units} units and has {len(pending)} open orders"
        closing = sum(units for units in pending if units * book.units < 0)
        if restrained and not book.reduces(order.units, closing):
            return "raises_exposure", f"{order.units} units on {book.units}, {closing} under way; only less is allowed"
        return None

    def _retry_at_ns(self, connection: sa.Connection, order: Order) -> int | None:
        """When the exchange may have the order, if not now: so that no second has more orders than the rules allow."""
        after, before = order.at_ns - SECOND_NS, order.at_ns + SAME_CLOCK_NS
        window = {"wanted": order.exchange, "after": after, "before": before, "most": self.rules.orders_per_s}
        latest = connection.execute(sql.LATEST, window).scalars().all()
        return latest[-1] + SECOND_NS if len(latest) == self.rules.orders_per_s else None

    def _accept(self, connection: sa.Connection, order: Order, book: Book, epoch: int) -> None:
        row = asdict(order) | {"epoch": epoch if order.epoch is None else order.epoch, "algo_id": self.rules.algo_id}
        connection.execute(sql.NEW_ORDER, row | {"status": "open", "filled_units": 0.0, "reason": ""})
        if order.owner != str(book.owner):
            self._write(connection, Book(order.symbol, Owner.parse(order.owner)), new=book.owner is None)

    def _refuse(self, connection: sa.Connection, order: Order, reason: str, detail: str) -> Refused:
        names = ("order_id", "symbol", "owner", "epoch", "at_ns")
        connection.execute(sql.NEW_REFUSAL, {name: getattr(order, name) for name in names} | {"reason": reason})
        return Refused(order.order_id, reason, detail)

    def _known(self, connection: sa.Connection, order_id: str) -> Any:
        if (order := connection.execute(sql.ORDER, {"wanted": order_id}).one_or_none()) is None:
            told = f"the broker speaks of order {order_id}, which the gateway never accepted; reconcile with it"
            raise BrokerError(told, code="unknown_order")
        return order

    def _over(self, order_id: str, status: str, reason: str) -> bool:
        with self._locked() as (connection, _):
            self._known(connection, order_id)
            row = {"wanted": order_id, "status": status, "reason": reason}
            return connection.execute(sql.OVER, row).rowcount == 1

    def _book_trade(self, connection: sa.Connection, order: Any, trade: Trade, cost: float) -> bool:
        if connection.execute(sql.BOOKED, {"wanted": order.order_id, "of_trade": trade.trade_id}).first():
            return False
        _require_possible(trade, cost, order)
        units = order.filled_units + trade.units
        status = "filled" if abs(units) >= abs(order.units) else order.status
        connection.execute(sql.CHANGED_ORDER, {"wanted": order.order_id, "filled_units": units, "status": status})
        book = self._book(connection, order.symbol)
        if book.owner is not None and order.owner != str(book.owner):  # it was taken away meanwhile: as it was then
            taken = connection.execute(sql.TAKEN_BY, {"symbol": order.symbol, "owner": order.owner}).one_or_none()
            if taken is not None and taken.mode != "adopt":
                book = restricted(book, taken.mode, taken.flatten_at_ns)
        if abs(units) > abs(order.units):
            book = restricted(book, "reduce_only", None)
        decided = {"order_id": order.order_id, "decision_id": order.decision_id}
        self._book_fill(connection, book, trade, decided | {"units": float(trade.units), "cost": cost})
        return True

    def _adopt(self, connection: sa.Connection, book: Book, trade: Trade, units: float, cost: float) -> None:
        if book.owner is None:  # never traded: the champion takes it over, as what was traded before owners were known
            book = replace(book, owner=Owner.parse(LEGACY_OWNER))
            self._write(connection, book, new=True)
        what = {"order_id": None, "decision_id": "", "units": units, "cost": cost}
        self._book_fill(connection, book, trade, what)

    def _book_fill(self, connection: sa.Connection, book: Book, trade: Trade, what: dict[str, Any]) -> None:
        where = {"symbol": book.symbol, "instrument": trade.instrument, "owner": str(book.owner)}
        said = {"trade_id": trade.trade_id, "price": trade.price, "bar_ns": trade.at_ns}
        connection.execute(sql.NEW_FILL, where | said | what)
        self._write(connection, filled(book, what["units"]))

    def _book(self, connection: sa.Connection, symbol: str) -> Book:
        row: Any = connection.execute(sql.BOOK, {"wanted": symbol}).one_or_none()
        if row is None:
            return Book(symbol)
        return Book(row.symbol, Owner.parse(row.owner), row.units, row.mode, row.flatten_at_ns)

    def _write(self, connection: sa.Connection, book: Book, *, new: bool = False) -> None:
        row = {"owner": str(book.owner), "units": book.units, "mode": book.mode, "flatten_at_ns": book.flatten_at_ns}
        key, statement = ("symbol", sql.NEW_BOOK) if new else ("wanted", sql.CHANGED_BOOK)
        connection.execute(statement, row | {key: book.symbol})


def is_possible(trade: Trade, order: Any = None) -> bool:
    """Whether a trade is of something, for something, and one of the order (a row or an Order), if it is given."""
    own = order is None or (trade.units * order.units > 0 and trade.instrument == order.instrument)
    return bool(own and trade.units and math.isfinite(trade.price) and trade.price > 0.0)


def _require_possible(trade: Trade, cost: float, order: Any = None) -> None:
    if not is_possible(trade, order) or not math.isfinite(cost):
        told = f"trade {trade.trade_id} of order {order and order.order_id}: {trade.units} {trade.instrument}"
        raise BrokerError(f"{told} at {trade.price} cannot be; reconcile with the broker", code="trade_invalid")
