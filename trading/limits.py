"""What the risk engine judges by, as events tell it: prices, the switch, free funds, what the desk is worth.

trading/risk.py judges; here is what it is shown, and what a breach does: it counts from the moment it is seen, not
from when the switch says so. Until the switch was told of, everything is halted.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cache

from core.settings import Settings
from trading import risk
from trading.calendar import closing_from, is_session
from trading.effects import Engage
from trading.equity import Money
from trading.events import Quotes
from trading.instruments import instrument
from trading.ledger import Ledger, Order, OrderState
from trading.market import SECOND_NS, day_of
from trading.ownership import Book
from trading.risk import Breach, Equity, Price, View
from trading.switch import State, Switch

GRACE_NS = 60 * SECOND_NS
STRICTER: tuple[State, ...] = ("active", "reducing", "halted")  # than the one before


class Limits:
    """Of one desk. `judge` is the gateway's."""

    def __init__(self, ledger: Ledger, settings: Settings, symbols: Iterable[str]) -> None:
        self.settings = settings
        self.money = Money(ledger, symbols, settings.trading.initial_capital)
        self.prices: dict[str, Price] = {}
        self.switch: Switch | None = None  # not told yet
        self.gate: str | None = None  # why nothing may be opened now
        self.free_funds_rupees: float | None = None
        self.now_ns = 0
        self.orders: Sequence[OrderState] = ()  # what may still be filled: whoever submits an order says it first
        self._undecided: Counter[str] = Counter()  # bars in a row that no model decided, by symbol
        self._breach: Breach | None = None
        self._resumed = False  # by a person, and the peak is not what there is yet: it is not known

    @property
    def state(self) -> State:
        if self.switch is None:
            return "halted"
        return max(self.switch.state, "active" if self._breach is None else self._breach.state, key=STRICTER.index)

    @property
    def equity(self) -> Equity:
        return self.money.equity(self.prices)

    def see(self, prices: Quotes) -> None:
        """The last prices of what is traded. One that is no price changes nothing, and grows old."""
        for symbol, (rupees, at_ns) in prices.items():
            if math.isfinite(rupees) and rupees > 0:
                self.prices[symbol] = Price(rupees, at_ns)

    def switched(self, switch: Switch) -> None:
        """What the switch says now. A person who resumes goes on from the equity there is; a day's end does not."""
        before, self.switch = self.switch, switch
        if switch.state == "active" and before is not None and before.state != "active":
            self._breach = None
            self._undecided.clear()
            self._resumed = switch.until_ns is None

    def decided(self, symbol: str, *, by_a_model: bool) -> None:
        """Of a bar that the service was asked about: whether a model answered."""
        self._undecided[symbol] = 0 if by_a_model else self._undecided[symbol] + 1

    def look(self) -> Engage | None:
        """Put what the desk is worth on record; what a breach that was not seen before asks of the switch."""
        self.money.mark(day_of(self.now_ns), self.prices)
        if self._resumed and not math.isnan(self.equity.now):
            self.money.resume(self.prices)
            self._resumed = False
        found = risk.breach(self.view(), self.settings.risk)
        if found is None or (self._breach is not None and self._breach.reason == found.reason):
            return None
        self._breach = found
        return Engage(found.state, f"{found.reason}: {found.detail}", found.until_ns)

    def overdue(self, symbol: str) -> bool:
        """Whether the bar that squares off should have come: without ticks it never does."""
        day = day_of(self.now_ns)
        close_by_ns = _close_by_ns(symbol, day, self.settings.live.flatten_before_square_off_s)
        return close_by_ns is not None and self.now_ns > close_by_ns + GRACE_NS

    def judge(self, order: Order, book: Book) -> tuple[str, str] | None:
        """Why an order may not go out, and the detail; None if it may. A closed gate lets pass what closes."""
        if self.gate is not None and not book.reduces(order.units, 0.0):
            return "gate_closed", self.gate
        return risk.judge(order, book, self.view(), self.settings.risk)

    def view(self) -> View:
        open_units: defaultdict[str, list[float]] = defaultdict(list)
        for each in self.orders:
            open_units[each.order.symbol].append(each.open_units)
        units = {symbol: each.units for symbol, each in self.money.positions.items()}
        return View(
            now_ns=self.now_ns,
            state=self.state,
            prices=self.prices,
            units=units,
            undecided_bars=max((self._undecided[symbol] for symbol, held in units.items() if held), default=0),
            open_units=open_units,
            equity=self.equity,
            free_funds_rupees=self.free_funds_rupees,
        )


@cache
def _close_by_ns(symbol: str, day: date, before_s: float) -> int | None:
    """When a position is to be closed; None on a day that is no session."""
    if not is_session(day):
        return None
    return int((closing_from(day, instrument(symbol).segment).timestamp() - before_s) * SECOND_NS)
