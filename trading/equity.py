"""What the desk is worth, in rupees: realised money, and open profit at the last prices of what is traded.

    equity = initial capital + sum over symbols of realised + units * (price - average price)

Realised money and average prices are folded from the ledger's fills. What equity was when the session began, and the
highest since a person last resumed, are on record by day, so that a restarted desk judges losses as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import date

import sqlalchemy as sa
from sqlalchemy import Column, Float, String, Table

from trading.ledger import Ledger, Position, fill_of, position_after
from trading.ledger_tables import fills, metadata
from trading.risk import Equity, Price

marks = Table(
    "equity",
    metadata,
    Column("day", String, primary_key=True),
    Column("opened", Float, nullable=False),
    Column("peak", Float, nullable=False),
)


class Money:
    """Of the symbols of a desk. `update` first, whenever fills may have been booked."""

    def __init__(self, ledger: Ledger, symbols: Iterable[str], capital: float) -> None:
        self.capital = capital
        self._ledger, self._engine = ledger, ledger.engine
        marks.create(self._engine, checkfirst=True)
        self.positions = {symbol: Position(symbol, 0.0, 0.0, 0.0, 0.0, 0) for symbol in symbols}
        self.instruments: dict[str, str] = {}  # in which each symbol was last traded
        self._seen = 0
        self._marked: tuple[str, float, float] | None = None  # day, opened, peak
        self.update()
        self._read_mark()

    def update(self) -> None:
        """Fold what was booked since the last time."""
        query = sa.select(fills).where(fills.c.seq > self._seen).order_by(fills.c.seq)
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                self._seen = row.seq
                before = self.positions.get(row.symbol, Position(row.symbol, 0.0, 0.0, 0.0, 0.0, 0))
                self.positions[row.symbol] = position_after(before, fill_of(row))
                self.instruments[row.symbol] = row.instrument

    def now(self, prices: Mapping[str, Price]) -> float:
        """NaN while something is held that has no price."""
        return self.capital + math.fsum(_worth(each, prices) for each in self.positions.values())

    def equity(self, prices: Mapping[str, Price]) -> Equity:
        now = self.now(prices)
        _, opened, peak = self._marked or ("", now, now)
        return Equity(now, opened, peak, self.capital)

    def mark(self, day: date, prices: Mapping[str, Price]) -> None:
        """Put on record what the session begins with, and a peak. Nothing while equity is not known."""
        now = self.now(prices)
        if math.isnan(now):
            return
        known, opened, peak = self._marked or ("", now, now)
        if known < day.isoformat():
            self._write(day.isoformat(), now, max(peak, now))
        elif now > peak:
            self._write(known, opened, now)

    def resume(self, prices: Mapping[str, Price]) -> None:
        """A person goes on: the peak is what there is now."""
        now = self.now(prices)
        if self._marked is not None and not math.isnan(now):
            self._write(self._marked[0], self._marked[1], now)

    def _read_mark(self) -> None:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(marks).order_by(marks.c.day.desc()).limit(1)).one_or_none()
        self._marked = None if row is None else (row.day, row.opened, row.peak)

    def _write(self, day: str, opened: float, peak: float) -> None:
        with self._ledger.quickly() as connection:
            connection.execute(sa.delete(marks).where(marks.c.day == day))
            connection.execute(sa.insert(marks).values(day=day, opened=opened, peak=peak))
        self._marked = (day, opened, peak)


def _worth(position: Position, prices: Mapping[str, Price]) -> float:
    if not position.units:
        return position.realised
    price = prices.get(position.symbol)
    return math.nan if price is None else position.realised + position.units * (price.rupees - position.average_price)
