"""A day again, from its event log: the same desk over an empty ledger, told the same, must come to the same rows.

Each process of the day is a desk of its own here as well: at every `start` a new one takes up what its ledger and the
log so far say. How far the one before came with its last event follows from the rows that the new one found.

Compared are the intents, orders, fills, hand-overs, refusals and trades by hand that came of it, bit for bit, and of
each question to the service its SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sqlalchemy as sa

from core.errors import DataError
from core.settings import Settings
from trading.desk import Desk
from trading.effects import Ask, Effect
from trading.events import Event, EventLog, digest_of
from trading.ledger import Ledger
from trading.ledger_tables import fills, foreign_trades, handovers, intents, orders, refusals
from trading.market import day_of
from trading.opening import CARRIED, seed, settings_of

Row = dict[str, Any]
MakeDesk = Callable[[Ledger, Settings, date], Desk]

# By which each row is found again, and when it was written.
COMPARED: tuple[tuple[sa.Table, tuple[str, ...], str], ...] = (
    (intents, ("intent_id",), "bar_ns"),
    (orders, ("order_id",), "at_ns"),
    (fills, ("order_id", "trade_id", "bar_ns"), "bar_ns"),
    (handovers, ("symbol", "from_owner", "to_owner", "at_ns"), "at_ns"),
    (refusals, ("order_id", "at_ns", "reason"), "at_ns"),
    (foreign_trades, ("day", "broker_id", "trade_id"), "at_ns"),
)


@dataclass(frozen=True)
class Replayed:
    """Counts of the replay, and each difference from the record in words."""

    day: date
    events: int
    questions: int
    rows: dict[str, int]  # by table
    equity_rupees: float  # at the end; NaN where something is held that has no price
    earned_rupees: float  # since the session began
    differences: tuple[str, ...]


def replay(ledger: Ledger, day: date, settings: Settings, make_desk: MakeDesk) -> Replayed:
    """Replay a day of a ledger. `make_desk` makes the desk that the live process had; settings are those it had.

    Raises DataError (`no_events`) if nothing is on record from its beginning on.
    """
    with TemporaryDirectory(prefix="hrm-replay-") as folder:
        fresh = Ledger(Path(folder) / "replay.db")
        sa.event.listen(fresh.engine, "connect", _fast)
        fresh.engine.dispose()  # so that every connection is a fast one
        try:
            return _Replay(fresh, settings, make_desk).of(ledger, day)
        finally:
            fresh.close()


class _Ended(BaseException):
    """A process: nothing may handle it."""


class _Replay:
    def __init__(self, fresh: Ledger, settings: Settings, make_desk: MakeDesk) -> None:
        self.fresh, self.settings, self.make_desk = fresh, settings, make_desk
        self.log = EventLog(fresh)
        self.desk: Desk | None = None
        self.asked: dict[tuple[str, int], str] = {}
        self.differences: list[str] = []
        self.begin: tuple[list[int], list[int]] = ([], [])  # rows on record and here, at the first start

    def of(self, ledger: Ledger, day: date) -> Replayed:
        events = 0
        log, found = EventLog(ledger), ledger.rows()
        told = chain(_from_the_beginning(log, day), [None])
        for event, following in pairwise(told):
            if event is not None:
                events += 1
                self._take(event, _came_to(log, event, following, found))
        if self.desk is None:
            raise DataError(f"{ledger.path}: no live process began on {day} or before", code="no_events")
        rows = {table.name: self._compare(ledger, day, table, key, when) for table, key, when in COMPARED}
        equity = self.desk.equity
        earned = equity.now - equity.opened
        return Replayed(day, events, len(self.asked), rows, equity.now, earned, tuple(self.differences))

    def _take(self, event: Event, came_to: list[int] | None) -> None:
        """`came_to`: the rows of the ledger when its process ended with this event, or in its middle."""
        if event.kind == "start":
            self.desk = self._begin(event)
        if self.desk is None:
            raise DataError(f"event {event.seq} comes before any start; nothing can be replayed", code="no_events")
        if event.kind == "answer":
            self._compare_question(event)
        self.log.copy(event)
        if came_to is not None:
            self._handle_until(self.desk, event, self._rows_here(came_to))
        else:
            self._note(self.desk.handle(event))

    def _rows_here(self, came_to: list[int]) -> list[int]:
        """How many rows this ledger must have for as many of the record. Older logs count fewer kinds."""
        return [there - begin + here for there, begin, here in zip(came_to, *self.begin, strict=False)]

    def _handle_until(self, desk: Desk, event: Event, rows: list[int]) -> None:
        """The process ended in the middle of an event, before or after it: so does its desk here."""

        def end(_connection: sa.Connection) -> None:
            if self.fresh.rows()[: len(rows)] == rows:
                raise _Ended

        sa.event.listen(self.fresh.engine, "commit", end)
        try:
            self._note(desk.handle(event))
        except _Ended:
            pass  # what it did not come to, the next process does
        finally:
            sa.event.remove(self.fresh.engine, "commit", end)

    def _begin(self, event: Event) -> Desk:
        if self.desk is None:
            seed(self.fresh, event.body)
            self.begin = (event.body["rows"]["now"], self.fresh.rows())
        settings = settings_of(event.body, self.settings)
        desk = self.make_desk(self.fresh, settings, day_of(event.at_ns))
        self._note(desk.recover(self.log))
        return desk

    def _note(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self.asked[effect.symbol, effect.bar.timestamp_ns] = digest_of(effect.request)

    def _compare_question(self, event: Event) -> None:
        asked = self.asked.get((event.symbol, event.body["bar_ns"]))
        if asked != event.body["request_sha256"]:
            what = "not asked" if asked is None else "asked in other words"
            self.differences.append(
                f"question of {event.symbol} at bar {event.body['bar_ns']}: {what} (event {event.seq})"
            )

    def _compare(self, ledger: Ledger, day: date, table: sa.Table, key: tuple[str, ...], when: str) -> int:
        """Every row of the replay is on record, and every one on record of that day is in the replay."""
        here, there = _by_key(self.fresh, table, key), _by_key(ledger, table, key)
        for name, row in here.items():
            recorded = there.get(name)
            if recorded != row:
                self.differences.append(f"{table.name} {_words(name)}: {_difference(recorded, row)}")
        for name, row in there.items():
            if name not in here and day_of(row[when]) == day:
                self.differences.append(f"{table.name} {_words(name)}: on record, and not in the replay")
        return len(here)


def _from_the_beginning(log: EventLog, day: date) -> Iterator[Event]:
    """All events up to the day's end, from the start of the process that was running when it began."""
    days = [day]
    while (first := next(log.of_day(days[-1]), None)) is not None and first.kind != "start":
        before = log.before(first.seq)
        if before is None:
            return
        days.append(day_of(before.at_ns))
    for each in reversed(days):
        yield from log.of_day(each)


def _came_to(log: EventLog, event: Event, following: Event | None, found: list[int]) -> list[int] | None:
    """How far a process came with its last event: as far as the next one found, or, where none began, the reader.

    `found`: the rows that there are now. None: the process went on.
    """
    following = following or log.after(event.seq)
    if following is None:
        return found
    rows: list[int] = following.body["rows"]["found"] if following.kind == "start" else []
    return rows or None


def _by_key(ledger: Ledger, table: sa.Table, key: tuple[str, ...]) -> dict[tuple[Any, ...], Row]:
    with ledger.engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(sa.select(table)).mappings()]
    kept = [row for row in rows if row.get("trade_id") != CARRIED]
    return {tuple(row[name] for name in key): {k: v for k, v in row.items() if k != "seq"} for row in kept}


def _difference(recorded: Row | None, row: Row) -> str:
    if recorded is None:
        return "in the replay, and not on record"
    changed = [name for name in row if row[name] != recorded[name]]
    return ", ".join(f"{name} was {recorded[name]!r}, is {row[name]!r}" for name in changed)


def _words(name: tuple[Any, ...]) -> str:
    return " ".join(str(part) for part in name)


def _fast(connection: Any, _record: Any) -> None:
    """A replay that a power cut ends is begun again."""
    connection.execute("PRAGMA synchronous=OFF")
