"""What may not be opened, that what makes a position smaller always may, and when a day is over."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.live_settings import Risk
from core.settings import load_settings
from trading import risk
from trading.calendar import KOLKATA
from trading.instruments import instrument
from trading.ledger import Order
from trading.ownership import Book, Owner
from trading.risk import Equity, Price, Reason, View, breach, closing_part, judge
from trading.tickets import ticket

LIMITS = load_settings(preset="compact", environ={}).risk
OWNER = Owner("champion", "hrm/v1")
SECOND_NS = 10**9
LOT, PRICE, CAPITAL = 65, 26_000.0, 1e6
NOW_NS = int(datetime(2026, 11, 18, 11, 0, tzinfo=KOLKATA).timestamp()) * SECOND_NS
CALM = Equity(now=CAPITAL, opened=CAPITAL, peak=CAPITAL, capital=CAPITAL)
VIEW = View(
    NOW_NS,
    "active",
    prices={"NIFTY": Price(PRICE, NOW_NS - SECOND_NS), "BANKNIFTY": Price(60_000.0, NOW_NS - 900 * SECOND_NS)},
    units={},
    open_units={},
    equity=CALM,
    free_funds_rupees=CAPITAL,
)


def order(units: float, **fields: Any) -> Order:
    return Order("a", "NIFTY", units, str(OWNER), epoch=1, at_ns=NOW_NS, bar_ns=NOW_NS, **fields)


def refused(
    units: float, *, held: float = 0.0, view: View = VIEW, limits: Risk = LIMITS, **fields: Any
) -> Reason | None:
    """The reason, if any."""
    judged = judge(order(units, **fields), Book("NIFTY", OWNER, held), view, limits)
    return None if judged is None else judged[0]


def limited(**limits: Any) -> Risk:
    return LIMITS.model_copy(update=limits)


def losing(now: float, *, opened: float = CAPITAL, peak: float = CAPITAL) -> View:
    return replace(VIEW, equity=Equity(now, opened, peak, CAPITAL))


def at_price(rupees: float, at_ns: int = NOW_NS) -> View:
    return replace(VIEW, prices={"NIFTY": Price(rupees, at_ns)})


def test_an_order_within_all_limits_may_go_out() -> None:
    assert refused(LOT) is None
    assert refused(-LOT) is None
    assert refused(-2 * LOT, held=LOT) is None


OPENINGS: list[tuple[Reason, dict[str, Any]]] = [
    ("reducing", {"view": replace(VIEW, state="reducing")}),
    ("drawdown", {"view": losing(900_000.0, opened=900_000.0, peak=1_100_000.0)}),
    ("daily_loss", {"view": losing(950_000.0)}),
    ("undecided", {"view": replace(VIEW, undecided_bars=LIMITS.undecided_bars)}),
    ("equity_unknown", {"view": losing(math.nan)}),
    ("equity_unknown", {"view": losing(math.inf)}),
    ("equity_unknown", {"view": losing(CAPITAL, opened=math.nan)}),
    ("no_price", {"view": replace(VIEW, prices={})}),
    ("no_price", {"view": at_price(math.nan)}),
    ("no_price", {"view": at_price(math.inf)}),
    ("no_price", {"view": at_price(0.0)}),
    ("no_price", {"view": at_price(-PRICE)}),
    (
        "no_price",
        {"view": replace(at_price(PRICE), units={"BANKNIFTY": 30.0})},
    ),  # what is held is worth nobody knows what
    ("price_stale", {"view": at_price(PRICE, NOW_NS - 31 * SECOND_NS)}),
    ("price_stale", {"view": at_price(PRICE, NOW_NS + 31 * SECOND_NS)}),  # some clock is wrong
    ("odd_lot", {"units": LOT + 1}),
    ("odd_lot", {"units": 1}),
    ("wrong_instrument", {"instrument": "NSE:NIFTY26OCTFUT"}),
    ("wrong_instrument", {"instrument": "NSE:NIFTY50-INDEX"}),
    ("off_collar", {"limit_price": PRICE * 1.00501}),
    ("too_many_lots", {"units": LOT * (LIMITS.max_lots + 1)}),
    ("symbol_notional", {"limits": limited(max_notional_rupees=LOT * PRICE - 1)}),
    ("gross_notional", {"limits": limited(max_gross_rupees=LOT * PRICE - 1)}),
    ("funds_unknown", {"view": replace(VIEW, free_funds_rupees=None)}),
    ("funds_unknown", {"view": replace(VIEW, free_funds_rupees=math.nan)}),
    ("no_funds", {"view": replace(VIEW, free_funds_rupees=LOT * PRICE * LIMITS.margin_ratio - 1)}),
    ("no_funds", {"view": replace(VIEW, free_funds_rupees=0.0)}),
    ("no_funds", {"view": replace(VIEW, free_funds_rupees=-1.0)}),
]


@pytest.mark.parametrize(("reason", "case"), OPENINGS)
def test_an_opening_that_breaks_a_limit_is_refused_by_its_name(reason: Reason, case: dict[str, Any]) -> None:
    assert refused(**{"units": LOT} | case) == reason


def test_every_reason_there_is_has_been_seen() -> None:
    assert {reason for reason, _ in OPENINGS} | {"halted"} == set(get_args(Reason))


@pytest.mark.parametrize(("reason", "case"), OPENINGS)
def test_the_same_cases_let_pass_what_only_closes(reason: Reason, case: dict[str, Any]) -> None:
    del reason
    view, limits = case.get("view", VIEW), case.get("limits", LIMITS)
    assert refused(-LOT, held=LOT, view=view, limits=limits) is None
    assert refused(LOT, held=-3.0 * LOT, view=view, limits=limits) is None


def test_where_all_is_halted_not_even_a_close_goes_out() -> None:
    halted = replace(VIEW, state="halted")
    assert refused(LOT, view=halted) == "halted"
    assert refused(-LOT, held=LOT, view=halted) == "halted"


@given(held=st.integers(-3000, 3000).filter(bool), share=st.floats(0.0, 1.0), seed=st.integers(0, 10**6))
def test_what_only_closes_passes_whatever_else_is_true(held: int, share: float, seed: int) -> None:
    """Also where limits were lowered below what is held, and an order of any odd size."""
    units = max(1, round(abs(held) * share)) * (-1 if held > 0 else 1)
    worst = limited(max_lots=1, max_notional_rupees=1.0, max_gross_rupees=1.0, max_price_age_s=1e-9)
    nothing = View(NOW_NS + seed, "reducing", {}, {}, {}, Equity(*[math.nan] * 4), None)
    assert refused(units, held=float(held), view=nothing, limits=worst) is None


def test_a_limit_that_was_lowered_below_what_is_held_lets_it_shrink_and_not_grow() -> None:
    low = limited(max_lots=2)
    assert refused(-LOT, held=10.0 * LOT, limits=low) is None
    assert refused(LOT, held=10.0 * LOT, limits=low) == "too_many_lots"
    assert refused(-11 * LOT, held=10.0 * LOT, limits=low) is None, "across zero to one lot, within the limits"
    assert refused(-13 * LOT, held=10.0 * LOT, limits=low) == "too_many_lots"


def test_an_order_across_zero_is_an_opening_and_its_closing_part_is_not() -> None:
    reducing = replace(VIEW, state="reducing")
    assert refused(-2 * LOT, held=LOT, view=reducing) == "reducing"
    assert closing_part(-2.0 * LOT, LOT) == -LOT
    assert refused(closing_part(-2.0 * LOT, LOT), held=LOT, view=reducing) is None
    assert [closing_part(*case) for case in ((5.0, 0.0), (5.0, 5.0), (-3.0, 5.0), (-5.0, 5.0))] == [
        5.0,
        5.0,
        -3.0,
        -5.0,
    ]


def test_closes_that_are_under_way_count_so_that_two_do_not_make_an_opening() -> None:
    closing = replace(VIEW, state="reducing", open_units={"NIFTY": (-float(LOT),)})
    assert refused(-LOT, held=LOT, view=closing) == "reducing"
    assert refused(-LOT, held=2.0 * LOT, view=closing) is None


def test_open_orders_count_as_if_they_were_filled() -> None:
    most = limited(max_lots=2)
    assert refused(LOT, view=replace(VIEW, open_units={"NIFTY": (2.0 * LOT,)}), limits=most) == "too_many_lots"
    assert refused(LOT, view=replace(VIEW, open_units={"NIFTY": (-2.0 * LOT,)}), limits=most) is None
    gross = limited(max_gross_rupees=LOT * PRICE + 30 * 60_000.0)
    for others in ({"units": {"BANKNIFTY": -30.0}}, {"open_units": {"BANKNIFTY": (30.0,)}}):
        assert refused(LOT, view=replace(VIEW, **others), limits=gross) is None
        assert refused(2 * LOT, view=replace(VIEW, **others), limits=gross) == "gross_notional"
    closing = replace(VIEW, units={"BANKNIFTY": 30.0}, open_units={"BANKNIFTY": (-30.0,)})
    assert refused(2 * LOT, view=closing, limits=gross) == "gross_notional", "it may not be filled"


def test_the_books_that_the_gateway_has_count_not_what_the_view_says_of_that_symbol() -> None:
    wrong = replace(VIEW, units={"NIFTY": -1000.0 * LOT})
    assert refused(LOT, view=wrong) is None


def test_margin_of_orders_that_the_broker_may_not_know_yet_is_taken() -> None:
    funds = LIMITS.margin_ratio * (LOT * PRICE + 30 * 60_000.0)
    ordered = replace(VIEW, open_units={"BANKNIFTY": (-30.0,)}, free_funds_rupees=funds)
    assert refused(LOT, view=ordered) is None
    assert refused(LOT, view=replace(ordered, free_funds_rupees=funds - 1)) == "no_funds"
    held = replace(VIEW, units={"BANKNIFTY": -30.0}, free_funds_rupees=LIMITS.margin_ratio * LOT * PRICE)
    assert refused(LOT, view=held) is None, "what is held is in the broker's figure"


def test_an_order_across_zero_needs_no_more_margin_than_there_was() -> None:
    assert refused(-2 * LOT, held=LOT, view=replace(VIEW, free_funds_rupees=1.0)) is None
    assert refused(-2 * LOT, held=LOT, view=replace(VIEW, free_funds_rupees=0.0)) == "no_funds", "it opens all the same"


@given(
    units=st.sampled_from([LOT, -LOT]),
    rupees=st.integers(1_000_000, 4_000_000).map(lambda hundredths: hundredths / 100),
    collar_bps=st.sampled_from([0.1, 10.0, 50.0, 123.4]),
)
@example(units=LOT, rupees=20_000.0, collar_bps=50.0)  # the collar lies on the grid
def test_a_ticket_s_own_limit_is_never_off_the_collar(units: int, rupees: float, collar_bps: float) -> None:
    made = ticket("a", units, rupees, traded=instrument("NIFTY"), day=risk.day_of(NOW_NS), collar_bps=collar_bps)
    limits, terms = limited(collar_bps=collar_bps), {"instrument": made.instrument, "limit_price": made.limit_price}
    assert refused(units, view=at_price(rupees), limits=limits, **terms) is None
    worse = terms | {"limit_price": made.limit_price + math.copysign(0.2, units)}
    assert refused(units, view=at_price(rupees), limits=limits, **worse) == "off_collar"


def test_a_limit_better_than_the_last_price_is_within_the_collar() -> None:
    assert refused(LOT, limit_price=PRICE / 2) is None
    assert refused(-LOT, limit_price=PRICE * 2) is None


def test_the_losses_of_a_day_allow_exits_only_until_the_next_session() -> None:
    at_limit = breach(losing(950_000.0), LIMITS)
    assert at_limit is not None
    assert (at_limit.state, at_limit.reason) == ("reducing", "daily_loss")
    next_open = datetime(2026, 11, 19, 9, 15, tzinfo=KOLKATA)
    assert at_limit.until_ns == int(next_open.timestamp()) * SECOND_NS
    assert breach(losing(950_000.01), LIMITS) is None


def test_a_drawdown_allows_exits_only_until_a_person_resumes_and_comes_first() -> None:
    found = breach(losing(800_000.0), LIMITS)
    assert found is not None
    assert (found.state, found.reason, found.until_ns) == ("reducing", "drawdown", None)
    slowly = breach(losing(1_000_000.0, opened=1_000_000.0, peak=1_200_000.0), LIMITS)
    assert slowly is not None
    assert slowly.reason == "drawdown"


def test_bars_that_no_model_decides_allow_exits_only_until_the_next_session() -> None:
    found = breach(replace(VIEW, undecided_bars=LIMITS.undecided_bars), LIMITS)
    assert found is not None
    assert (found.state, found.reason) == ("reducing", "undecided")
    assert found.until_ns == int(datetime(2026, 11, 19, 9, 15, tzinfo=KOLKATA).timestamp()) * SECOND_NS
    assert breach(replace(VIEW, undecided_bars=LIMITS.undecided_bars - 1), LIMITS) is None


def test_gains_and_equities_that_are_not_known_breach_nothing() -> None:
    assert breach(losing(2_000_000.0, peak=2_000_000.0), LIMITS) is None
    assert breach(losing(math.nan), LIMITS) is None


def test_at_the_calendar_s_end_a_person_says_when_a_lost_day_is_over() -> None:
    far = int(datetime(2030, 1, 2, 11, 0, tzinfo=KOLKATA).timestamp()) * SECOND_NS
    found = breach(replace(losing(940_000.0), now_ns=far), LIMITS)
    assert found is not None
    assert (found.reason, found.until_ns) == ("daily_loss", None)


units_of_books = st.integers(-30, 30).map(lambda lots: float(lots * LOT))


@given(
    units=units_of_books.filter(bool),
    held=units_of_books,
    open_orders=st.lists(units_of_books.filter(bool), max_size=3),
    other=st.integers(-20, 20).map(lambda lots: 30.0 * lots),
    rupees=st.floats(1.0, 1e6),
)
def test_what_may_go_out_leaves_every_limit_kept_or_a_smaller_position(
    units: float, held: float, open_orders: list[float], other: float, rupees: float
) -> None:
    prices = {"NIFTY": Price(rupees, NOW_NS), "BANKNIFTY": Price(60_000.0, NOW_NS)}
    orders = {"NIFTY": open_orders} if open_orders else {}
    view = replace(VIEW, prices=prices, units={"BANKNIFTY": other}, open_units=orders, free_funds_rupees=1e12)
    limits = limited(max_lots=10, max_notional_rupees=2e7, max_gross_rupees=4e7)
    if refused(units, held=held, view=view, limits=limits) is not None:
        return
    reached = held
    for filled in (*(each for each in open_orders if each * units > 0), units):  # what goes the same way, in any order
        reached += filled
    if abs(reached) < abs(held) or (reached == 0.0 and held):
        return
    assert abs(reached) <= 10 * LOT
    assert abs(reached) * rupees <= 2e7
    assert abs(reached) * rupees + abs(other) * 60_000.0 <= 4e7
