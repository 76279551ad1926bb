"""The tables of the trading record (trading/ledger.py says what they are), and the way of older files to them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

LEGACY_OWNER = "champion:unknown/0"  # of what was traded before owners were on record, or by hand

metadata = MetaData()
intents = Table(
    "intents",
    metadata,
    Column("seq", Integer, primary_key=True),  # rows in the order they were written, here and below
    Column("intent_id", String, nullable=False, unique=True),
    Column("symbol", String, nullable=False, index=True),
    Column("bar_ns", BigInteger, nullable=False),
    Column("reason", String, nullable=False),
    Column("order_units", Float, nullable=False),
    Column("champion_from", Integer, nullable=False),
    Column("champion_to", Integer, nullable=False),
    Column("challenger_from", Integer, nullable=False),
    Column("challenger_to", Integer, nullable=False),
    Column("model_version", String, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("reported", Boolean, nullable=False),
    Column("decision_id", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("handover", String),
    Column("flatten_at_ns", BigInteger),
)
orders = Table(
    "orders",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("order_id", String, nullable=False, unique=True),
    Column("symbol", String, nullable=False),
    Column("exchange", String, nullable=False),
    Column("instrument", String, nullable=False),  # "": replayed on paper
    Column("units", Float, nullable=False),
    Column("filled_units", Float, nullable=False),  # what its fills add up to
    Column("limit_price", Float),
    Column("owner", String, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("decision_id", String, nullable=False),
    Column("model_version", String, nullable=False),
    Column("algo_id", String, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    Column("bar_ns", BigInteger, nullable=False),
    Column("status", String, nullable=False),  # open | cancelling | filled | cancelled | rejected
    Column("broker_id", String),  # null: not acknowledged
    Column("reason", String, nullable=False),  # why it was cancelled or rejected
    Index("ix_orders_open", "status", "symbol"),
    Index("ix_orders_rate", "exchange", "at_ns"),
    Index("ix_orders_at", "at_ns"),
)
fills = Table(
    "fills",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("order_id", ForeignKey("orders.order_id")),  # null: a trade by hand that was adopted
    Column("trade_id", String, nullable=False),  # of the exchange, which numbers them anew every day
    Column("symbol", String, nullable=False, index=True),
    Column("instrument", String, nullable=False),
    Column("units", Float, nullable=False),
    Column("price", Float, nullable=False),
    Column("cost", Float, nullable=False),
    Column("bar_ns", BigInteger, nullable=False),
    Column("owner", String, nullable=False),
    Column("decision_id", String, nullable=False),
    UniqueConstraint("order_id", "trade_id"),
)
foreign_trades = Table(
    "foreign_trades",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("day", String, nullable=False),
    Column("broker_id", String, nullable=False),
    Column("trade_id", String, nullable=False),
    Column("instrument", String, nullable=False),
    Column("units", Float, nullable=False),
    Column("adopted_units", Float, nullable=False),  # of them, what is in `fills` as well
    Column("price", Float, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
    UniqueConstraint("day", "broker_id", "trade_id"),
)
manual_trades = Table(  # answers to orders of a person (trading/manual.py)
    "manual_trades",
    metadata,
    Column("trade_id", String, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("refusal", String),  # null: its order was accepted
)
events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at_ns", BigInteger, nullable=False),
    Column("kind", String, nullable=False),
    Column("symbol", String, nullable=False),  # "": of none
    Column("body", String, nullable=False),
)
for _write in ("UPDATE", "DELETE"):
    _guard = f"CREATE TRIGGER events_no_{_write.lower()} BEFORE {_write} ON events "
    _refuse = "BEGIN SELECT RAISE(ABORT, 'events are append-only'); END"
    sa.event.listen(events, "after_create", DDL(_guard + _refuse))  # type: ignore[no-untyped-call] # SQLAlchemy's
books = Table(
    "books",
    metadata,
    Column("symbol", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("units", Float, nullable=False),
    Column("mode", String, nullable=False),
    Column("flatten_at_ns", BigInteger),
)
handovers = Table(
    "handovers",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("symbol", String, nullable=False, index=True),
    Column("from_owner", String, nullable=False),
    Column("to_owner", String, nullable=False),  # the same: a person released the symbol
    Column("units", Float, nullable=False),
    Column("mode", String, nullable=False),
    Column("flatten_at_ns", BigInteger),
    Column("epoch", Integer, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
)
refusals = Table(
    "refusals",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("order_id", String, nullable=False),
    Column("symbol", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("epoch", Integer),
    Column("reason", String, nullable=False),
    Column("at_ns", BigInteger, nullable=False),
)
fence = Table(
    "fence",
    metadata,
    Column("id", Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    Column("epoch", Integer, nullable=False),
)
desks = Table(  # none: its tags are as those of files that had no names
    "desks",
    metadata,
    Column("id", Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    Column("name", String, nullable=False),
)

_INTENT = """symbol, bar_ns, reason, order_units, champion_from, champion_to, challenger_from, challenger_to,
    model_version, epoch, reported"""
_ORDER = "order_id, symbol, exchange, units, owner, epoch, decision_id, model_version, algo_id, at_ns, bar_ns, status"
_FILL = "order_id, symbol, units, price, cost, bar_ns, owner, decision_id"
_NO_BROKER = "'', CASE o.status WHEN 'filled' THEN o.units ELSE 0 END, ''"  # whole orders, or nothing
_FIRST = {  # no owners; who refers to another table comes before it, and is copied after it
    "fills": f"INSERT INTO fills ({_FILL}, trade_id, instrument) "  # noqa: S608 - here and below our own column names
    "SELECT order_id, symbol, units, price, cost, bar_ns, :owner, '', order_id, '' FROM fills_old ORDER BY rowid",
    "orders": f"INSERT INTO orders ({_ORDER}, instrument, filled_units, reason) "  # noqa: S608
    "SELECT o.order_id, o.symbol, 'NSE', o.units, :owner, i.epoch, '', i.model_version, '', o.bar_ns, o.bar_ns, "
    f"o.status, {_NO_BROKER} FROM orders_old o JOIN intents_old i ON i.intent_id = o.order_id ORDER BY o.rowid",
    "intents": f"INSERT INTO intents (intent_id, {_INTENT}, decision_id, owner) "  # noqa: S608
    f"SELECT intent_id, {_INTENT}, '', :owner FROM intents_old ORDER BY rowid",
}
_SECOND = {  # whole orders only, filled on paper
    "fills": f"INSERT INTO fills (seq, {_FILL}, trade_id, instrument) "  # noqa: S608
    f"SELECT seq, {_FILL}, order_id, '' FROM fills_old",
    "orders": f"INSERT INTO orders (seq, {_ORDER}, instrument, filled_units, reason) "  # noqa: S608
    f"SELECT seq, {_ORDER}, {_NO_BROKER} FROM orders_old o",
}
_FIRST_BOOKS = (
    "INSERT INTO books (symbol, owner, units, mode) SELECT o.symbol, :owner, coalesce(sum(f.units), 0), 'normal' "
    "FROM orders o LEFT JOIN fills f ON f.order_id = o.order_id GROUP BY o.symbol"
)
_SECOND_INDEXES = ("ix_orders_open", "ix_orders_rate", "ix_fills_symbol")  # they go along when a table is renamed


def upgrade(connection: sa.Connection) -> None:
    """Make what is missing, and move what a file of an older version holds. Within the caller's transaction."""
    found = sa.inspect(connection)
    columns = {column["name"] for column in found.get_columns("orders")} if found.has_table("orders") else set()
    first, second = bool(columns) and "seq" not in columns, "seq" in columns and "broker_id" not in columns
    copies = _FIRST if first else _SECOND if second else {}
    for table in copies:
        connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {table}_old")
    if second:
        for index in _SECOND_INDEXES:
            connection.exec_driver_sql(f"DROP INDEX {index}")
    metadata.create_all(connection)
    for copy in reversed(copies.values()):
        connection.execute(sa.text(copy), {"owner": LEGACY_OWNER} if first else {})
    if first:
        connection.execute(sa.text(_FIRST_BOOKS), {"owner": LEGACY_OWNER})
    for table in copies:
        connection.exec_driver_sql(f"DROP TABLE {table}_old")
    if connection.execute(sa.select(fence)).one_or_none() is None:
        highest = sa.select(sa.func.coalesce(sa.func.max(intents.c.epoch), 0)).scalar_subquery()
        connection.execute(sa.insert(fence).values(id=1, epoch=highest))
