"""What is read for single reports leads to the same as all of the ledger would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from desk_world import DAY, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trading.broker import OrderReport, Trade, tag_of
from trading.instruments import instrument
from trading.reconcile import heard
from trading.standing import concerned, ours

NIFTY, BANKNIFTY = (instrument(symbol).traded_symbol(DAY) for symbol in ("NIFTY", "BANKNIFTY"))
SYMBOLS = {NIFTY: "NIFTY", BANKNIFTY: "BANKNIFTY"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """b1 filled, b2 rejected after no trade, b3 filled in part; one that is being sent, and a trade by hand."""
    world = World(Path(tmp_path_factory.mktemp("standing")))
    world.ready()
    world.decide("NIFTY", 1)
    world.fill(world.place())
    world.decide("BANKNIFTY", 1)
    world.exchange.end(world.place(), "rejected")
    world.exchange.trade_by_hand(NIFTY, 65, world.now_ns)
    world.tick(1)
    world.snapshot()
    world.decide("NIFTY", 1, quantity=130.0)
    world.decide("NIFTY", 0)
    world.fill(world.place(), -65)
    world.decide("BANKNIFTY", 1)
    yield world
    world.close()


def tags(world: World) -> list[str]:
    return [*(each.ticket.tag for each in world.exchange.orders.values()), tag_of("sent"), "HRMOTHER", "", "theirs"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_told_the_findings_are_the_same(world: World, data: st.DataObject) -> None:
    which = st.sampled_from([NIFTY, BANKNIFTY, "NSE:OTHER26NOVFUT"])
    ids, units = st.sampled_from(["b1", "b2", "b3", "b4", "m0", "b9"]), st.sampled_from([-65, -30, 30, 65])
    tag = st.sampled_from(tags(world))
    status = st.sampled_from(["open", "filled", "cancelled", "rejected"])
    report = st.builds(OrderReport, ids, tag, which, units, st.sampled_from([0, 30, 65, -65]), status)
    trade = st.builds(
        Trade,
        st.sampled_from(["t0", "t1", "h0", "n"]),
        ids,
        tag,
        which,
        units,
        st.just(24_000.0),
        st.just(world.now_ns),
    )
    reports, trades = data.draw(st.lists(report, max_size=2)), data.draw(st.lists(trade, max_size=2))
    assert world.ledger is not None
    part = concerned(world.ledger, DAY, SYMBOLS, [*reports, *trades])
    assert heard(part, reports, trades) == heard(ours(world.ledger, DAY, SYMBOLS), reports, trades)


def test_orders_that_nothing_is_said_about_are_not_read(world: World) -> None:
    assert world.ledger is not None
    first = world.exchange.orders["b1"].ticket
    told = OrderReport("b1", first.tag, NIFTY, 65, 65, "filled")
    read = concerned(world.ledger, DAY, SYMBOLS, [told]).orders
    assert first.tag in read
    assert len(read) < len(ours(world.ledger, DAY, SYMBOLS).orders)
