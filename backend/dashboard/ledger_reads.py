"""The trading records of this machine, read and never written: fills, books, refusals, bars, what was paid for what.

Each is an SQLite file of another process (trading/ledger_tables.py). Positions are folded from fills once, and then
only from what is new.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from trading.ledger import Fill, Position, fill_of, position_after
from trading.ledger_tables import books, events, fills, handovers, intents, manual_trades, refusals
from trading.status import LEDGERS

REPLAYED = "paper.db"
FILLS, BARS = 500, 400  # of one symbol, the newest
ROWS = 200  # of the log, of each kind
_TIMES = ((events, "at_ns"), (intents, "bar_ns"), (fills, "bar_ns"))
TOLD = ("start", "state", "epoch", "command", "declined", "unknown", "unsent")  # events that a person asks about


@dataclass(frozen=True)
class Candle:
    at_ns: int
    open: float
    high: float
    low: float
    close: float


@dataclass
class Folded:
    """What the fills of one file add up to, up to number `seq`."""

    file: tuple[int, int]  # device and inode: another file under the name is another record
    seq: int = 0
    positions: dict[str, Position] = field(default_factory=dict)

    def update(self, connection: sa.Connection) -> None:
        query = sa.select(fills).where(fills.c.seq > self.seq).order_by(fills.c.seq)
        for row in connection.execute(query):
            self.seq = row.seq
            before = self.positions.get(row.symbol, Position(row.symbol, 0.0, 0.0, 0.0, 0.0, 0))
            self.positions[row.symbol] = position_after(before, fill_of(row))


def identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def ledger_files(state_dir: Path) -> list[Path]:
    """Those that exist: real orders first, then live ones on paper, then replays."""
    return [state_dir / name for name in reversed(LEDGERS) if (state_dir / name).is_file()]


def symbols(connection: sa.Connection) -> list[str]:
    """Ever traded, the latest first."""
    query = sa.select(fills.c.symbol).group_by(fills.c.symbol).order_by(sa.func.max(fills.c.seq).desc())
    return list(connection.execute(query).scalars())


def newest_fills(connection: sa.Connection, symbol: str) -> list[Fill]:
    """The newest of a symbol, oldest first."""
    query = sa.select(fills).where(fills.c.symbol == symbol).order_by(fills.c.seq.desc()).limit(FILLS)
    return [fill_of(row) for row in connection.execute(query)][::-1]


def as_of(file: Path, connection: sa.Connection) -> float:
    """When the newest of anything on record was, Unix s; 0 without any. A live process is told the time all the while.

    The bars of a replay are of another day: there it is when something was written last.
    """
    return _written_at(file) if file.name == REPLAYED else _told_until_ns(connection) / 1e9


def _written_at(file: Path) -> float:
    beside = file.with_name(f"{file.name}-wal")
    return max(each.stat().st_mtime for each in (file, beside) if each.exists())


def _told_until_ns(connection: sa.Connection) -> int:
    newest = (sa.select(table.c[name]).order_by(table.c.seq.desc()).limit(1) for table, name in _TIMES)
    return max(connection.execute(query).scalar() or 0 for query in newest)


def candles(connection: sa.Connection, symbol: str) -> list[Candle]:
    """The newest bars that a live process was told, oldest first."""
    wanted = (events.c.kind == "bar") & (events.c.symbol == symbol)
    query = sa.select(events.c.body).where(wanted).order_by(events.c.seq.desc()).limit(BARS)
    rows = [json.loads(body)["bar"] for body in connection.execute(query).scalars()]
    return [Candle(*row[:5]) for row in rows[::-1]]


def prices(connection: sa.Connection) -> dict[str, tuple[float, int]]:
    """Of what is traded, by symbol, as a live process was last told: rupees, and when the exchange said so (ns)."""
    query = sa.select(events.c.body).where(events.c.kind == "clock").order_by(events.c.seq.desc()).limit(1)
    body = connection.execute(query).scalar()
    told = {} if body is None else json.loads(body).get("prices", {})
    return {symbol: (float(row[0]), int(row[1])) for symbol, row in told.items()}


def closes(connection: sa.Connection) -> dict[str, float]:
    """Of a replay, by symbol: the close of the last bar that it has shown, rupees."""
    newest = sa.select(sa.func.max(events.c.seq)).where(events.c.kind == "bar").group_by(events.c.symbol)
    query = sa.select(events.c.symbol, events.c.body).where(events.c.seq.in_(newest))
    return {row.symbol: float(json.loads(row.body)["bar"][4]) for row in connection.execute(query)}


def held(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    """Whose every symbol is, and what may be done with it."""
    return connection.execute(sa.select(books).order_by(books.c.symbol)).all()


def log_rows(connection: sa.Connection) -> list[tuple[float, str, str, str]]:
    """(Unix s, kind, who, what) of what a person asks about, the newest of each kind of row."""
    told: list[tuple[float, str, str, str]] = []
    for row in _newest(connection, refusals):
        told.append((row.at_ns / 1e9, "order refused", row.owner, f"{row.symbol}: {row.reason} ({row.order_id})"))
    for row in _newest(connection, handovers):
        moved = f"{row.symbol}: {row.units:+g} units from {row.from_owner} to {row.to_owner}, {row.mode}"
        told.append((row.at_ns / 1e9, "hand-over", row.from_owner, moved))
    for row in _newest(connection, fills):
        what = f"{row.symbol}: {row.units:+g} units at {row.price:,.2f}, costs {row.cost:,.2f}"
        told.append((row.bar_ns / 1e9, "fill", row.owner, what))
    for row in _newest(connection, events, events.c.kind.in_(TOLD)):
        body = json.loads(row.body)
        body |= body.pop("trade", {}) if row.kind == "command" else {}  # a person's order, as it was asked for
        told.append((row.at_ns / 1e9, row.kind, str(body.get("by") or row.symbol or "desk"), _words(body)))
    for row in connection.execute(sa.select(manual_trades).order_by(manual_trades.c.at_ns.desc()).limit(ROWS)):
        kind = "hand order placed" if row.refusal is None else "hand order refused"
        told.append((row.at_ns / 1e9, kind, "desk", f"{row.refusal or 'accepted'} (trade {row.trade_id})"))
    return told


def _newest(connection: sa.Connection, table: sa.Table, *wanted: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
    return connection.execute(sa.select(table).where(*wanted).order_by(table.c.seq.desc()).limit(ROWS)).all()


def _words(body: dict[str, Any]) -> str:
    """The plain values of an event."""
    plain = [f"{name} {value}" for name, value in body.items() if isinstance(value, str | int | float) and value != ""]
    return ", ".join(plain)[:300]
