"""What a person says about a live ledger: that a symbol may be traded again, or that a position is gone.

    hrm trade release SYMBOL --ledger live.db             a hand-over's restriction ends
    hrm trade closed SYMBOL --price P --ledger live.db    the broker closed it on a day before, and tells of it no more

Each is a file beside the ledger until the live process that has it took it up, as an event `command`: at once where one
runs, else when the next one begins. Killed in between, it takes it up again, without effect. Only that process writes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import structlog

from core.files import write_json
from trading.broker import Trade
from trading.costs import CostModel, trade_rupees
from trading.equity import Money
from trading.events import Body, Event
from trading.gateway import OrderGateway
from trading.market import day_of

BY_HAND = "by hand"  # instead of the broker's id of an order

log = structlog.get_logger(__name__)


def ask(ledger: Path, symbol: str, body: Body) -> None:
    """Leave a command for whoever trades a ledger; durable when it returns."""
    folder = _folder(ledger)
    folder.mkdir(mode=0o700, exist_ok=True)
    write_json(folder / f"{time.time_ns()}.json", {"symbol": symbol, "body": body})


def new(ledger: Path, symbols: Collection[str]) -> Iterator[tuple[str, Body, Callable[[], None]]]:
    """What was asked for and not taken up, the oldest first, and what to call once it was.

    What cannot be read, or is of a symbol that is not traded, is put aside under another name and logged.
    """
    for file in sorted(_folder(ledger).glob("*.json")):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            symbol, body = said["symbol"], dict(said["body"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            _put_aside(file, f"not readable: {error!r}")
            continue
        if symbol in symbols and _can_be_done(body):
            yield symbol, body, partial(file.unlink, missing_ok=True)
        else:
            _put_aside(file, f"{body} of {symbol} is no command, or the symbol is not traded here")


def closed(event: Event, gateway: OrderGateway, money: Money, cost: CostModel) -> str | None:
    """Book that what is held of a symbol is gone, at the price that a person read; why not, if so.

    What was traded today is in the broker's own books, and is taken from there.
    """
    symbol, price, held = event.symbol, float(event.body["price"]), gateway.book(event.symbol).units
    if not held:
        return None
    day = day_of(event.at_ns)
    if day_of(gateway.ledger.fills(symbol)[-1].bar_ns) == day:
        return f"{symbol} was traded today: the broker's own book says what is held"
    trade = Trade(f"closed:{event.at_ns}", BY_HAND, "", money.instruments[symbol], -int(held), price, event.at_ns)
    gateway.foreign(trade, symbol, adopt=True, cost=trade_rupees(cost(day), trade.units, price, filled=0.0))
    money.update()
    return None


def _can_be_done(body: Body) -> bool:
    price = body.get("price")
    is_price = isinstance(price, float) and math.isfinite(price) and price > 0.0
    return body.get("command") == "release" or (body.get("command") == "closed" and is_price)


def _put_aside(file: Path, why: str) -> None:
    """Out of the way, and kept: it is not looked at again."""
    log.error("command_not_taken", file=str(file), why=why)
    file.rename(file.with_suffix(".refused"))


def _folder(ledger: Path) -> Path:
    return ledger.with_suffix(".commands")
