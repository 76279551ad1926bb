"""The judgement of an order before the gateway accepts it, and of the day as a whole. Pure: the time is given.

    judge    may this order go out, with what is known now?
    breach   has so much been lost that nothing may be opened any more?

An order that only makes a position smaller passes every limit, also one that was lowered below what is held, also
without a price: keeping a position is what the limits are there to prevent. Only where all is halted it stays: then
somebody, or an unreadable switch, says that not even what is held is certain, and a close of what is not held opens.

Units are signed (positive: bought), money is in rupees, times are UTC nanoseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import date
from typing import Literal

from core.errors import DataError
from core.live_settings import Risk
from trading import calendar
from trading.instruments import instrument, lot_of
from trading.ledger import Order
from trading.market import SECOND_NS, day_of
from trading.ownership import Book
from trading.switch import State
from trading.tickets import exact, furthest_price

Cause = Literal["drawdown", "daily_loss", "undecided"]
Reason = Literal[
    "halted",
    "reducing",
    Cause,
    "equity_unknown",
    "no_price",
    "price_stale",
    "odd_lot",
    "wrong_instrument",
    "off_collar",
    "too_many_lots",
    "symbol_notional",
    "gross_notional",
    "funds_unknown",
    "no_funds",
]  # in the order they are looked at
Refusal = tuple[Reason, str]  # and in words


@dataclass(frozen=True)
class Price:
    """The last one of what is traded: of an index's future, which stands tens of bps beside its index."""

    rupees: float
    at_ns: int  # of the exchange


@dataclass(frozen=True)
class Equity:
    """In rupees, open profit included."""

    now: float
    opened: float  # when the session began
    peak: float  # the highest since a person last resumed after a drawdown
    capital: float  # trading.initial_capital, of which the limits are ratios


@dataclass(frozen=True)
class View:
    """What is known at one instant. By symbol as the ledger names it."""

    now_ns: int
    state: State
    prices: Mapping[str, Price]
    units: Mapping[str, float]  # of all books
    open_units: Mapping[str, Sequence[float]]  # what each open order may still fill
    equity: Equity
    free_funds_rupees: float | None  # None: not known
    undecided_bars: int = 0  # in a row, that no model decided for a symbol that is held: the most of any

    def most_units(self, symbol: str) -> float:
        """What a symbol may hold at most, whichever of its open orders are filled; not signed."""
        held, orders = self.units.get(symbol, 0.0), self.open_units.get(symbol, ())
        bought, sold = sum(units for units in orders if units > 0), sum(units for units in orders if units < 0)
        return max(abs(held + bought), abs(held + sold))


@dataclass(frozen=True)
class Breach:
    """Why only exits are possible, and until when; None: until a person resumes."""

    state: Literal["reducing"]
    reason: Cause
    detail: str
    until_ns: int | None


@dataclass(frozen=True)
class _Case:
    """An order that opens something, and what it is judged by."""

    order: Order
    book: Book
    view: View
    limits: Risk

    @property
    def day(self) -> date:
        return day_of(self.view.now_ns)

    @property
    def price(self) -> float:
        return self.view.prices[self.order.symbol].rupees

    @property
    def units_after(self) -> float:
        """What the symbol holds when this order is filled and every open one that goes the same way."""
        orders = self.view.open_units.get(self.order.symbol, ())
        return self.book.units + self.order.units + sum(units for units in orders if units * self.order.units > 0)

    def others(self) -> Iterator[str]:
        for symbol in sorted({*self.view.units, *self.view.open_units} - {self.order.symbol}):
            if self.view.most_units(symbol):
                yield symbol


def judge(order: Order, book: Book, view: View, limits: Risk) -> Refusal | None:
    """None: it may go out. `book` is the symbol's as the gateway has it, whatever the view says of that symbol."""
    if view.state == "halted":
        return "halted", "nothing goes out but cancels; hrm trade resume"
    closing = sum(units for units in view.open_units.get(order.symbol, ()) if units * book.units < 0)
    if book.reduces(order.units, closing):
        return None
    case = _Case(order, book, view, limits)
    return next((refusal for check in _CHECKS if (refusal := check(case)) is not None), None)


def breach(view: View, limits: Risk) -> Breach | None:
    """What forbids to open anything from now on; what lasts longer first. An equity that is no number is no loss."""
    equity = view.equity
    lost, most = equity.peak - equity.now, limits.drawdown_ratio * equity.capital
    if lost >= most:
        detail = f"{lost:,.0f} rupees below the highest equity, of {most:,.0f}; hrm trade resume goes on from here"
        return Breach("reducing", "drawdown", detail, None)
    lost, most = equity.opened - equity.now, limits.daily_loss_ratio * equity.capital
    if lost >= most:
        detail = f"{lost:,.0f} rupees lost today, of {most:,.0f}"
        return Breach("reducing", "daily_loss", detail, _next_open_ns(view.now_ns))
    if view.undecided_bars >= limits.undecided_bars:
        detail = f"no model has decided for {view.undecided_bars} bars, and something is held; see to the service"
        return Breach("reducing", "undecided", detail, _next_open_ns(view.now_ns))
    return None


def closing_part(units: float, held: float) -> float:
    """Of an order of `units` that would cross zero, what closes `held`; any other order is left as it is."""
    return -held if units * held < 0 and abs(units) > abs(held) else units


def _state(case: _Case) -> Refusal | None:
    if not all(math.isfinite(rupees) for rupees in astuple(case.view.equity)):
        return "equity_unknown", f"not a number: {case.view.equity}"
    found = breach(case.view, case.limits)
    if found is not None:
        return found.reason, found.detail
    if case.view.state == "reducing":
        return "reducing", f"{case.order.units:g} units on {case.book.units:g}: only less is allowed; hrm trade status"
    return None


def _prices(case: _Case) -> Refusal | None:
    for symbol in (case.order.symbol, *case.others()):
        price = case.view.prices.get(symbol)
        if price is None or not (math.isfinite(price.rupees) and price.rupees > 0):
            return "no_price", f"{symbol}: {'none yet' if price is None else price.rupees}"
    age_s = (case.view.now_ns - case.view.prices[case.order.symbol].at_ns) / SECOND_NS
    if abs(age_s) > case.limits.max_price_age_s:  # one of the future as well: some clock is wrong
        return "price_stale", f"{case.order.symbol}: of {age_s:.1f} s ago, {case.limits.max_price_age_s:g} are allowed"
    return None


def _terms(case: _Case) -> Refusal | None:
    order, lot = case.order, lot_of(case.order.symbol, case.day)
    if order.units % lot:
        return "odd_lot", f"{order.units:g} units are no whole lots of {lot}"
    if order.instrument:
        try:
            traded = instrument(order.symbol).traded_symbol(case.day)
        except DataError as error:
            return "wrong_instrument", str(error)
        if order.instrument != traded:
            return "wrong_instrument", f"{order.instrument}; on {case.day} {order.symbol} is traded as {traded}"
    return None if order.limit_price is None else _collar(case, order.limit_price)


def _collar(case: _Case, limit_price: float) -> Refusal | None:
    if not (math.isfinite(limit_price) and limit_price > 0):
        return "off_collar", f"limit {limit_price}"
    furthest = furthest_price(case.price, case.order.units, case.limits.collar_bps)
    if (exact(limit_price) - furthest) * exact(case.order.units) > 0:
        return "off_collar", f"limit {limit_price} for {case.order.units:g} units; {float(furthest)} at the worst"
    return None


def _size(case: _Case) -> Refusal | None:
    limits, after = case.limits, abs(case.units_after)
    lots = after / lot_of(case.order.symbol, case.day)
    if lots > limits.max_lots:
        return "too_many_lots", f"{lots:g} lots, risk.max_lots is {limits.max_lots}"
    notional, most = after * case.price, limits.max_notional_rupees
    if notional > most:
        return "symbol_notional", f"{notional:,.0f} rupees, risk.max_notional_rupees is {most:,.0f}"
    gross = notional + sum(case.view.most_units(each) * case.view.prices[each].rupees for each in case.others())
    most = limits.max_gross_rupees
    if gross > most:
        return "gross_notional", f"{gross:,.0f} rupees in all symbols, risk.max_gross_rupees is {most:,.0f}"
    return None


def _funds(case: _Case) -> Refusal | None:
    """Open orders may not be in the broker's figure yet. Its own check is the last word, and a certain one."""
    free = case.view.free_funds_rupees
    if free is None or math.isnan(free):
        return "funds_unknown", "the broker has not said yet what is free"
    added = max(0.0, abs(case.units_after) - abs(case.book.units)) * case.price
    for symbol in case.others():
        grows = case.view.most_units(symbol) - abs(case.view.units.get(symbol, 0.0))
        added += grows * case.view.prices[symbol].rupees
    needed = added * case.limits.margin_ratio
    if needed > free or free <= 0:
        told = f"{needed:,.0f} rupees of margin, {free:,.0f} are free; add funds, or lower trading.max_quantity"
        return "no_funds", told
    return None


_CHECKS: tuple[Callable[[_Case], Refusal | None], ...] = (_state, _prices, _terms, _size, _funds)


def _next_open_ns(now_ns: int) -> int | None:
    try:
        day = calendar.next_session(day_of(now_ns))
        return int(calendar.hours(day, "index_futures").open.timestamp()) * SECOND_NS
    except DataError:
        return None  # beyond the calendar: then a person says when
