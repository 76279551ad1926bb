"""What both arms of a rollout earned on the same ticks, and whether the challenger lost more than the plan allows.

An arm's equity curve is two numbers, its end and its highest point, and curves in a row are one again (Equity.then):

    bps       the sum of its outcomes                          daily loss = -bps of the day
    top_bps   the highest that the sum ever was, 0 or more     drawdown = top_bps - bps since the attempt began

So one outcome, a batch on its way to the disk and everything since the start are the same thing, and a page of the
ledger, in memory as in the database, is everything before, then what is new. There are four pages for an outcome: of
its symbol and of the book, of its day and since the start. 100 bps are one percent of an arm's capital per symbol; the
book is the mean over symbols, and is judged once one of them has come round again: nobody knows before how many there
are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from core.errors import DataError
from delivery.earned import Earned, append
from delivery.plan import Limits
from delivery.routing import Role
from delivery.state_database import writing

EVER = BOOK = ""  # in place of a day and of a symbol
BPS_PER_PCT = 100.0
MAX_PAGES = 100_000  # in memory: 1000 symbols for three months
INDIA = timezone(timedelta(hours=5, minutes=30))

metadata = sa.MetaData()
_pages = sa.Table(
    "equity",
    metadata,
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("day", sa.String, primary_key=True),
    sa.Column("symbol", sa.String, primary_key=True),
    sa.Column("outcomes", sa.Integer, nullable=False),
    sa.Column("champion_bps", sa.Float, nullable=False),
    sa.Column("champion_top_bps", sa.Float, nullable=False),
    sa.Column("challenger_bps", sa.Float, nullable=False),
    sa.Column("challenger_top_bps", sa.Float, nullable=False),
)


@dataclass(frozen=True)
class Equity:
    """Where a curve ends and its highest point, bps above where it began."""

    bps: float = 0.0
    top_bps: float = 0.0

    def then(self, later: Equity) -> Equity:
        return Equity(self.bps + later.bps, max(self.top_bps, self.bps + later.top_bps))

    @property
    def drawdown_bps(self) -> float:
        return self.top_bps - self.bps


@dataclass(frozen=True)
class Arms:
    """Both arms' curves over the same outcomes."""

    outcomes: int = 0
    champion: Equity = Equity()
    challenger: Equity = Equity()

    def then(self, later: Arms) -> Arms:
        return Arms(
            self.outcomes + later.outcomes,
            self.champion.then(later.champion),
            self.challenger.then(later.challenger),
        )

    def of(self, role: Role) -> Equity:
        return self.champion if role == "champion" else self.challenger


class Page(NamedTuple):
    attempt: int
    day: str  # ISO; EVER: since the attempt began
    symbol: str  # BOOK: all of them


Pages = Mapping[Page, Arms]


@dataclass(frozen=True)
class Outcome:
    """What one decision earned in each arm's own portfolio; `day` is the exchange's, ISO."""

    symbol: str
    day: str
    champion_bps: float
    challenger_bps: float

    @property
    def arms(self) -> Arms:
        champion, challenger = (Equity(bps, max(bps, 0.0)) for bps in (self.champion_bps, self.challenger_bps))
        return Arms(1, champion, challenger)

    def pages(self, attempt: int) -> list[Page]:
        return [Page(attempt, day, symbol) for day in (EVER, self.day) for symbol in (BOOK, self.symbol)]


class BreachKind(StrEnum):
    DRAWDOWN = "drawdown_exceeded"
    DAILY_LOSS = "daily_loss_exceeded"


@dataclass(frozen=True)
class Breach:
    kind: BreachKind
    symbol: str  # BOOK: the book's
    lost_pct: float
    limit_pct: float


def today() -> str:
    """Where the exchange is."""
    return datetime.now(UTC).astimezone(INDIA).date().isoformat()


def joined(first: Pages, then: Pages) -> dict[Page, Arms]:
    """The pages of both, in this order."""
    return {**first, **{page: first.get(page, Arms()).then(arms) for page, arms in then.items()}}


def breach(page: Page, challenger: Equity, symbols: int, limits: Limits) -> Breach | None:
    """What is more than the limit; the limit itself is allowed. `symbols` is how many the book is the mean of."""
    allowed = limits.symbol if page.symbol else limits.book
    if page.day:
        kind, lost_bps, limit_pct = BreachKind.DAILY_LOSS, -challenger.bps, allowed.max_daily_loss_pct
    else:
        kind, lost_bps, limit_pct = BreachKind.DRAWDOWN, challenger.drawdown_bps, allowed.max_drawdown_pct
    lost_pct = lost_bps / BPS_PER_PCT / (1 if page.symbol else max(1, symbols))
    return Breach(kind, page.symbol, lost_pct, limit_pct) if limit_pct is not None and lost_pct > limit_pct else None


class Ledger:
    """The pages of one attempt as far as this process knows them. No disk, no clock."""

    def __init__(self, attempt: int = 0, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self.attempt = attempt
        self.breach: Breach | None = None  # the first that was found
        self.latest_day = EVER
        self._limits = limits
        self._pages: dict[Page, Arms] = {}
        self._names: set[str] = set()
        self._counted = 0  # symbols, in the database

    @property
    def symbols(self) -> int:
        return max(len(self._names), self._counted)

    def add(self, outcome: Outcome) -> Pages:
        """What is new on each page. Raises DataError where there are too many pages."""
        pages = outcome.pages(self.attempt)
        if len(self._pages) >= MAX_PAGES and not self._pages.keys() >= set(pages):
            raise DataError(
                f"symbol, day: this rollout has {MAX_PAGES} of them; start another one, or name them as before",
                code="too_many_symbols",
            )
        new = dict.fromkeys(pages, outcome.arms)
        self.know({page: self.page(page).then(arms) for page, arms in new.items()})
        return new

    def know(self, pages: Pages, symbols: int = 0) -> None:
        """These pages are so. `symbols` is how many there are in the database."""
        self._pages.update(pages)
        self._names.update(page.symbol for page in pages if page.symbol)
        self._counted = max(self._counted, symbols)
        self.latest_day = max(self.latest_day, *(page.day for page in pages), EVER)
        for page, arms in pages.items():
            if self.breach is None and (page.symbol or self._came_round):
                self.breach = breach(page, arms.challenger, self.symbols, self._limits)

    def page(self, page: Page) -> Arms:
        return self._pages.get(page, Arms())

    def book(self, day: str = EVER) -> Arms:
        return self.page(Page(self.attempt, day, BOOK))

    @property
    def _came_round(self) -> bool:
        return self.book().outcomes > self.symbols

    def statistics(self) -> dict[str, Any]:
        """Both arms' book, the breach, and the symbol in which the challenger lost most."""
        drawdowns = {name: self.page(Page(self.attempt, EVER, name)).challenger.drawdown_bps for name in self._names}
        worst = max(drawdowns, key=drawdowns.__getitem__, default=None)
        return {
            "symbols": self.symbols,
            "day": self.latest_day or None,
            "champion": self.of_book("champion"),
            "challenger": self.of_book("challenger"),
            "worst_symbol": {"symbol": worst, "drawdown_bps": drawdowns[worst]} if worst is not None else None,
            "breach": asdict(self.breach) if self.breach is not None else None,
        }

    def of_book(self, role: Role) -> dict[str, float]:
        """Of the mean over symbols, bps: equity and drawdown since the start, and the loss of the latest day."""
        ever, last = self.book().of(role), self.book(self.latest_day).of(role)
        found = {"equity_bps": ever.bps, "drawdown_bps": ever.drawdown_bps, "daily_loss_bps": max(0.0, -last.bps)}
        return {name: bps / max(1, self.symbols) for name, bps in found.items()}


class LossStore:
    """The pages in the state database, SQLite or Postgres. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[engine.dialect.name]

    def write(self, new: Pages, earned: Sequence[Earned] = ()) -> tuple[dict[Page, Arms], dict[int, int]]:
        """Add to the pages in one transaction; the pages as they are now, and how many symbols each attempt has.

        `earned`: the outcomes behind them, to be kept one by one, or the latest of them. Raises SQLAlchemyError where
        the database refuses: then nothing was written.
        """
        with writing(self._engine) as connection:
            # In order: of two writers one waits for the other at the book's page, and neither for both.
            now = {page: self._add(connection, page, new[page]) for page in sorted(new)}
            counts = {page.attempt: arms.outcomes for page, arms in now.items() if page == (page.attempt, EVER, BOOK)}
            append(connection, earned, counts)
            return now, {attempt: _symbols(connection, attempt) for attempt in {page.attempt for page in new}}

    def read(self, attempt: int) -> dict[Page, Arms]:
        with self._engine.connect() as connection:
            return dict(map(_arms, connection.execute(sa.select(_pages).where(_pages.c.attempt == attempt))))

    def _add(self, connection: sa.Connection, page: Page, arms: Arms) -> Arms:
        row: dict[str, float] = {"outcomes": arms.outcomes}
        for role, equity in (("champion", arms.champion), ("challenger", arms.challenger)):
            row |= {f"{role}_bps": equity.bps, f"{role}_top_bps": equity.top_bps}
        statement: Any = self._insert(_pages).values(**page._asdict(), **row)  # the dialects' types have no common one
        added = statement.on_conflict_do_update(index_elements=Page._fields, set_=_then(statement.excluded))
        return _arms(connection.execute(added.returning(*_pages.c)).one())[1]


def _then(new: Any) -> dict[str, Any]:
    """Equity.then, in SQL: what a column becomes, from the row there is and the one that is added."""
    old, changes = _pages.c, {"outcomes": _pages.c.outcomes + new.outcomes}
    for role in ("champion", "challenger"):
        bps, top = old[f"{role}_bps"], old[f"{role}_top_bps"]
        reached = bps + new[f"{role}_top_bps"]
        changes |= {bps.name: bps + new[bps.name], top.name: sa.case((reached > top, reached), else_=top)}
    return changes


def _arms(row: sa.Row[Any]) -> tuple[Page, Arms]:
    champion, challenger = (
        Equity(getattr(row, f"{role}_bps"), getattr(row, f"{role}_top_bps")) for role in ("champion", "challenger")
    )
    return Page(row.attempt, row.day, row.symbol), Arms(row.outcomes, champion, challenger)


def _symbols(connection: sa.Connection, attempt: int) -> int:
    mine = (_pages.c.attempt == attempt) & (_pages.c.day == EVER) & (_pages.c.symbol != BOOK)
    return connection.execute(sa.select(sa.func.count()).select_from(_pages).where(mine)).scalar_one()
