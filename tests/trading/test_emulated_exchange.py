"""The emulated exchange by itself: what holds of its books whatever is sent to it."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fyers_emulator import hsm
from tests.fyers_emulator.books import LIMIT, MARKET, STOP_LIMIT, STOP_MARKET, NewOrder, Order
from tests.fyers_emulator.contracts import Contract, listed
from tests.fyers_emulator.exchange import Exchange, Fate, Refused, Rules

DAY = date(2026, 11, 20)
NOW = 1_795_000_000.0
A, B = "NSE:A-EQ", "NSE:B26NOVFUT"
CONTRACTS = {A: Contract(A), B: Contract(B, lot=10, freeze=100)}


def exchange(**rules: Any) -> Exchange:
    made = Exchange(dict(CONTRACTS), DAY, cash=1e9)
    made.rules = Rules(**rules)
    return made


new_orders = st.builds(
    NewOrder,
    symbol=st.sampled_from([A, B]),
    side=st.sampled_from([1, -1]),
    qty=st.integers(1, 12).map(lambda n: 10 * n),
    type=st.sampled_from([LIMIT, MARKET, STOP_MARKET, STOP_LIMIT]),
    limit=st.integers(95, 105).map(float),
    stop=st.integers(95, 105).map(float),
    product=st.sampled_from(["INTRADAY", "MARGIN"]),
    validity=st.sampled_from(["DAY", "IOC"]),
)
fates = st.sampled_from([Fate(), Fate(), Fate(), Fate(rejection="no"), Fate(ratio=0.5)])
steps = st.one_of(
    st.tuples(st.just("place"), new_orders, fates),
    st.tuples(st.just("price"), st.sampled_from([A, B]), st.integers(95, 105).map(float)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("modify"), st.integers(0, 20), st.integers(1, 12).map(lambda n: 10 * n)),
    st.tuples(st.just("night")),
)
rules = st.builds(Rules, fill=st.sampled_from(["arrival", "next_tick"]), units_per_fill=st.sampled_from([None, 10, 30]))


def act(venue: Exchange, step: tuple[Any, ...]) -> None:
    ids = list(venue.today.orders)
    if step[0] == "place":
        venue.place(step[1], NOW, step[2])
    elif step[0] == "price":
        venue.price(step[1], step[2], NOW)
    elif step[0] == "night":
        venue.begin(date.fromordinal(venue.today.day.toordinal() + 1), NOW)
    elif ids and step[0] == "cancel":
        venue.cancel(ids[step[1] % len(ids)])
    elif ids:
        venue.modify(ids[step[1] % len(ids)], NOW, qty=step[2])


def played(steps_taken: list[tuple[Any, ...]], ruled: Rules) -> Exchange:
    venue = exchange()
    venue.rules = ruled
    for step in steps_taken:
        try:
            act(venue, step)
        except Refused:
            continue
    return venue


@given(st.lists(steps, max_size=40), rules)
def test_books_agree_whatever_is_sent(taken: list[tuple[Any, ...]], ruled: Rules) -> None:
    venue = played(taken, ruled)
    carried: dict[tuple[str, str], int] = {}
    for day in [*venue.past, venue.today]:
        traded: dict[tuple[str, str], int] = defaultdict(int, carried)
        filled: dict[str, int] = defaultdict(int)
        for trade in day.trades:
            traded[trade.symbol, trade.new.product] += trade.units
            filled[trade.order_id] += trade.qty
        assert {key: p.units for key, p in day.positions.items() if p.units} == {k: v for k, v in traded.items() if v}
        for order in day.orders.values():
            assert order.filled == filled[order.id] <= order.qty
            assert (order.filled == order.qty) == (order.status == 2)
        carried = {key: units for key, units in traded.items() if key[1] != "INTRADAY"}
    for day in venue.past:
        assert not any(order.open for order in day.orders.values())


@given(st.lists(steps, max_size=40), rules)
def test_the_same_calls_give_the_same_ids_trades_and_updates(taken: list[tuple[Any, ...]], ruled: Rules) -> None:
    one, other = played(taken, ruled), played(taken, ruled)
    assert one.changes == other.changes
    assert one.today == other.today


@given(st.lists(steps, max_size=40), rules)
def test_no_limit_order_trades_beyond_its_limit(taken: list[tuple[Any, ...]], ruled: Rules) -> None:
    venue = played([step for step in taken if step[0] != "night"], ruled)
    for trade in venue.today.trades:
        order = venue.today.orders[trade.order_id]
        if order.new.type in (LIMIT, STOP_LIMIT):
            assert order.new.side * (order.limit - trade.price) >= 0


@given(st.lists(steps, max_size=40), rules)
def test_updates_of_an_order_end_as_its_book_does(taken: list[tuple[Any, ...]], ruled: Rules) -> None:
    venue = played(taken, ruled)
    last = {change.id: change for change in venue.changes if isinstance(change, Order)}
    for day in [*venue.past, venue.today]:
        for order in day.orders.values():
            assert (last[order.id].status, last[order.id].filled) == (order.status, order.filled)


def test_a_stop_waits_for_its_trigger() -> None:
    venue = exchange()
    venue.price(A, 100.0, NOW)
    order = venue.place(NewOrder(A, -1, 10, STOP_MARKET, stop=98.0), NOW)
    venue.price(A, 98.5, NOW)
    assert order.open
    venue.price(A, 97.0, NOW)
    assert (order.status, order.average) == (2, 97.0)


def test_the_listing_of_a_day_has_its_lots_months_and_no_others() -> None:
    contracts = listed(DAY)
    assert {"NSE:NIFTY50-INDEX", "NSE:NIFTY26NOVFUT", "NSE:NIFTY26DECFUT", "NSE:NIFTY27JANFUT"} <= set(contracts)
    assert "NSE:NIFTY26OCTFUT" not in contracts
    assert (contracts["NSE:NIFTY26NOVFUT"].lot, contracts["NSE:NIFTY26NOVFUT"].freeze) == (65, 1800)
    assert contracts["NSE:NIFTY26NOVFUT"].follows == "NSE:NIFTY50-INDEX"
    assert not contracts["NSE:NIFTY50-INDEX"].tradable
    assert (contracts["NSE:NIFTY26NOVFUT"].segment, contracts["NSE:NIFTYBEES-EQ"].segment) == (11, 10)
    assert len({each.fy_token for each in contracts.values()}) == len(contracts)


@given(st.binary(max_size=60))
def test_any_frame_is_read_or_refused(frame: bytes) -> None:
    with suppress(hsm.FrameError):
        hsm.parse(frame)


@pytest.mark.parametrize("qty", [5, 110])
def test_odd_lots_and_frozen_quantities_are_refused(qty: int) -> None:
    with pytest.raises(Refused) as refused:
        exchange().place(NewOrder(B, 1, qty, limit=100.0), NOW)
    assert refused.value.code == -50
