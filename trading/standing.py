"""What the ledger says about today's orders and positions, as of one instant: one side of a reconciliation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time

import sqlalchemy as sa

from trading.broker import TAG_PREFIX, OrderReport, Trade
from trading.ledger import Ledger, OrderState, state_of
from trading.ledger_statements import OPEN, ORDERS
from trading.ledger_tables import fills, foreign_trades, orders
from trading.market import SECOND_NS, day_of


@dataclass(frozen=True)
class Ours:
    """Units are signed; instruments are the broker's symbols."""

    day: date
    orders: Mapping[str, OrderState] = field(default_factory=dict)  # by tag: the day's, and all that are not over
    trades: Mapping[tuple[str, str], int] = field(default_factory=dict)  # when, by order id and trade id
    foreign: Mapping[tuple[str, str], tuple[str, int]] = field(default_factory=dict)  # (instrument, when) of the day's
    # trades by hand, by the broker's order id and trade id
    units: Mapping[str, float] = field(default_factory=dict)  # by instrument: what our fills add up to
    apart: Mapping[str, float] = field(default_factory=dict)  # by instrument: what was made by hand today, and left so
    symbols: Mapping[str, str] = field(default_factory=dict)  # by instrument, of all that we trade or hold

    def order_of(self, tag: str, broker_id: str, instrument: str) -> OrderState | None:
        """Whose the broker's order is: by its tag, or without one by the id that it acknowledged today."""
        if tag:
            return self.orders.get(tag)
        own = (state for state in self.orders.values() if state.broker_id == broker_id)  # ids come again another day
        return next((s for s in own if s.order.instrument == instrument and day_of(s.order.at_ns) == self.day), None)


def ours(ledger: Ledger, day: date, symbols: Mapping[str, str]) -> Ours:
    """Read the ledger. `symbols`, by instrument, are of all that is traded on `day`."""
    held = sa.select(fills.c.instrument, fills.c.symbol, sa.func.sum(fills.c.units)).where(fills.c.instrument != "")
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")  # what follows is read as of one instant
        found = _read(connection, day, symbols, _of_day(day) | orders.c.status.in_(OPEN), desk=ledger.desk)
        net = connection.execute(held.group_by(fills.c.instrument, fills.c.symbol)).tuples().all()
    return replace(
        found,
        units={instrument: units for instrument, _, units in net},
        symbols={instrument: symbol for instrument, symbol, units in net if units} | dict(found.symbols),
    )


def concerned(ledger: Ledger, day: date, symbols: Mapping[str, str], told: Sequence[OrderReport | Trade]) -> Ours:
    """As `ours`, but only what single reports of instruments in `symbols` can be about; units are not read.

    A desk of many symbols hears of thousands of orders a day: it may not read all of them each time.
    """
    ids = [each.broker_id for each in told]
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        wanted = orders.c.status.in_(OPEN) | (_of_day(day) & orders.c.broker_id.in_(ids))
        found = _read(connection, day, symbols, wanted, desk=ledger.desk)
    known = all(each.tag in found.orders or not each.tag.startswith(TAG_PREFIX) for each in told)
    return found if known and all(each.instrument in symbols for each in told) else ours(ledger, day, symbols)


def _of_day(day: date) -> sa.ColumnElement[bool]:
    return orders.c.at_ns >= int(datetime.combine(day, time(), UTC).timestamp()) * SECOND_NS


def _read(
    connection: sa.Connection, day: date, symbols: Mapping[str, str], wanted: sa.ColumnElement[bool], *, desk: str
) -> Ours:
    """The orders that are `wanted`, with their trades, and the day's trades by hand."""
    booked = sa.select(fills.c.order_id, fills.c.trade_id, fills.c.bar_ns).join(orders).where(wanted)
    states = [state_of(row, desk) for row in connection.execute(ORDERS.where(wanted))]
    foreign = connection.execute(sa.select(foreign_trades).where(foreign_trades.c.day == day.isoformat())).all()
    apart: dict[str, float] = {}
    for row in foreign:
        apart[row.instrument] = apart.get(row.instrument, 0.0) + row.units - row.adopted_units
    return Ours(
        day,
        orders={state.tag: state for state in states},
        trades={(row.order_id, row.trade_id): row.bar_ns for row in connection.execute(booked)},
        foreign={(row.broker_id, row.trade_id): (row.instrument, row.at_ns) for row in foreign},
        apart=apart,
        symbols={state.order.instrument: state.order.symbol for state in states if state.order.instrument}
        | dict(symbols),
    )
