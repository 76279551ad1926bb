"""One trading ledger as it grows: fills, what each symbol's owner holds, orders that were refused.

The file is somebody else's, who goes on writing: it is never made here, nor changed, nor kept open, and looked into
only when it, or the log beside it, was written.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from backend.hub import News, now, utc
from core.errors import BrokerError
from trading.ledger import Fill, Position, position_after
from trading.market import SECOND_NS

MOST_ROWS = 500  # of one look; the rest comes with the next
BUSY_S = 0.2
TICK_NS = 50_000_000
FILLS = (
    "SELECT seq, coalesce(order_id, '') AS order_id, symbol, units, price, cost, bar_ns, owner, decision_id, trade_id, "
    "instrument FROM fills WHERE seq > ? ORDER BY seq LIMIT ?"
)
REFUSALS = "SELECT seq, order_id, symbol, owner, reason, at_ns FROM refusals WHERE seq > ? ORDER BY seq LIMIT ?"
BOOKS = "SELECT symbol, owner, units, mode, flatten_at_ns FROM books"
Held = tuple[str, float, str, int | None]  # owner, units, mode, flatten_at_ns


@dataclass(frozen=True)
class Stamp:
    """By which it is known that nobody has written: of the file, and of the log beside it."""

    identity: tuple[int, int]
    changed_ns: int
    size: int
    log_changed_ns: int
    log_size: int

    @property
    def is_settled(self) -> bool:
        """Old enough that the next write has another time: file systems count in milliseconds."""
        return time.time_ns() - max(self.changed_ns, self.log_changed_ns) > TICK_NS


class LedgerTail:
    """`look` tells nothing as long as there is no such file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._past = True  # what is there at the first look was told long ago
        self._identity: tuple[int, int] | None = None
        self._seen: Stamp | None = None
        self._forget()

    def look(self) -> Iterator[News]:
        """Raises BrokerError for a file that is no ledger, or one that is kept locked."""
        stamp, past = self._stamp(), self._past
        self._past = False
        if stamp is None or stamp == self._seen:
            return
        if stamp.identity != self._identity:  # another ledger in its place
            past = past or self._identity is not None
            self._identity = stamp.identity
            self._forget()
        try:
            with closing(self._connected()) as connection:
                whole = yield from self._news(connection, past=past)
        except sqlite3.Error as error:
            raise BrokerError(f"{self._file}: not usable as a ledger ({error})", code="ledger_unusable") from None
        self._seen = stamp if whole and stamp.is_settled else None

    def _news(self, connection: sqlite3.Connection, *, past: bool) -> Generator[News, None, bool]:
        """Whether that is all there is."""
        fills, refused = self._new_fills(connection, all_of_them=past), self._new_refusals(connection, past=past)
        yield from (self._fill(fill) for fill in fills)
        yield from refused
        yield from self._positions(connection)
        return len(fills) < MOST_ROWS and len(refused) < MOST_ROWS

    def _stamp(self) -> Stamp | None:
        """None while there is no file."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return None
        wal = self._file.with_name(f"{self._file.name}-wal")
        try:
            log = wal.stat()
        except FileNotFoundError:
            return Stamp((found.st_dev, found.st_ino), found.st_mtime_ns, found.st_size, 0, 0)
        return Stamp((found.st_dev, found.st_ino), found.st_mtime_ns, found.st_size, log.st_mtime_ns, log.st_size)

    def _connected(self) -> sqlite3.Connection:
        """For one look: an open connection would keep the writer's log beside the file when the writer is gone."""
        address = f"{self._file.resolve().as_uri()}?mode=rw"  # of a WAL even readers need to write what is beside it
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)
        connection.execute("PRAGMA query_only=ON")
        connection.row_factory = sqlite3.Row
        return connection

    def _forget(self) -> None:
        self._seen_fills, self._seen_refusals = -1, -1
        self._positions_now: dict[str, Position] = {}
        self._held: dict[str, Held] = {}

    def _new_fills(self, connection: sqlite3.Connection, *, all_of_them: bool) -> list[Fill]:
        """Folded into the positions."""
        rows = _rows(connection, FILLS, (self._seen_fills, -1 if all_of_them else MOST_ROWS))
        fills = []
        for row in rows:
            self._seen_fills = row["seq"]
            fill = Fill(**{name: row[name] for name in Fill.__dataclass_fields__})
            before = self._positions_now.get(fill.symbol, Position(fill.symbol, 0.0, 0.0, 0.0, 0.0, 0))
            self._positions_now[fill.symbol] = position_after(before, fill)
            fills.append(fill)
        return fills if not all_of_them else []

    def _new_refusals(self, connection: sqlite3.Connection, *, past: bool) -> list[News]:
        found = []
        for row in _rows(connection, REFUSALS, (self._seen_refusals, -1 if past else MOST_ROWS)):
            self._seen_refusals = row["seq"]
            told = {name: row[name] for name in ("order_id", "owner", "reason")}
            text = f"order {row['order_id']} was refused: {row['reason']}"
            data = {"alert": "order_refused", "severity": "warning", "active": True, "text": text, **told}
            found.append(News("alert", data | {"ledger": self._file.name}, _at(row["at_ns"]), row["symbol"]))
        return found if not past else []

    def _fill(self, fill: Fill) -> News:
        return News("fill", {"ledger": self._file.name, **asdict(fill)}, _at(fill.bar_ns), fill.symbol)

    def _positions(self, connection: sqlite3.Connection) -> Iterator[News]:
        """Of every symbol whose owner, units or mode are not what was told before."""
        for row in _rows(connection, BOOKS, ()):
            symbol, held = row["symbol"], (row["owner"], row["units"], row["mode"], row["flatten_at_ns"])
            if self._held.get(symbol) == held:
                continue
            self._held[symbol] = held
            position = self._positions_now.get(symbol, Position(symbol, 0.0, 0.0, 0.0, 0.0, 0))
            owner = {"ledger": self._file.name, "owner": row["owner"], "mode": row["mode"]}
            state = f"position:{self._file.name}:{symbol}"
            yield News("position", owner | asdict(position), now(), symbol, state)


def _rows(connection: sqlite3.Connection, query: str, values: tuple[int, ...]) -> list[sqlite3.Row]:
    with closing(connection.execute(query, values)) as cursor:
        return cursor.fetchall()


def _at(at_ns: int) -> str:
    return utc(at_ns / SECOND_NS)
