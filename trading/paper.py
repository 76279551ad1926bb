"""Paper broker and its ledger: SQLite, append-only, and a position is nothing but the sum of its fills.

    intent   what was decided for one bar and which order follows; written first, one per (symbol, bar)
    order    sent to the broker, at most one per intent and with the intent's id
    fill     what the broker did with it, at most one per order

Every id derives from symbol and bar, so that a process killed anywhere repeats its last step without effect.
Quantities are signed units (positive buys), money is in rupees, times are UTC nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError

from core.errors import BrokerError
from trading.costs import CostModel, Side
from trading.market import day_of

metadata = MetaData()
intents = Table(
    "intents",
    metadata,
    Column("intent_id", String, primary_key=True),
    Column("symbol", String, nullable=False),
    Column("bar_ns", Integer, nullable=False),
    Column("reason", String, nullable=False),
    Column("order_units", Float, nullable=False),
    Column("champion_from", Integer, nullable=False),
    Column("champion_to", Integer, nullable=False),
    Column("challenger_from", Integer, nullable=False),
    Column("challenger_to", Integer, nullable=False),
    Column("model_version", String, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("reported", Boolean, nullable=False),
)
orders = Table(
    "orders",
    metadata,
    Column("order_id", ForeignKey("intents.intent_id"), primary_key=True),
    Column("symbol", String, nullable=False),
    Column("units", Float, nullable=False),
    Column("bar_ns", Integer, nullable=False),
    Column("status", String, nullable=False),  # open | filled | cancelled
)
fills = Table(
    "fills",
    metadata,
    Column("order_id", ForeignKey("orders.order_id"), primary_key=True),
    Column("symbol", String, nullable=False),
    Column("units", Float, nullable=False),
    Column("price", Float, nullable=False),
    Column("cost", Float, nullable=False),
    Column("bar_ns", Integer, nullable=False),
)


@dataclass(frozen=True)
class Intent:
    """One decision for one bar, with each arm's own virtual direction before and after it, in {-1, 0, +1}."""

    symbol: str
    bar_ns: int
    reason: str  # an action's name, or square_off
    order_units: float  # 0: no order follows
    champion_from: int = 0
    champion_to: int = 0
    challenger_from: int = 0
    challenger_to: int = 0
    model_version: str = ""
    epoch: int = 0
    reported: bool = True  # nothing (more) to tell the service about it

    @property
    def intent_id(self) -> str:
        suffix = ":square_off" if self.reason == "square_off" else ""
        return f"{self.symbol}:{self.bar_ns}{suffix}"


@dataclass(frozen=True)
class Fill:
    order_id: str
    symbol: str
    units: float
    price: float
    cost: float
    bar_ns: int


@dataclass(frozen=True)
class Position:
    """What the fills of one symbol add up to. `realised` is after costs; the average price is 0 when flat."""

    symbol: str
    units: float
    average_price: float
    realised: float
    costs: float
    fills: int


def position_of(symbol: str, history: Iterable[Fill]) -> Position:
    """Fold fills, oldest first, into a position at average cost."""
    units = average = realised = costs = 0.0
    count = 0
    for fill in history:
        opening = 0.0 if units * fill.units < 0 else fill.units
        if opening:
            average = (average * abs(units) + fill.price * abs(fill.units)) / (abs(units) + abs(fill.units))
        else:
            closed = min(abs(units), abs(fill.units)) * (1.0 if units > 0 else -1.0)
            realised += closed * (fill.price - average)
            if abs(fill.units) >= abs(units):
                average = fill.price  # reversed: what is left was opened here
        units += fill.units
        costs += fill.cost
        count += 1
    return Position(symbol, units, average if units else 0.0, realised - costs, costs, count)


class Ledger:
    """The paper-trading record in one SQLite file, readable by other processes while it is written.

    Every method is one transaction. Raises BrokerError if the file is not a ledger or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 5.0})
        event.listen(self.engine, "connect", _durable)
        try:
            metadata.create_all(self.engine)
        except DatabaseError as error:
            self.engine.dispose()
            raise BrokerError(
                f"{path}: not usable as a paper ledger ({error.orig}); move it away or choose another state_dir",
                code="ledger_unusable",
            ) from None

    def close(self) -> None:
        self.engine.dispose()

    def record_intent(self, intent: Intent) -> Intent:
        """Write an intent unless its bar has one already; returns the one on record."""
        row = asdict(intent) | {"intent_id": intent.intent_id}
        with self.engine.begin() as connection:
            connection.execute(insert(intents).values(row).on_conflict_do_nothing())
            found = connection.execute(select(intents).where(intents.c.intent_id == intent.intent_id)).one()
        return _intent(found)

    def intent(self, intent_id: str) -> Intent | None:
        with self.engine.connect() as connection:
            found = connection.execute(select(intents).where(intents.c.intent_id == intent_id)).one_or_none()
        return None if found is None else _intent(found)

    def last_intent(self, symbol: str) -> Intent | None:
        """The newest intent of a symbol: where a restarted loop goes on."""
        newest = select(intents).where(intents.c.symbol == symbol).order_by(literal_column("rowid").desc()).limit(1)
        with self.engine.connect() as connection:
            found = connection.execute(newest).one_or_none()
        return None if found is None else _intent(found)

    def claim_report(self, intent_id: str) -> bool:
        """True exactly once per intent: its outcome is reported at most once, even across crashes."""
        unreported = (intents.c.intent_id == intent_id) & ~intents.c.reported
        with self.engine.begin() as connection:
            return connection.execute(update(intents).where(unreported).values(reported=True)).rowcount == 1

    def record_order(self, intent: Intent) -> None:
        """Open the order of an intent that has one; a second time does nothing."""
        row = {
            "order_id": intent.intent_id,
            "symbol": intent.symbol,
            "units": intent.order_units,
            "bar_ns": intent.bar_ns,
            "status": "open",
        }
        with self.engine.begin() as connection:
            connection.execute(insert(orders).values(row).on_conflict_do_nothing())

    def open_orders(self, symbol: str) -> list[tuple[str, float, int]]:
        """(order id, units, bar_ns) of orders neither filled nor cancelled, oldest first."""
        wanted = select(orders.c.order_id, orders.c.units, orders.c.bar_ns)
        wanted = wanted.where(orders.c.symbol == symbol, orders.c.status == "open").order_by(orders.c.bar_ns)
        with self.engine.connect() as connection:
            return [(row.order_id, row.units, row.bar_ns) for row in connection.execute(wanted)]

    def record_fill(self, fill: Fill) -> bool:
        """Fill an open order; False (and no effect) if it is not open any more."""
        with self.engine.begin() as connection:
            if not _leave_open(connection, fill.order_id, "filled"):
                return False
            connection.execute(insert(fills).values(asdict(fill)))
        return True

    def cancel(self, order_id: str) -> bool:
        """Cancel an open order; False if it is not open any more."""
        with self.engine.begin() as connection:
            return _leave_open(connection, order_id, "cancelled")

    def units(self, symbol: str) -> float:
        """Signed units held: the sum of the fills."""
        total = select(func.coalesce(func.sum(fills.c.units), 0.0)).where(fills.c.symbol == symbol)
        with self.engine.connect() as connection:
            return float(connection.execute(total).scalar_one())

    def fills(self, symbol: str) -> list[Fill]:
        wanted = select(fills).where(fills.c.symbol == symbol).order_by(literal_column("rowid"))
        with self.engine.connect() as connection:
            return [Fill(**row._mapping) for row in connection.execute(wanted)]

    def positions(self) -> list[Position]:
        """One per symbol ever traded, by name."""
        with self.engine.connect() as connection:
            symbols = connection.execute(select(fills.c.symbol).distinct().order_by(fills.c.symbol)).scalars().all()
        return [position_of(symbol, self.fills(symbol)) for symbol in symbols]


class PaperBroker:
    """Fills orders at the prices of the bars it is shown, charging `cost`."""

    def __init__(self, ledger: Ledger, cost: CostModel) -> None:
        self.ledger, self.cost = ledger, cost

    def fill_open_orders(self, symbol: str, price: float, bar_ns: int) -> None:
        """Fill everything ordered at an earlier bar; bars seen again after a restart fill nothing."""
        for order_id, units, ordered_ns in self.ledger.open_orders(symbol):
            if ordered_ns < bar_ns:
                self._fill(order_id, symbol, units, (price, bar_ns))

    def fill_now(self, intent: Intent, price: float) -> None:
        """Order and fill at once, as at the closing price of the bar the intent was written for."""
        self.ledger.record_order(intent)
        self._fill(intent.intent_id, intent.symbol, intent.order_units, (price, intent.bar_ns))

    def _fill(self, order_id: str, symbol: str, units: float, at: tuple[float, int]) -> None:
        price, bar_ns = at
        side = Side.BUY if units > 0 else Side.SELL
        cost = self.cost(day_of(bar_ns)).of(side, price, abs(units))
        self.ledger.record_fill(Fill(order_id, symbol, units, price, cost, bar_ns))


def _leave_open(connection: Any, order_id: str, status: str) -> bool:
    still_open = (orders.c.order_id == order_id) & (orders.c.status == "open")
    return bool(connection.execute(update(orders).where(still_open).values(status=status)).rowcount == 1)


def _intent(row: Any) -> Intent:
    return Intent(**{name: getattr(row, name) for name in Intent.__dataclass_fields__})


def _durable(connection: Any, _record: Any) -> None:
    """WAL lets the backend read while the loop writes; FULL makes a commit survive a power cut."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
