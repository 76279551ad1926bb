"""The simulated broker: fills at the next price that the limit allows, and a book that the ledger gives back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.settings import Settings
from trading import reconcile
from trading.broker import OrderReport, Ticket, Trade
from trading.costs import flat_costs
from trading.gateway import Accepted, OrderGateway
from trading.ledger import Ledger, Order
from trading.sandbox import SandboxBroker
from trading.standing import ours
from trading.ticks import Tick

FUTURE = "NSE:NIFTY26NOVFUT"
DAY = date(2026, 11, 18)
NOW_NS = int(datetime(2026, 11, 18, 5, 0, tzinfo=UTC).timestamp()) * 10**9
CAPITAL, MARGIN = 1_000_000.0, 0.15


def tick(price: float, symbol: str = FUTURE) -> Tick:
    return Tick(symbol, price, NOW_NS, NOW_NS)


def ticket(units: int = 65, limit: float = 24_010.0, name: str = "NIFTY:1") -> Ticket:
    return Ticket(name, FUTURE, units, limit)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "live-paper.db")
    yield ledger
    ledger.close()


def sandbox(ledger: Ledger, now_ns: int = NOW_NS) -> SandboxBroker:
    costs = {FUTURE: flat_costs(1.0)}
    return SandboxBroker(ledger, costs, capital=CAPITAL, margin_ratio=MARGIN, clock=lambda: now_ns)


def test_a_ticket_is_filled_wholly_at_the_next_price_within_its_limit(ledger: Ledger) -> None:
    broker = sandbox(ledger)
    told: list[OrderReport | Trade] = []
    broker.start(told.append, lambda: None)
    placed = broker.place(ticket())
    broker.see(tick(24_010.05))  # beyond the limit
    broker.see(tick(24_000.0, "NSE:BANKNIFTY26NOVFUT"))  # of something else
    assert told == []
    broker.see(tick(24_000.0))
    broker.see(tick(23_990.0))
    trade, report = told
    assert isinstance(trade, Trade)
    assert isinstance(report, OrderReport)
    assert (trade.units, trade.price, trade.broker_id, trade.tag) == (65, 24_000.0, placed.broker_id, ticket().tag)
    assert (report.status, report.filled_units) == ("filled", 65)


@settings(max_examples=30)
@given(price=st.floats(allow_nan=True, allow_infinity=True), units=st.sampled_from([-65, 65]))
def test_no_price_fills_beyond_the_limit_and_what_is_none_fills_nothing(
    tmp_path_factory: pytest.TempPathFactory, price: float, units: int
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("sandbox") / "live-paper.db")
    broker = sandbox(ledger)
    broker.place(ticket(units))
    broker.see(tick(price))
    ledger.close()
    for trade in broker.snapshot().trades:
        assert math.isfinite(trade.price)
        assert trade.price > 0
        assert trade.price <= 24_010.0 if units > 0 else trade.price >= 24_010.0


def test_a_cancelled_order_is_never_filled_and_a_filled_one_not_cancelled(ledger: Ledger) -> None:
    broker = sandbox(ledger)
    gone, done = broker.place(ticket(name="NIFTY:1")), broker.place(ticket(limit=24_020.0, name="NIFTY:2"))
    broker.cancel(gone.broker_id)
    broker.see(tick(24_000.0))
    broker.cancel(done.broker_id)
    broker.cancel("nobody's")
    assert {each.broker_id: each.status for each in broker.snapshot().orders} == {
        gone.broker_id: "cancelled",
        done.broker_id: "filled",
    }


def test_the_same_order_twice_is_one_order_with_the_same_ids_in_every_process(ledger: Ledger) -> None:
    broker, another = sandbox(ledger), sandbox(ledger)
    assert broker.place(ticket()) == broker.place(ticket()) == another.place(ticket())
    broker.see(tick(24_000.0))
    broker.place(ticket())
    broker.see(tick(24_000.0))
    another.see(tick(24_000.0))
    assert len(broker.snapshot().trades) == 1
    assert broker.snapshot() == another.snapshot()


def test_what_is_held_and_what_it_cost_is_not_free(ledger: Ledger) -> None:
    broker = sandbox(ledger)
    assert broker.snapshot().funds_rupees == CAPITAL
    broker.place(ticket())
    broker.see(tick(24_000.0))
    value = 65 * 24_000.0
    assert broker.snapshot().funds_rupees == pytest.approx(CAPITAL - value * (MARGIN + 1e-4))


def book(ledger: Ledger, broker: SandboxBroker, settings: Settings, name: str, *, filled: bool) -> OrderGateway:
    """One order through the gateway, to the broker and, if it was filled, back into the ledger."""
    gateway, own = OrderGateway(ledger, settings.trading), ticket(name=name)
    order = Order(name, "NIFTY", 65.0, "champion:hrm/v1", 1, NOW_NS, NOW_NS, instrument=FUTURE, limit_price=24_010.0)
    assert isinstance(gateway.submit(order), Accepted)
    gateway.acknowledge(name, broker.place(own).broker_id)
    if filled:
        broker.see(tick(24_000.0))
        trade = next(each for each in broker.snapshot().trades if each.tag == own.tag)
        gateway.book_trade(name, trade, 156.0)
    return gateway


def test_a_new_process_has_the_book_that_the_ledger_says(ledger: Ledger, paper_settings: Settings) -> None:
    broker = sandbox(ledger)
    book(ledger, broker, paper_settings, "NIFTY:1", filled=True)
    book(ledger, broker, paper_settings, "NIFTY:2", filled=False)
    again = sandbox(ledger)
    before, after = broker.snapshot(), again.snapshot()
    assert set(after.orders) == set(before.orders)
    assert after.trades == before.trades
    assert after.holdings == before.holdings
    found = reconcile.reconcile(ours(ledger, DAY, {FUTURE: "NIFTY"}), after, unknown={}, settle_ns=0)
    assert not found.changes
    assert found.problems == ()
    again.see(tick(24_005.0))  # and what was open is filled there
    assert len(again.snapshot().trades) == 2


def test_what_the_ledger_was_not_told_of_never_happened(ledger: Ledger, paper_settings: Settings) -> None:
    broker = sandbox(ledger)
    gateway = book(ledger, broker, paper_settings, "NIFTY:1", filled=False)
    broker.see(tick(24_000.0))  # the process dies before it hears of it
    gateway.submit(
        Order("NIFTY:2", "NIFTY", 65.0, "champion:hrm/v1", 1, NOW_NS, NOW_NS, instrument=FUTURE, limit_price=1.0)
    )
    again = sandbox(ledger).snapshot()
    assert [(each.tag, each.status) for each in again.orders] == [(ticket().tag, "open")]
    assert again.trades == ()
    later = replace(again, at_ns=NOW_NS + 10**10)
    found = reconcile.reconcile(
        ours(ledger, DAY, {FUTURE: "NIFTY"}), later, unknown={"NIFTY:2": NOW_NS}, settle_ns=3 * 10**9
    )
    assert found.cancelled == (("NIFTY:2", "never_arrived"),)


def test_orders_of_another_day_are_over_and_what_they_left_is_held(ledger: Ledger, paper_settings: Settings) -> None:
    book(ledger, sandbox(ledger), paper_settings, "NIFTY:1", filled=True)
    tomorrow = sandbox(ledger, NOW_NS + 24 * 3600 * 10**9).snapshot()
    assert (tomorrow.orders, tomorrow.trades) == ((), ())
    assert [(each.instrument, each.units) for each in tomorrow.holdings] == [(FUTURE, 65)]
