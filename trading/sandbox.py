"""A simulated broker on live prices: the default of live trading. Orders, trades and holdings as a real one tells them.

A ticket is acknowledged at once and filled, wholly, at the next tick of what it buys or sells whose price its limit
allows; until then it stays open. There is no spread and no queue: what a real order would lose there is not simulated.
Charges are the exchange's, put to the fills by the desk; here they only lessen the funds.

It is a simulation, so its truth is the ledger: a new one has the orders of the ledger that it acknowledged, their
fills and what they add up to. What was on its way when the process died never arrived, and a fill that the ledger was
not told of never happened. Ids follow from the order's: the same order has the same ids in every process.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time
from typing import cast

import sqlalchemy as sa

from trading.broker import Holding, OrderReport, OrderStatus, Placed, Snapshot, Ticket, Trade
from trading.costs import CostModel, Side
from trading.equity import Money
from trading.ledger import Fill, Ledger, OrderState, Position, position_after, state_of
from trading.ledger_statements import ORDERS
from trading.ledger_tables import fills, orders
from trading.market import SECOND_NS, day_of
from trading.ticks import Tick

Tell = Callable[[OrderReport | Trade], None]


class SandboxBroker:
    """A Broker, and its own order stream. `see` every tick of what is traded, from any thread."""

    def __init__(
        self,
        ledger: Ledger,
        costs: Mapping[str, CostModel],
        *,
        capital: float,
        margin_ratio: float,
        clock: Callable[[], int],
    ) -> None:
        """`costs`: by the broker's symbol; `margin_ratio`: of what is held, that is not free for new orders."""
        self.costs, self.capital, self.margin_ratio, self.clock = costs, capital, margin_ratio, clock
        self._lock = threading.Lock()
        self._tell: Tell | None = None
        day = day_of(clock())
        self._tickets: dict[str, Ticket] = {}  # by the broker's id: open
        self._reports: dict[str, OrderReport] = {}
        self._trades: list[Trade] = []
        self._positions = _positions(ledger)
        for state in _acknowledged(ledger, day):
            self._take_up(state)
        self._trades = _trades(ledger, day, self._reports)

    def place(self, ticket: Ticket) -> Placed:
        """A second time it is the same order."""
        broker_id = f"SIM{ticket.tag}"
        with self._lock:
            if broker_id not in self._reports:
                self._tickets[broker_id] = ticket
                self._reports[broker_id] = OrderReport(
                    broker_id, ticket.tag, ticket.instrument, ticket.units, 0, "open"
                )
        return Placed(broker_id)

    def cancel(self, broker_id: str) -> None:
        with self._lock:
            if self._tickets.pop(broker_id, None) is not None:
                report = replace(self._reports[broker_id], status="cancelled", message="asked for")
                self._reports[broker_id] = report
                self._say(report)

    def snapshot(self) -> Snapshot:
        with self._lock:
            held = (Holding(name, int(each.units)) for name, each in self._positions.items())
            return Snapshot(
                self.clock(), tuple(self._reports.values()), tuple(self._trades), tuple(held), self._funds()
            )

    def start(self, tell: Tell, missed: Callable[[], None]) -> None:
        """Tell what happens from now on, as an order stream does."""
        self._tell = tell
        missed()

    def close(self) -> None:
        self._tell = None

    def see(self, tick: Tick) -> None:
        """Fill what this price allows. What is no price fills nothing."""
        if not (math.isfinite(tick.price) and tick.price > 0):
            return
        with self._lock:
            for broker_id, ticket in list(self._tickets.items()):
                if ticket.instrument == tick.symbol and _allows(ticket, tick.price):
                    self._fill(broker_id, ticket, tick)

    def _fill(self, broker_id: str, ticket: Ticket, tick: Tick) -> None:
        del self._tickets[broker_id]
        trade = Trade(
            f"{broker_id}-1", broker_id, ticket.tag, ticket.instrument, ticket.units, tick.price, self.clock()
        )
        report = replace(self._reports[broker_id], filled_units=ticket.units, status="filled")
        self._reports[broker_id] = report
        self._trades.append(trade)
        before = self._positions.get(ticket.instrument, _flat(ticket.instrument))
        self._positions[ticket.instrument] = position_after(before, self._booked(trade))
        self._say(trade)
        self._say(report)

    def _booked(self, trade: Trade) -> Fill:
        side = Side.BUY if trade.units > 0 else Side.SELL
        cost = self.costs[trade.instrument](day_of(trade.at_ns)).of(side, trade.price, abs(trade.units))
        return Fill("", trade.instrument, float(trade.units), trade.price, cost, trade.at_ns, "")

    def _say(self, what: OrderReport | Trade) -> None:
        if self._tell is not None:
            self._tell(what)

    def _funds(self) -> float:
        held = self._positions.values()
        margin = self.margin_ratio * math.fsum(abs(each.units) * each.average_price for each in held)
        return self.capital + math.fsum(each.realised for each in held) - margin

    def _take_up(self, state: OrderState) -> None:
        order, broker_id = state.order, str(state.broker_id)
        units, filled = int(order.units), int(state.filled_units)
        status = "open" if state.is_open else cast(OrderStatus, state.status)
        self._reports[broker_id] = OrderReport(
            broker_id, state.tag, order.instrument, units, filled, status, state.reason
        )
        if state.is_open and order.limit_price is not None:
            ticket = Ticket(order.order_id, order.instrument, int(order.units), order.limit_price, state.desk)
            self._tickets[broker_id] = ticket


def _allows(ticket: Ticket, price: float) -> bool:
    return price <= ticket.limit_price if ticket.units > 0 else price >= ticket.limit_price


def _flat(instrument: str) -> Position:
    return Position(instrument, 0.0, 0.0, 0.0, 0.0, 0)


def _positions(ledger: Ledger) -> dict[str, Position]:
    """What each symbol's fills add up to, by the instrument it was last traded in."""
    money = Money(ledger, (), 0.0)
    return {money.instruments[symbol]: each for symbol, each in money.positions.items() if money.instruments[symbol]}


def _acknowledged(ledger: Ledger, day: date) -> list[OrderState]:
    """The day's orders, as far as this broker has them: those of earlier days are over."""
    begins_ns = int(datetime.combine(day, time(), UTC).timestamp()) * SECOND_NS
    wanted = ORDERS.where(orders.c.broker_id.is_not(None), orders.c.at_ns >= begins_ns)
    with ledger.engine.connect() as connection:
        return [state_of(row, ledger.desk) for row in connection.execute(wanted)]


def _trades(ledger: Ledger, day: date, reports: Mapping[str, OrderReport]) -> list[Trade]:
    """The day's fills of those orders."""
    query = sa.select(fills, orders.c.broker_id).join(orders, orders.c.order_id == fills.c.order_id)
    with ledger.engine.connect() as connection:
        rows = connection.execute(query.where(orders.c.broker_id.in_(list(reports))).order_by(fills.c.seq)).all()
    return [
        Trade(
            row.trade_id,
            row.broker_id,
            reports[row.broker_id].tag,
            row.instrument,
            int(row.units),
            row.price,
            row.bar_ns,
        )
        for row in rows
    ]
