"""What a broker is to trading: three calls, and what it says about orders whenever it says it.

    place      the answer is certain (Placed, Declined), or it is Unknown: then the order may be at the exchange, is
               looked for by its tag, and is never sent again
    cancel     a request; that an order is cancelled is known from a report or a snapshot only
    snapshot   all of today's orders and trades, and what is held: asked for again and again, whatever a stream says

Units are signed (positive: bought), prices in rupees, times UTC nanoseconds. A trade is a part of an order that was
filled, with an id of the exchange: it is booked once, however often it is told.
"""

from __future__ import annotations

from base64 import b32encode
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, Protocol

OrderStatus = Literal["open", "filled", "cancelled", "rejected"]

TAG_PREFIX = "HRM"  # of every tag of ours: an order with another one, or none, was made by hand


@dataclass(frozen=True)
class Ticket:
    """An order as it is sent: a limit that the market fills at once, or that stays open until it is cancelled."""

    order_id: str  # ours
    instrument: str  # the broker's symbol, such as NSE:NIFTY26NOVFUT
    units: int
    limit_price: float
    desk: str = ""  # whose it is: its ledger's name

    @property
    def tag(self) -> str:
        return tag_of(self.order_id, self.desk)


@dataclass(frozen=True)
class Placed:
    broker_id: str


@dataclass(frozen=True)
class Declined:
    """It is certainly not at the exchange, and never will be."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """Nobody knows whether it is at the exchange."""

    reason: str


@dataclass(frozen=True)
class OrderReport:
    broker_id: str
    tag: str  # "": none
    instrument: str
    units: int  # of the whole order
    filled_units: int
    status: OrderStatus
    message: str = ""


@dataclass(frozen=True)
class Trade:
    trade_id: str
    broker_id: str  # of its order
    tag: str  # "": none
    instrument: str
    units: int
    price: float
    at_ns: int


@dataclass(frozen=True)
class Holding:
    instrument: str
    units: int


@dataclass(frozen=True)
class Snapshot:
    """As of one question. What is not in it is not known: a missing holding is not flat."""

    at_ns: int  # when it was asked for: what happened later may be missing
    orders: tuple[OrderReport, ...]
    trades: tuple[Trade, ...]
    holdings: tuple[Holding, ...]
    funds_rupees: float  # free for new orders


class Broker(Protocol):
    def place(self, ticket: Ticket) -> Placed | Declined | Unknown: ...

    def cancel(self, broker_id: str) -> None:
        """Ask for it. A failure is no exception: the next snapshot shows whether it came about."""

    def snapshot(self) -> Snapshot:
        """Raises BrokerError (`retryable`) without a whole answer, ConfigError (`logged_out`) after the login's end."""


def tag_of(order_id: str, desk: str = "") -> str:
    """What the broker knows an order by: 29 letters and digits, the same for the same order in every process.

    Two desks decide at the same bars: with a name of its own neither takes the other's orders for its own.
    """
    named = f"{desk}/{order_id}" if desk else order_id
    return TAG_PREFIX + b32encode(sha256(named.encode()).digest()).decode()[:26]
