"""What a live process begins with: its desk, and what its `start` event keeps, so that a day's log says all it needs.

That is the settings that trading follows, the books with what they earned so far, orders that are not over, the newest
intents, the fence and the highest equity; and how many rows the process found, which tells how far the one before it
came with its last event. `seed` puts them into an empty ledger, where a replay goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from secrets import token_hex
from typing import Any

import sqlalchemy as sa

from core.settings import Settings
from trading.calendar import corrections
from trading.costs import nse_index_future_costs
from trading.desk import Desk
from trading.equity import Money, marks
from trading.features import schema
from trading.instruments import instrument
from trading.ledger import Ledger
from trading.ledger_statements import EXITS, OPEN
from trading.ledger_tables import books, desks, fence, fills, intents, orders
from trading.market import SECOND_NS

SECTIONS = ("trading", "risk", "live")  # of the settings
CARRIED = "carried"  # trade id of what a symbol's fills so far add up to


def name_desk(ledger: Ledger, day: date) -> None:
    """Give a ledger that has none its name, unless the broker may know an order of it: of today, or open."""
    begins_ns = int(datetime.combine(day, time(), UTC).timestamp()) * SECOND_NS
    known = sa.select(orders.c.seq).where((orders.c.at_ns >= begins_ns) | orders.c.status.in_(OPEN)).limit(1)
    with ledger.engine.connect() as connection:
        found = connection.execute(known).first()
    if not ledger.desk and found is None:
        ledger.name_desk(token_hex(8))


def live_desk(ledger: Ledger, settings: Settings, day: date) -> Desk:
    """The desk of `settings.live` over a ledger. Charges are the exchange's; slippage is in the fills themselves."""
    interval_s = 60 * settings.live.interval_min
    usual = corrections().segments["cash"].on(day)  # the index's hours: its bars give the signal
    session = datetime.combine(day, usual.close) - datetime.combine(day, usual.open)
    return Desk(
        ledger,
        settings,
        {symbol: nse_index_future_costs(0.0, instrument(symbol)) for symbol in settings.live.symbols},
        session_bars=int(session.total_seconds()) // interval_s,
        observation=schema(settings.observation, interval_s=interval_s),
    )


def start_body(desk: Desk) -> dict[str, Any]:
    """The body of the `start` event of the process of a desk, after it recovered."""
    ledger, settings = desk.ledger, desk.settings
    money = Money(ledger, (), settings.trading.initial_capital)
    with ledger.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")  # what follows is read as of one instant
        tables = {
            "books": _rows(connection, sa.select(books)),
            "orders": _rows(connection, sa.select(orders).where(orders.c.status.in_(OPEN)).order_by(orders.c.seq)),
            "intents": _rows(connection, sa.select(intents).where(intents.c.seq.in_(_NEWEST)).order_by(intents.c.seq)),
            "equity": _rows(connection, sa.select(marks).order_by(marks.c.day.desc()).limit(1)),
            "fence": _rows(connection, sa.select(fence)),
            "desks": _rows(connection, sa.select(desks)),
        }
    owners = {row["symbol"]: row["owner"] for row in tables["books"]}
    tables["fills"] = [
        {
            "trade_id": CARRIED,
            "symbol": symbol,
            "instrument": money.instruments[symbol],
            "units": position.units,
            "price": position.average_price,
            "cost": -position.realised,
            "bar_ns": 0,
            "owner": owners[symbol],
            "decision_id": "",
        }
        for symbol, position in money.positions.items()
    ]
    rows = {"found": desk.found, "now": ledger.rows()}
    return {"settings": settings.model_dump(mode="json", include=set(SECTIONS)), "opening": tables, "rows": rows}


def seed(ledger: Ledger, body: Mapping[str, Any]) -> None:
    """Write what a `start` event says into a ledger that is empty."""
    Money(ledger, (), 0.0)  # makes the table of what the desk is worth
    with ledger.engine.begin() as connection:
        connection.execute(sa.delete(fence))
        for table in (fence, books, marks, intents, orders, fills):
            rows = body["opening"][table.name]
            if rows:
                connection.execute(sa.insert(table), rows)
    for row in body["opening"].get("desks", ()):  # older logs have none
        ledger.name_desk(row["name"])


def settings_of(body: Mapping[str, Any], settings: Settings) -> Settings:
    """`settings` as they were for trading when the process began."""
    sections = {name: type(getattr(settings, name)).model_validate(body["settings"][name]) for name in SECTIONS}
    return settings.model_copy(update=sections)


_ACTS = (intents.c.order_units != 0.0) | intents.c.reason.in_(EXITS)
_NEWEST = sa.union(
    sa.select(sa.func.max(intents.c.seq)).group_by(intents.c.symbol),
    sa.select(sa.func.max(intents.c.seq)).where(_ACTS).group_by(intents.c.symbol),
)


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seq"} for row in connection.execute(query).mappings()]
