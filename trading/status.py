"""What a person asks first: may orders go out, who said otherwise, what is held, what is open, what has today earned.

One document for `hrm trade status` and `GET /api/trading/status`, from the switch and the ledgers that exist. Ledgers
are read as they are: whatever writes them goes on.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DatabaseError

from core.errors import BrokerError, DataError
from trading.events import EventLog, Quotes, quotes_of
from trading.ledger import Ledger, OrderState, Position, position_of
from trading.market import day_of
from trading.switch import facts, read, utc

LEDGERS = {"paper.db": "replayed on paper", "live-paper.db": "live, on paper", "live.db": "live, real orders"}


def status(state_dir: Path, day: date) -> dict[str, Any]:
    """Everything, in plain values. `day` is the exchange's, whose profit is told.

    A ledger that cannot be read says so in its place: the others, and the switch, are told all the same.
    """
    files = {name: state_dir / name for name in LEDGERS}
    found = {name: _account(file, day) for name, file in files.items() if file.exists()}
    return {"switch": facts(read(state_dir)), "day": day.isoformat(), "ledgers": found}


def today() -> date:
    return day_of(time.time_ns())


def _account(file: Path, day: date) -> dict[str, Any]:
    what: dict[str, Any] = {"what": LEDGERS[file.name]}
    try:
        ledger = Ledger(file)
        try:
            return what | _money(ledger, day) | {"open_orders": [_order(state) for state in ledger.unfinished()]}
        finally:
            ledger.close()
    except (BrokerError, DataError, DatabaseError) as error:
        return what | {"problem": str(error)}


def _money(ledger: Ledger, day: date) -> dict[str, Any]:
    """What is held, at the last prices that a live desk was told, and what the fills of `day` realised after costs."""
    positions, realised, costs, fills = ledger.positions(), 0.0, 0.0, 0
    for now in positions:
        earlier = [fill for fill in ledger.fills(now.symbol) if day_of(fill.bar_ns) < day]
        before = position_of(now.symbol, earlier)
        realised += now.realised - before.realised
        costs += now.costs - before.costs
        fills += now.fills - before.fills
    clock = EventLog(ledger).last_of("clock")
    prices = {} if clock is None else quotes_of(clock)
    return {
        "positions": [_held(position, prices) for position in positions if position.units],
        "today": {"realised_rupees": realised, "costs_rupees": costs, "fills": fills},
    }


def _held(position: Position, prices: Quotes) -> dict[str, Any]:
    """With the open profit; None where no price is on record, as on a replay."""
    price, at_ns = prices.get(position.symbol, (None, None))
    profit = None if price is None else position.units * (price - position.average_price)
    return asdict(position) | {"price": price, "priced_at": utc(at_ns), "open_rupees": profit}


def _order(state: OrderState) -> dict[str, Any]:
    order = state.order
    named = {name: getattr(order, name) for name in ("order_id", "symbol", "instrument", "units", "limit_price")}
    return named | {
        "open_units": state.open_units,
        "status": state.status,
        "broker_id": state.broker_id,  # None: nobody knows yet whether it arrived
        "since": utc(order.at_ns),
    }
