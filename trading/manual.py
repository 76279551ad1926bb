"""Orders of a person: asked for in one file, answered in the ledger of whoever trades.

    backend --> <state_dir>/manual_trades.db --> live process --> event `command` --> desk --> risk, gateway, broker
            <-- manual_trades of its ledger  <--

The backend alone writes requests, and nothing of them ever changes; who trades a ledger alone writes answers there. So
either may be killed at any instant: a request has an id that its order's id follows from, and is traded once or not at
all. One that nobody took up within `GOOD_FOR_S` is refused by whoever sees it later: a price is no longer what a person
looked at.

A position that a person opens is the champion's to go on with: its owner is `champion:manual/0` until the champion
answers for the symbol. Units are signed and whole, times UTC nanoseconds of this machine.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import sqlalchemy as sa
import structlog

from trading.events import Body, Event
from trading.execution import Execution
from trading.ledger import Intent, Ledger
from trading.ledger_tables import manual_trades
from trading.market import SECOND_NS
from trading.ownership import Book

FILE = "manual_trades.db"
OWNER = "champion:manual/0"  # of what a person opened
GOOD_FOR_S = 10.0
BUSY_S = 5.0
MADE = (
    "CREATE TABLE IF NOT EXISTS requests (seq INTEGER PRIMARY KEY, trade_id TEXT NOT NULL UNIQUE, ledger TEXT NOT NULL,"
    " symbol TEXT NOT NULL, units INTEGER NOT NULL, by TEXT NOT NULL, reason TEXT NOT NULL, at_ns INTEGER NOT NULL)"
)
GUARDED = tuple(
    f"CREATE TRIGGER IF NOT EXISTS requests_no_{write.lower()} BEFORE {write} ON requests "
    "BEGIN SELECT RAISE(ABORT, 'requests are append-only'); END"
    for write in ("UPDATE", "DELETE")
)
log = structlog.get_logger(__name__)
COLUMNS = "trade_id, ledger, symbol, units, by, reason, at_ns"


@dataclass(frozen=True)
class ManualTrade:
    """A request. `trade_id` is the caller's and its key's: the same ones ask for the same trade."""

    trade_id: str
    ledger: str  # the file's name
    symbol: str
    units: int
    by: str
    reason: str
    at_ns: int

    @property
    def order_id(self) -> str:
        return f"{self.symbol}:manual:{self.trade_id}"

    @property
    def expires_ns(self) -> int:
        return self.at_ns + int(GOOD_FOR_S * SECOND_NS)


@dataclass(frozen=True)
class Answer:
    """`refusal` None: the gateway accepted its order."""

    trade_id: str
    at_ns: int
    refusal: str | None  # reason: detail


class Requests:
    """The file of requests. Any process may read it; one asks. Raises sqlite3.Error."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / FILE

    def ask(self, trade: ManualTrade) -> ManualTrade:
        """Put a request on record, durably; the one that is, if its id is known."""
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            for statement in (MADE, *GUARDED):
                connection.execute(statement)
            values = ", ".join("?" * len(fields(ManualTrade)))
            connection.execute(f"INSERT OR IGNORE INTO requests ({COLUMNS}) VALUES ({values})", astuple(trade))  # noqa: S608 - our own columns
            connection.commit()
        found = self.of(trade.trade_id)
        assert found is not None  # noqa: S101 - it was just written, and nothing is ever removed
        return found

    def of(self, trade_id: str) -> ManualTrade | None:
        return next((trade for _, trade in self._found("trade_id = ?", trade_id)), None)

    def after(self, seq: int, ledger: str, *, wait_s: float = BUSY_S) -> list[tuple[int, ManualTrade]]:
        """Requests of a ledger that came later, with their numbers. `wait_s`: for somebody who has it locked."""
        return self._found("seq > ? AND ledger = ?", seq, ledger, wait_s=wait_s)

    def newest(self, most: int) -> list[ManualTrade]:
        """At most so many, the oldest of them first."""
        wanted = "seq > (SELECT coalesce(max(seq), 0) FROM requests) - ?"
        return [trade for _, trade in self._found(wanted, most, wait_s=0.0)]

    def _found(self, wanted: str, *values: str | int, wait_s: float = BUSY_S) -> list[tuple[int, ManualTrade]]:
        if not self._file.exists():
            return []
        with self._connected(wait_s) as connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'requests'").fetchone() is None:
                return []  # it is being made
            query = f"SELECT seq, {COLUMNS} FROM requests WHERE {wanted} ORDER BY seq"  # noqa: S608 - our own words
            return [(row[0], ManualTrade(*row[1:])) for row in connection.execute(query, values)]

    @contextmanager
    def _connected(self, wait_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file, timeout=wait_s)) as connection:
            yield connection


class Inbox:
    """Requests as a live process takes them up: each once."""

    def __init__(self, state_dir: Path, ledger: Ledger) -> None:
        self._requests, self._ledger = Requests(state_dir), ledger
        self._seen, self._problem = 0, ""

    def new(self) -> list[ManualTrade]:
        """What has no answer yet. Costs some tens of microseconds where there is nothing.

        A file that cannot be read now keeps nobody from trading: what is asked for there is not traded, and too late
        later on.
        """
        try:
            found = self._requests.after(self._seen, self._ledger.path.name, wait_s=0.0)
        except sqlite3.Error as error:
            if str(error) != self._problem:
                log.error("manual_trades_not_readable", file=FILE, error=str(error))
            self._problem = str(error)
            return []
        self._seen = max((seq for seq, _ in found), default=self._seen)
        return [trade for _, trade in found if answer_of(self._ledger, trade.trade_id) is None]


def is_late(trade: ManualTrade) -> bool:
    return time.time_ns() > trade.expires_ns


def command(trade: ManualTrade) -> Body:
    """The body of the event. Whether it is too late was true when it was written, and stays so in a replay."""
    return {"command": "trade", "trade": asdict(trade), "late": is_late(trade)}


def traded(event: Event, execution: Execution, blocked: str | None) -> None:
    """What the desk does with it: its order, or a refusal, and the answer. A second time it changes nothing.

    `blocked`: why nothing is sent for that symbol now.
    """
    trade = ManualTrade(**event.body["trade"])
    if answer_of(execution.ledger, trade.trade_id) is not None:
        return
    refusal = None
    if execution.ledger.order(trade.order_id) is None:  # else it was ordered before a crash
        why = "too_late" if event.body["late"] else blocked
        refusal = (
            f"{why}: {WORDS.get(why, '')}"
            if why
            else execution.order(intent_of(trade, execution, event), trade.order_id)
        )
    answer(execution.ledger, Answer(trade.trade_id, event.at_ns, refusal))


WORDS = {
    "too_late": f"nobody took it up within {GOOD_FOR_S:g} s; look at the price, and ask again with another key",
    "not_reconciled": "the desk does not know yet what the broker holds",
    "disagrees": "the broker holds something else than the ledger says",
    "exiting": "what is held is being closed",
    "open_order": "an order of this symbol is open",
    "unknown_symbol": "the desk does not trade it: live.symbols",
}


def owner_of(book: Book) -> str:
    """Who orders for a person: whoever holds the position."""
    return str(book.owner) if book.units else OWNER


def intent_of(trade: ManualTrade, execution: Execution, event: Event) -> Intent:
    """Like a decision's, but that it is in no table: no bar was decided."""
    gateway = execution.gateway
    return Intent(
        trade.symbol,
        event.at_ns,
        "manual",
        float(trade.units),
        epoch=gateway.epoch(),
        owner=owner_of(gateway.book(trade.symbol)),
    )


def answer(ledger: Ledger, given: Answer) -> None:
    """Put an answer on record; the first one stays."""
    with ledger.quickly() as connection:
        connection.execute(sa.insert(manual_trades).prefix_with("OR IGNORE"), asdict(given))


def answer_of(ledger: Ledger, trade_id: str) -> Answer | None:
    wanted = sa.select(manual_trades).where(manual_trades.c.trade_id == trade_id)
    with ledger.engine.connect() as connection:
        row = connection.execute(wanted).one_or_none()
    return None if row is None else Answer(row.trade_id, row.at_ns, row.refusal)


def is_traded(ledger: Path) -> bool:
    """Whether a live process has that ledger now (its lock: flows/live_checks.py)."""
    try:
        with ledger.with_suffix(".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
