"""Orders and books of the account at Fyers: trading/broker.py's `Broker`, for any number of threads.

An order is a limit order, intraday, good for the day, with our tag. The API has no field for the exchange's algo id:
the broker adds the one of the app. What became of an order is certain only if the server itself said so in JSON:

    200, ok, code 1101 and an id         Placed
    200 or 4xx, error, code below zero   Declined: it names why, and gives no id
    everything else                      Unknown: no answer, 5xx, HTML, 201 (accepted, not confirmed yet)
"""

from __future__ import annotations

import math
from typing import Any

import structlog

from trading.broker import Declined, Placed, Snapshot, Ticket, Unknown
from trading.fyers import rows
from trading.fyers.client import Access, Clients, Reply
from trading.fyers.pace import AT_ONCE

SUBMITTED = 1101
LIMIT = 1

log = structlog.get_logger(__name__)


class FyersBroker:
    def __init__(self, access: Access) -> None:
        self._access = access
        self._clients = Clients(access)

    @property
    def client_id(self) -> str:
        return self._access.credentials.client_id

    @property
    def http_date(self) -> tuple[int, int] | None:
        """The server's time of its newest answer (to the second) and this machine's when it came, in ns."""
        return self._clients.http_date

    def place(self, ticket: Ticket) -> Placed | Declined | Unknown:
        if ticket.units == 0 or not (math.isfinite(ticket.limit_price) and ticket.limit_price > 0):
            return Declined(f"not sent: {ticket.units} units at {ticket.limit_price}")
        return self._outcome(self._clients.here().call("place_order", _body(ticket), share=AT_ONCE))

    def cancel(self, broker_id: str) -> None:
        self._clients.here().call("cancel_order", {"id": broker_id}, share=AT_ONCE)  # a refusal is logged there

    def snapshot(self) -> Snapshot:
        """Raises BrokerError without a whole answer (see client.py; `malformed` too), ConfigError `logged_out`."""
        client, asked_ns = self._clients.here(), self._access.now_ns()
        orders = client.ask("orderbook", what="orders")
        trades = client.ask("tradebook", what="trades")
        positions = client.ask("positions", what="positions")
        funds = client.ask("funds", what="funds")
        return Snapshot(
            at_ns=asked_ns,
            orders=rows.order_reports(orders),
            trades=rows.trades(trades),
            holdings=rows.holdings(positions),
            funds_rupees=rows.free_rupees(funds),
        )

    def market_status(self) -> dict[str, str]:
        """OPEN, CLOSED and others by segment of the calendar: cash, index_futures. Raises BrokerError, ConfigError."""
        return rows.market_status(self._clients.here().ask("market_status", what="market status"))

    def close(self) -> None:
        self._clients.close()

    def _outcome(self, reply: Reply) -> Placed | Declined | Unknown:
        broker_id = reply.body.get("id")
        said = f"{self._access.credentials.hide(reply.said)[:200]} ({reply.code})"
        if reply.accepted and reply.code == SUBMITTED and isinstance(broker_id, str) and broker_id:
            return Placed(broker_id)
        if _names_a_rejection(reply):
            return Declined(said)
        return Unknown(said)


def _names_a_rejection(reply: Reply) -> bool:
    """A body with an id is no refusal of the request: that order is in the books."""
    if reply.body.get("s") != "error" or reply.body.get("id"):
        return False
    heard = reply.status == 200 or (reply.status is not None and 400 <= reply.status < 500 and reply.status != 408)
    return heard and ((reply.code or 0) < 0 or reply.rate_limited)


def _body(ticket: Ticket) -> dict[str, Any]:
    return {
        "symbol": ticket.instrument,
        "qty": abs(ticket.units),
        "type": LIMIT,
        "side": 1 if ticket.units > 0 else -1,
        "productType": "INTRADAY",
        "limitPrice": ticket.limit_price,
        "stopPrice": 0,
        "validity": "DAY",
        "disclosedQty": 0,
        "offlineOrder": False,
        "orderTag": ticket.tag,
        "isSliceOrder": False,
    }
