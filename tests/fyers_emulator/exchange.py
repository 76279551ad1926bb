"""The exchange and the broker's risk desk, pure: no clock, no network, no randomness.

An order that its last price satisfies is filled at that price, at once (`fill: arrival`) or with the next price of
its symbol (`next_tick`), whole or by at most `units_per_fill`. What happens is told in order in `changes`: copies of
orders, trades and positions. Times are seconds since the epoch. A tag that was there before is no reason to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, time
from typing import Literal

from tests.fyers_emulator.books import (
    BY_API,
    BY_BROKER,
    CANCELLED,
    EXPIRED,
    LIMIT,
    MARKET,
    REJECTED,
    STOP_LIMIT,
    STOP_MARKET,
    TRADED,
    Day,
    NewOrder,
    Order,
    Position,
    Trade,
)
from tests.fyers_emulator.clock import datetime_in_india
from tests.fyers_emulator.contracts import Contract

CASH_RUPEES = 10_000_000.0
FIRST_EXCHANGE_ID = 1_100_000_000_000_000

Change = Order | Trade | Position


class Refused(Exception):  # noqa: N818 - an answer, not a failure of the emulator
    """Not at the exchange: the HTTP status and the code and message of the answer."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status


@dataclass(frozen=True)
class Rules:
    fill: Literal["arrival", "next_tick"] = "arrival"
    units_per_fill: int | None = None
    square_off: time | None = None  # in India: intraday positions are closed, and no order is taken any more


@dataclass(frozen=True)
class Fate:
    """What a test makes of one order: a rejection after the acknowledgement, or a fill of a part only."""

    rejection: str | None = None
    ratio: float | None = None


USUAL = Fate()


class Exchange:
    def __init__(self, contracts: dict[str, Contract], day: date, cash: float = CASH_RUPEES) -> None:
        self.contracts = contracts
        self.cash = cash
        self.rules = Rules()
        self.closed: set[int] = set()  # segments
        self.last: dict[str, float] = {}
        self.changes: list[Change] = []
        self.today = Day(day)
        self.past: list[Day] = []
        self._squared_off = False

    # orders

    def place(self, new: NewOrder, now: float, fate: Fate = USUAL) -> Order:
        """Raises Refused for what never gets to the exchange; a rejection is an order with that status."""
        contract = self._checked(new)
        order = self._numbered(new, now)
        objection = fate.rejection or self._objection(order, now)  # before it counts as open itself
        self.today.orders[order.id] = order
        if objection:
            order.status, order.message = REJECTED, objection
            self._tell(order)
            return order
        if fate.ratio is not None:
            order.at_most = math.floor(new.qty * fate.ratio / contract.lot) * contract.lot
        self._tell(order)
        if order.at_most == 0:
            self._cancel(order, "cancelled by the exchange")
        elif self.rules.fill == "arrival":
            self._match(order, now)
        return order

    def modify(self, order_id: str, now: float, **changes: float | None) -> Order:
        """`qty`, `limit`, `stop`, `type`; what is None stays."""
        order = self._open_order(order_id)
        wanted = {name: value for name, value in changes.items() if value is not None}
        as_wanted = replace(order.new, **wanted)  # type: ignore[arg-type] # checked by the next line
        self._checked(as_wanted)
        if as_wanted.qty < order.filled or (as_wanted.qty == order.filled and order.filled):
            raise Refused(-50, f"qty must be above the {order.filled} that are filled")
        order.new, order.qty, order.type = as_wanted, as_wanted.qty, as_wanted.type
        order.limit, order.stop = as_wanted.limit, as_wanted.stop
        self._tell(order)
        if self.rules.fill == "arrival":
            self._match(order, now)
        return order

    def cancel(self, order_id: str) -> Order:
        order = self._open_order(order_id)
        self._cancel(order, "cancelled by the client")
        return order

    def close(self, positions: Iterable[Position], now: float, source: str = BY_API) -> int:
        """Market orders against what is held; how many."""
        held = [position for position in positions if position.units]
        for position in held:
            side = -1 if position.units > 0 else 1
            closing = NewOrder(
                position.symbol, side, abs(position.units), MARKET, product=position.product, source=source
            )
            self._force(closing, now)
        return len(held)

    def by_hand(self, new: NewOrder, now: float) -> Order:
        """A trade that a person made elsewhere: it happens, whatever the rules are."""
        self._contract(new.symbol)
        return self._force(new, now)

    # prices and days

    def price(self, symbol: str, price: float, now: float) -> int:
        """The last price of `symbol`; what it makes tradable is filled. How many trades."""
        before = len(self.today.trades)
        self.last[symbol] = price
        for order in [order for order in self.today.orders.values() if order.open and order.symbol == symbol]:
            self._match(order, now)
        if self._past_square_off(now) and not self._squared_off:
            self._squared_off = True
            self.square_off(now)
        return len(self.today.trades) - before

    def square_off(self, now: float) -> None:
        """The broker closes intraday positions, its way: open orders first."""
        for order in [order for order in self.today.orders.values() if order.open and order.new.product == "INTRADAY"]:
            self._cancel(order, "cancelled at square-off")
        intraday = [position for position in self.today.positions.values() if position.product == "INTRADAY"]
        self.close(intraday, now, BY_BROKER)

    def begin(self, day: date, now: float) -> None:
        """The next day: nothing intraday is held, nothing is open, ids start anew."""
        self.square_off(now)
        for order in self.today.orders.values():
            if order.open:
                order.status, order.message = EXPIRED, "expired at the end of the day"
                self._tell(order)
        self.cash += sum(position.realized for position in self.today.positions.values())
        self.past.append(self.today)
        self.today, self._squared_off = Day(day), False
        for held in self.past[-1].positions.values():
            if held.units:
                carried = self.today.position(held.symbol, held.product)
                carried.book(held.units, held.average)
                carried.carried = held.units

    # money

    def margin_used(self) -> float:
        held = sum(abs(p.units) * self._margin(p.symbol, p.average) for p in self.today.positions.values())
        opening = sum(self._margin_needed(order) for order in self.today.orders.values() if order.open)
        return held + opening

    def realized(self) -> float:
        return sum(position.realized for position in self.today.positions.values())

    def available(self) -> float:
        return self.cash + self.realized() - self.margin_used()

    def makes_smaller(self, new: NewOrder) -> bool:
        """Whether nothing of it opens or turns a position."""
        held = self.today.units(new.symbol, new.product)
        return held * new.side < 0 and new.qty <= abs(held)

    # how

    def _contract(self, symbol: str) -> Contract:
        contract = self.contracts.get(symbol)
        if contract is None:
            raise Refused(-300, f"Invalid symbol provided: {symbol}")
        return contract

    def _checked(self, new: NewOrder) -> Contract:
        contract = self._contract(new.symbol)
        if not contract.tradable:
            raise Refused(-99, f"Trading is not allowed in {new.symbol}")
        if new.qty <= 0 or new.qty % contract.lot:
            raise Refused(-50, f"qty must be a multiple of the lot size {contract.lot}")
        if contract.freeze is not None and new.qty > contract.freeze:
            raise Refused(-50, f"qty is above the freeze quantity {contract.freeze}")
        for name, price, types in (
            ("limitPrice", new.limit, (LIMIT, STOP_LIMIT)),
            ("stopPrice", new.stop, (STOP_MARKET, STOP_LIMIT)),
        ):
            if new.type in types and (price <= 0 or not contract.fits_tick(price)):
                raise Refused(-50, f"{name} not a multiple of tick size {contract.tick_at(price):.4f}")
        return contract

    def _objection(self, order: Order, now: float) -> str | None:
        if self.contracts[order.symbol].segment in self.closed:
            return "RED:RULE:{Market is closed}"
        if order.new.product == "INTRADAY" and self._past_square_off(now):
            return "RED:RULE:{Intraday orders are not allowed after square-off}"
        needed = self._margin_needed(order)
        if needed > max(self.available(), 0.0) and needed > 0:
            return f"RED:Margin Shortfall:INR {needed - self.available():.2f} Available:INR {self.available():.2f}"
        return None

    def _past_square_off(self, now: float) -> bool:
        limit = self.rules.square_off
        return limit is not None and datetime_in_india(now).time() >= limit

    def _open_order(self, order_id: str) -> Order:
        order = self.today.orders.get(order_id)
        if order is None:
            raise Refused(-51, "Invalid order id provided")
        if not order.open:
            raise Refused(-52, "Not a pending order: it is filled, cancelled or rejected")
        return order

    def _margin(self, symbol: str, price: float) -> float:
        return price * self.contracts[symbol].margin_ratio

    def _margin_needed(self, order: Order) -> float:
        """Of what is not filled yet and makes the position larger."""
        held = self.today.units(order.symbol, order.new.product)
        after = held + order.new.side * order.remaining
        price = order.limit or order.stop or self.last.get(order.symbol, 0.0)
        return max(abs(after) - abs(held), 0) * self._margin(order.symbol, price)

    def _force(self, new: NewOrder, now: float) -> Order:
        """An order that nobody asks whether it may be: filled at the last price, or at its own."""
        price = new.limit or self.last.get(new.symbol)
        if price is None:
            raise Refused(-50, f"{new.symbol} has no price yet")
        self.last.setdefault(new.symbol, price)
        order = self._numbered(new, now)
        self.today.orders[order.id] = order
        self._tell(order)
        self._trade(order, order.qty, price, now)
        return order

    def _numbered(self, new: NewOrder, now: float) -> Order:
        exchange_id = str(FIRST_EXCHANGE_ID + len(self.today.orders) + 1)
        return Order(self.today.next_order_id(), exchange_id, new, new.qty, new.type, new.limit, new.stop, now)

    def _match(self, order: Order, now: float) -> None:
        price = self.last.get(order.symbol)
        if price is not None and order.takes(price):
            most = order.remaining if order.at_most is None else min(order.remaining, order.at_most - order.filled)
            self._trade(order, min(most, self.rules.units_per_fill or most), price, now)
        if order.open and order.at_most == order.filled and order.at_most is not None:
            self._cancel(order, "cancelled by the exchange")
        if order.open and order.new.validity == "IOC" and price is not None:
            self._cancel(order, "cancelled: immediate or cancel")

    def _trade(self, order: Order, qty: int, price: float, now: float) -> None:
        order.filled += qty
        order.value += qty * price
        if not order.remaining:
            order.status, order.message = TRADED, "TRADE CONFIRMED"
        number = str(len(self.today.trades) + 1)
        trade = Trade(number, order.id, order.exchange_id, order.new, order.type, qty, price, now)
        self.today.trades.append(trade)
        position = self.today.position(order.symbol, order.new.product)
        position.book(trade.units, price)
        self._tell(trade, position, order)

    def _cancel(self, order: Order, message: str) -> None:
        order.status, order.message = CANCELLED, message
        self._tell(order)

    def _tell(self, *changes: Change) -> None:
        self.changes += [replace(change) for change in changes]
