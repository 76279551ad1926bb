"""What an exchange keeps of one day: orders, trades, positions.

Quantities of orders and trades are positive, with a side (1 buy, -1 sell); `units` are signed. Prices in rupees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Literal

CANCELLED, TRADED, REJECTED, PENDING, EXPIRED = 1, 2, 5, 6, 7
LIMIT, MARKET, STOP_MARKET, STOP_LIMIT = 1, 2, 3, 4
STATUS = {CANCELLED: "cancelled", TRADED: "filled", REJECTED: "rejected", PENDING: "open", EXPIRED: "cancelled"}

BY_API, BY_HAND, BY_BROKER = "ITS", "W", "A"  # who placed an order, in the broker's letters


@dataclass(frozen=True)
class NewOrder:
    symbol: str
    side: int
    qty: int
    type: int = LIMIT
    limit: float = 0.0
    stop: float = 0.0
    product: str = "INTRADAY"
    validity: Literal["DAY", "IOC"] = "DAY"
    tag: str = ""
    source: str = BY_API


@dataclass
class Order:
    id: str
    exchange_id: str
    new: NewOrder
    qty: int
    type: int
    limit: float
    stop: float
    at: float
    filled: int = 0
    value: float = 0.0  # of what is filled, rupees
    status: int = PENDING
    message: str = ""
    at_most: int | None = None  # then the exchange cancels the rest

    @property
    def symbol(self) -> str:
        return self.new.symbol

    @property
    def remaining(self) -> int:
        return self.qty - self.filled

    @property
    def open(self) -> bool:
        return self.status == PENDING

    @property
    def average(self) -> float:
        return self.value / self.filled if self.filled else 0.0

    def takes(self, price: float) -> bool:
        """Whether it would trade at this price. A stop that is reached becomes what it stands for."""
        side = self.new.side
        if self.type in (STOP_MARKET, STOP_LIMIT):
            if side * (price - self.stop) < 0:
                return False
            self.type = MARKET if self.type == STOP_MARKET else LIMIT
        return self.type == MARKET or side * (self.limit - price) >= 0


@dataclass(frozen=True)
class Trade:
    number: str  # starts anew every day: unique within one only
    order_id: str
    exchange_id: str
    new: NewOrder
    type: int
    qty: int
    price: float
    at: float

    @property
    def symbol(self) -> str:
        return self.new.symbol

    @property
    def units(self) -> int:
        return self.new.side * self.qty


@dataclass
class Position:
    symbol: str
    product: str
    buy_qty: int = 0
    buy_value: float = 0.0
    sell_qty: int = 0
    sell_value: float = 0.0
    carried: int = 0  # units that came from the day before, already in buy or sell

    @property
    def id(self) -> str:
        return f"{self.symbol}-{self.product}"

    @property
    def units(self) -> int:
        return self.buy_qty - self.sell_qty

    @property
    def buy_average(self) -> float:
        return self.buy_value / self.buy_qty if self.buy_qty else 0.0

    @property
    def sell_average(self) -> float:
        return self.sell_value / self.sell_qty if self.sell_qty else 0.0

    @property
    def average(self) -> float:
        """Of what is held."""
        return 0.0 if not self.units else self.buy_average if self.units > 0 else self.sell_average

    @property
    def realized(self) -> float:
        return min(self.buy_qty, self.sell_qty) * (self.sell_average - self.buy_average)

    def unrealized(self, price: float) -> float:
        return self.units * (price - self.average)

    def book(self, units: int, price: float) -> None:
        if units > 0:
            self.buy_qty, self.buy_value = self.buy_qty + units, self.buy_value + units * price
        else:
            self.sell_qty, self.sell_value = self.sell_qty - units, self.sell_value - units * price


@dataclass
class Day:
    """The books of one day. Orders are numbered from 1 under its date."""

    day: date
    orders: dict[str, Order] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    positions: dict[tuple[str, str], Position] = field(default_factory=dict)

    def next_order_id(self) -> str:
        return f"{self.day:%y%m%d}{len(self.orders) + 1:08d}"

    def position(self, symbol: str, product: str) -> Position:
        return self.positions.setdefault((symbol, product), Position(symbol, product))

    def units(self, symbol: str, product: str) -> int:
        held = self.positions.get((symbol, product))
        return 0 if held is None else held.units
