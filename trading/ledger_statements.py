"""The SQL of the ledger (trading/ledger.py), compiled once: much of it is asked after every event."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import bindparam

from trading.ledger_tables import desks, fills, foreign_trades, handovers, intents, orders, refusals

OPEN = ("open", "cancelling")  # of an order that the broker may still fill
EXITS = ("square_off", "flatten")  # reasons of intents that no model decided

DESK = sa.select(desks.c.name)
ADDED_TO = (intents, orders, fills, foreign_trades, handovers, refusals)
CAME_SO_FAR = (
    sa.select(sa.func.count(orders.c.broker_id)),
    sa.select(sa.func.count()).where(orders.c.status.not_in(OPEN)),
    sa.select(sa.func.count()).where(intents.c.reported),
)
INTENT = sa.select(intents).where(intents.c.intent_id == bindparam("wanted"))
LAST_INTENT = (
    sa.select(intents).where(intents.c.symbol == bindparam("of_symbol")).order_by(intents.c.seq.desc()).limit(1)
)
LAST_ACTING = LAST_INTENT.where((intents.c.order_units != 0.0) | intents.c.reason.in_(EXITS))
ORDERS = sa.select(orders).order_by(orders.c.seq)
ORDER = ORDERS.where(orders.c.order_id == bindparam("wanted"))
UNFINISHED = ORDERS.where(orders.c.status.in_(OPEN))
OPEN_OF = UNFINISHED.where(orders.c.symbol == bindparam("of_symbol"))
SLICES = ORDERS.where(
    (orders.c.order_id == bindparam("first"))
    | ((orders.c.order_id > bindparam("after")) & (orders.c.order_id < bindparam("before")))
)
BROKER = sa.select(fills.c.symbol, sa.func.sum(fills.c.units)).group_by(fills.c.symbol)
_BY_ORDER = sa.select(fills.c.order_id, sa.func.sum(fills.c.units).label("units")).group_by(fills.c.order_id).subquery()
_FILLED = sa.func.coalesce(_BY_ORDER.c.units, 0.0)
MISCOUNTED = (
    sa.select(orders.c.order_id, orders.c.filled_units, _FILLED)
    .outerjoin(_BY_ORDER, _BY_ORDER.c.order_id == orders.c.order_id)
    .where(orders.c.filled_units != _FILLED)
)
