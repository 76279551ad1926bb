"""The SQL of the order gateway (trading/gateway.py), compiled once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import bindparam

from trading.ledger_statements import OPEN
from trading.ledger_tables import books, fence, fills, foreign_trades, handovers, orders, refusals

_LEFT = orders.c.units - orders.c.filled_units

LOCK = sa.update(fence).values(
    epoch=sa.case((fence.c.epoch < bindparam("seen"), bindparam("seen")), else_=fence.c.epoch)
)
FENCE = sa.select(fence.c.epoch)
ORDER = sa.select(orders).where(orders.c.order_id == bindparam("wanted"))
BOOK = sa.select(books).where(books.c.symbol == bindparam("wanted"))
PENDING = sa.select(_LEFT).where(orders.c.symbol == bindparam("wanted"), orders.c.status.in_(OPEN))
LATEST = (
    sa.select(orders.c.at_ns)
    .where(orders.c.exchange == bindparam("wanted"), orders.c.at_ns > bindparam("after"))
    .where(orders.c.at_ns < bindparam("before"))
    .order_by(orders.c.at_ns.desc())
    .limit(bindparam("most"))
)
TAKEN_BY = (
    sa.select(handovers.c.mode, handovers.c.flatten_at_ns)
    .where(handovers.c.symbol == bindparam("symbol"), handovers.c.from_owner == bindparam("owner"))
    .where(handovers.c.to_owner != bindparam("owner"))
    .order_by(handovers.c.seq.desc())
    .limit(1)
)
BOOKED = sa.select(fills.c.seq).where(
    fills.c.order_id == bindparam("wanted"), fills.c.trade_id == bindparam("of_trade")
)
APART = sa.select(sa.func.coalesce(sa.func.sum(foreign_trades.c.units - foreign_trades.c.adopted_units), 0.0)).where(
    foreign_trades.c.day == bindparam("of_day"), foreign_trades.c.instrument == bindparam("wanted")
)
FOREIGN = sa.select(foreign_trades.c.seq).where(
    foreign_trades.c.day == bindparam("of_day"),
    foreign_trades.c.broker_id == bindparam("of_broker_id"),
    foreign_trades.c.trade_id == bindparam("of_trade_id"),
)

NEW_ORDER, NEW_REFUSAL, NEW_FILL = sa.insert(orders), sa.insert(refusals), sa.insert(fills)
NEW_BOOK, NEW_HANDOVER, NEW_FOREIGN = sa.insert(books), sa.insert(handovers), sa.insert(foreign_trades)
CHANGED_BOOK = sa.update(books).where(books.c.symbol == bindparam("wanted"))
CHANGED_ORDER = sa.update(orders).where(orders.c.order_id == bindparam("wanted"))
OVER = CHANGED_ORDER.where(orders.c.status.in_(OPEN))
ACKNOWLEDGED = CHANGED_ORDER.where(orders.c.broker_id.is_(None))
TAKEN_AWAY = (  # nothing is at a broker on paper
    sa.update(orders)
    .where(orders.c.symbol == bindparam("of_symbol"), orders.c.status == "open")
    .values(status=sa.case((orders.c.instrument == "", "cancelled"), else_="cancelling"), reason="handed_over")
)
