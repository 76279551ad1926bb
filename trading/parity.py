"""A live day beside its backtest: the bars that the desk decided on, through the backtest, compared bar by bar.

Of the live side this reads the event log and the ledger; of the other a finished backtest of the model over those bars.
The same means: at every bar the same decision, and as many units traded. Prices and profits are measured, not judged:
the backtest trades the index at the next open, the desk its future at what the market asks.

Money in rupees, prices per unit. A price is worse for us if its bps are above 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import sqlalchemy as sa

from core.actions import Action
from core.errors import DataError
from trading import events
from trading.backtest import BacktestResult
from trading.events import EventLog
from trading.ledger import Ledger
from trading.ledger_tables import fills, intents, orders, refusals
from trading.market import Bars, day_of
from trading.stream import Bar

HELD, SQUARE_OFF = "HOLD", "square_off"
UNITS = 1e-9  # two quantities that differ by less are one


@dataclass
class LiveBar:
    """A bar of the day and what the desk did at it; `mark`: what is traded cost when it closed."""

    bar: Bar
    mark: float
    decision: str = ""  # as the intent says it; "": none on record
    model: str = ""
    ordered: float = 0.0
    traded: float = 0.0
    cash: float = 0.0  # of its trades, charges paid
    paid: float = 0.0  # units times price
    ends: list[str] = field(default_factory=list)  # what became of orders that were not filled

    @property
    def price(self) -> float | None:
        return self.paid / self.traded if abs(self.traded) > UNITS else None


@dataclass(frozen=True)
class LiveDay:
    symbol: str
    day: date
    bars: Bars  # history and the day, up to the bar that squares off
    of_day: tuple[LiveBar, ...]
    models: Counter[str]  # decisions of each, name/version
    by_hand: int  # trades that were adopted: in the position, and in no bar


@dataclass(frozen=True)
class Step:
    decision: str
    units: float  # traded, signed
    price: float | None
    net_rupees: float  # until the next one


@dataclass(frozen=True)
class Compared:
    """`why` is empty where both did the same."""

    bar_ns: int
    live: Step
    backtest: Step
    slippage_bps: float | None  # of the live price, from what is traded when the bar closed
    from_backtest_bps: float | None  # and from the backtest's price: the basis of the future is in it
    why: str


@dataclass(frozen=True)
class Parity:
    symbol: str
    day: date
    model: str
    rows: tuple[Compared, ...]
    live_rupees: float  # net of charges, what is held at the last mark
    backtest_rupees: float
    by_hand: int

    @property
    def different(self) -> tuple[Compared, ...]:
        return tuple(row for row in self.rows if row.why)

    @property
    def same(self) -> bool:
        return not self.different and not self.by_hand

    def reasons(self) -> dict[str, int]:
        return dict(Counter(row.why for row in self.different).most_common())


def symbols_of(ledger: Ledger, day: date) -> list[str]:
    """That bars were told of on a day."""
    return sorted({event.symbol for event in EventLog(ledger).of_day(day) if event.kind == "bar"})


def live_day(ledger: Ledger, day: date, symbol: str) -> LiveDay:
    """What is on record of a symbol. Raises DataError (`no_events`) where no bar of that day is."""
    seen, told, models = _told(EventLog(ledger), day, symbol)
    if not told:
        raise DataError(f"{ledger.path}: no bar of {symbol} on {day} is on record", code="no_events")
    last = next((start for start, each in told.items() if each.bar.last_of_session), max(told))
    kept = {start: bar for start, bar in seen.items() if start <= last}
    of_day = {start: each for start, each in told.items() if start <= last}
    by_hand = _fill_in(ledger, symbol, day, of_day)
    if not of_day[max(of_day)].bar.last_of_session:  # where the backtest closes what it holds, and the desk did not
        of_day[max(of_day)].ends.insert(0, "day_not_over")
    return LiveDay(symbol, day, _bars(symbol, kept), tuple(of_day[start] for start in sorted(of_day)), models, by_hand)


def compare(live: LiveDay, result: BacktestResult, model: str) -> Parity:
    """`result`: of `model` (name/version) over `live.bars`, of that day alone, for the same capital."""
    tested = _tested(result)
    starts = {each.bar.timestamp_ns for each in live.of_day}
    nothing = Step("", 0.0, None, 0.0)
    held = {"live": 0.0, "backtest": 0.0}
    rows = []
    for each, net in zip(live.of_day, _nets(live.of_day), strict=True):
        mine = Step(each.decision, each.traded, each.price, net)
        theirs = tested.get(each.bar.timestamp_ns, nothing)
        apart = held["live"] != held["backtest"]
        why = "" if _same(mine, theirs) and abs(each.ordered - each.traded) < UNITS else _why(each, model, apart)
        rows.append(_compared(each, mine, theirs, why))
        held = {"live": held["live"] + mine.units, "backtest": held["backtest"] + theirs.units}
    assert tested.keys() <= starts  # noqa: S101 - it ran over these bars
    total = sum(step.net_rupees for step in tested.values())
    net_rupees = sum(row.live.net_rupees for row in rows)
    return Parity(live.symbol, live.day, model, tuple(rows), net_rupees, total, live.by_hand)


def _told(log: EventLog, day: date, symbol: str) -> tuple[dict[int, Bar], dict[int, LiveBar], Counter[str]]:
    """All bars of its features, those of the day, and the models that answered."""
    seen: dict[int, Bar] = {}
    of_day: dict[int, LiveBar] = {}
    models: Counter[str] = Counter()
    basis = 0.0
    for event in log.of_day(day):
        if event.symbol != symbol:
            continue
        if event.kind in {"history", "bar"}:
            for bar in events.bars_of(event):
                quote = events.quotes_of(event).get(symbol)
                basis = basis if quote is None else quote[0] - bar.close
                seen[bar.timestamp_ns] = bar
                if day_of(bar.timestamp_ns) == day:
                    of_day[bar.timestamp_ns] = LiveBar(bar, bar.close + basis)
        elif event.kind == "answer" and (said := events.answer_of(event)) is not None and said.role != "safe":
            models[said.model_id] += 1
            if event.body["bar_ns"] in of_day:
                of_day[event.body["bar_ns"]].model = said.model_id
    return seen, of_day, models


def _bars(name: str, bars: Mapping[int, Bar]) -> Bars:
    rows = [bars[start] for start in sorted(bars)]
    prices = np.array([(bar.open, bar.high, bar.low, bar.close) for bar in rows]).T
    starts, sessions = np.array([(bar.timestamp_ns, bar.session) for bar in rows], dtype=np.int64).T
    opens, highs, lows, closes = (np.ascontiguousarray(each) for each in prices)
    return Bars(name, np.ascontiguousarray(starts), opens, highs, lows, closes, np.ascontiguousarray(sessions))


def _fill_in(ledger: Ledger, symbol: str, day: date, bars: Mapping[int, LiveBar]) -> int:
    """What the ledger says about each bar. The number of trades that belong to none."""
    refused = {row["order_id"]: row["reason"] for row in _rows(ledger, refusals, symbol)}
    for row in _rows(ledger, intents, symbol):
        if (each := bars.get(row["bar_ns"])) is not None:
            each.decision = row["reason"]
            each.ordered += row["order_units"]
            if row["intent_id"] in refused:
                each.ends.append(f"refused:{refused[row['intent_id']]}")
    bar_of: dict[str, int] = {}
    for row in _rows(ledger, orders, symbol):
        bar_of[row["order_id"]] = row["bar_ns"]
        if (each := bars.get(row["bar_ns"])) is not None and row["status"] != "filled":
            part = "partial:" if row["filled_units"] else ""
            each.ends.append(f"{part}{row['status']}:{row['reason']}".rstrip(":"))
    return _book(_rows(ledger, fills, symbol), day, bars, bar_of)


def _book(rows: Iterable[sa.RowMapping], day: date, bars: Mapping[int, LiveBar], bar_of: Mapping[str, int]) -> int:
    by_hand = 0
    for row in rows:
        each = bars.get(bar_of.get(row["order_id"] or "", -1))
        if each is not None:
            each.traded += row["units"]
            each.paid += row["units"] * row["price"]
            each.cash -= row["units"] * row["price"] + row["cost"]
        elif day_of(row["bar_ns"]) == day:
            by_hand += 1
    return by_hand


def _rows(ledger: Ledger, table: sa.Table, symbol: str) -> Sequence[sa.RowMapping]:
    query = sa.select(table).where(table.c.symbol == symbol).order_by(table.c.seq)
    with ledger.engine.connect() as connection:
        return list(connection.execute(query).mappings())


def _nets(of_day: Sequence[LiveBar]) -> list[float]:
    """What each decision earned until the next one's mark; they add up to the day's profit."""
    nets, held = [], 0.0
    for number, each in enumerate(of_day):
        following = of_day[min(number + 1, len(of_day) - 1)].mark
        after = held + each.traded
        nets.append(each.cash + after * following - held * each.mark)
        held = after
    return nets


def _tested(result: BacktestResult) -> dict[int, Step]:
    """The backtest's decisions by bar, and its exit at the last bar."""
    journal, bars = result.journal, result.market.bars
    changed = journal.changed(result.market)
    steps = {
        int(bars.timestamps[at]): Step(
            Action(int(action)).name, float(units), float(bars.open[at + 1]) if units else None, float(net)
        )
        for at, action, units, net in zip(journal.at, journal.action, changed, journal.net, strict=True)
    }
    last, left = int(journal.at[-1]) + 1, -float(journal.units[-1])
    steps[int(bars.timestamps[last])] = Step(SQUARE_OFF, left, float(bars.close[last]) if left else None, 0.0)
    return steps


def _same(live: Step, tested: Step) -> bool:
    said = live.decision.split(":", maxsplit=1)[0]
    exits = tested.decision == SQUARE_OFF and not tested.units and said == HELD  # nothing is held: nothing to close
    return bool(said) and (said == tested.decision or exits) and abs(live.units - tested.units) < UNITS


def _why(each: LiveBar, model: str, apart: bool) -> str:
    """The first reason that is on record; `apart`: they did not hold the same before."""
    causes = (
        (not each.decision, "not_decided"),
        (each.decision.startswith(f"{HELD}:"), each.decision),
        (bool(each.ends), "".join(each.ends[:1])),
        (bool(each.model) and each.model != model, f"other_model:{each.model}"),
        (each.decision == HELD and not each.model, f"{HELD}:no_answer"),
        (abs(each.ordered - each.traded) >= UNITS, "not_filled"),
        (apart, "held_something_else"),
    )
    return next((why for holds, why in causes if holds), "unexplained")


def _compared(each: LiveBar, live: Step, tested: Step, why: str) -> Compared:
    side = np.sign(live.units)

    def worse(than: float | None) -> float | None:
        return None if live.price is None or than is None else float(1e4 * side * (live.price / than - 1))

    return Compared(each.bar.timestamp_ns, live, tested, worse(each.mark), worse(tested.price), why)
