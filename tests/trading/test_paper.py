"""The ledger: a position is the sum of its fills, whatever is repeated and whoever is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BrokerError
from trading.costs import flat_costs
from trading.paper import Fill, Intent, Ledger, PaperBroker, position_of

NIFTY = "NIFTY"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "paper.db")
    yield ledger
    ledger.close()


def intent(bar_ns: int, units: float, reason: str = "BUY_LONG") -> Intent:
    return Intent(NIFTY, bar_ns, reason, units)


def test_an_order_fills_at_the_first_later_bar_and_only_once(ledger: Ledger) -> None:
    broker = PaperBroker(ledger, flat_costs(10.0))
    ledger.record_order(ledger.record_intent(intent(100, 5.0)))
    broker.fill_open_orders(NIFTY, 50.0, bar_ns=100)
    assert ledger.units(NIFTY) == 0.0
    for bar_ns in (200, 200, 300):
        broker.fill_open_orders(NIFTY, 60.0, bar_ns=bar_ns)
    assert ledger.fills(NIFTY) == [Fill(f"{NIFTY}:100", NIFTY, 5.0, 60.0, pytest.approx(0.3), 200)]


def test_a_repeated_intent_returns_the_one_on_record(ledger: Ledger) -> None:
    first = ledger.record_intent(intent(100, 5.0))
    assert ledger.record_intent(intent(100, -9.0)) == first
    assert ledger.last_intent(NIFTY) == first


def test_a_repeated_order_does_not_reopen_a_filled_one(ledger: Ledger) -> None:
    wanted = ledger.record_intent(intent(100, 5.0))
    for _ in range(2):
        ledger.record_order(wanted)
        PaperBroker(ledger, flat_costs(0.0)).fill_open_orders(NIFTY, 60.0, bar_ns=200)
    assert ledger.units(NIFTY) == 5.0


def test_a_cancelled_order_never_fills(ledger: Ledger) -> None:
    wanted = ledger.record_intent(intent(100, 5.0))
    ledger.record_order(wanted)
    assert ledger.cancel(wanted.intent_id)
    assert not ledger.cancel(wanted.intent_id)
    assert not ledger.record_fill(Fill(wanted.intent_id, NIFTY, 5.0, 1.0, 0.0, 200))
    assert ledger.units(NIFTY) == 0.0


def test_an_outcome_is_claimed_once(ledger: Ledger) -> None:
    wanted = ledger.record_intent(Intent(NIFTY, 100, "HOLD", 0.0, reported=False))
    assert [ledger.claim_report(wanted.intent_id) for _ in range(3)] == [True, False, False]


def test_positions_survive_reopening_and_are_listed_by_symbol(tmp_path: Path) -> None:
    for symbol, units in (("NIFTY", 5.0), ("BANKNIFTY", -2.0)):
        ledger = Ledger(tmp_path / "paper.db")
        PaperBroker(ledger, flat_costs(0.0)).fill_now(
            ledger.record_intent(Intent(symbol, 100, "BUY_LONG", units)), 10.0
        )
        ledger.close()
    ledger = Ledger(tmp_path / "paper.db")
    assert [(position.symbol, position.units) for position in ledger.positions()] == [
        ("BANKNIFTY", -2.0),
        ("NIFTY", 5.0),
    ]
    ledger.close()


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "paper.db").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(BrokerError, match=r"paper\.db: not usable"):
        Ledger(tmp_path / "paper.db")
    assert (tmp_path / "paper.db").read_bytes().startswith(b"not a database")


def test_average_price_and_realised_profit_worked_by_hand() -> None:
    trades = [(10, 100.0), (10, 110.0), (-15, 120.0), (-15, 90.0), (10, 80.0)]
    history = [Fill(str(at), NIFTY, units, price, 1.0, at) for at, (units, price) in enumerate(trades)]
    long = position_of(NIFTY, history[:2])
    assert (long.units, long.average_price, long.realised) == (20, 105.0, -2.0)
    short = position_of(NIFTY, history[:4])
    assert (short.units, short.average_price, short.realised) == (-10, 90.0, 15 * 15 - 5 * 15 - 4)
    flat = position_of(NIFTY, history)
    assert (flat.units, flat.average_price, flat.realised) == (0, 0.0, 225 - 75 + 100 - 5)


@given(st.lists(st.tuples(st.integers(-9, 9).filter(bool), st.integers(50, 150)), min_size=1, max_size=30))
def test_realised_and_open_profit_always_add_up_to_the_cash_that_moved(trades: list[tuple[int, int]]) -> None:
    history = [Fill(str(at), NIFTY, units, price, 0.0, at) for at, (units, price) in enumerate(trades)]
    position = position_of(NIFTY, history)
    mark = 123.0
    cash = sum(-units * price for units, price in trades) + position.units * mark
    assert position.units == sum(units for units, _ in trades)
    assert position.realised + position.units * (mark - position.average_price) == pytest.approx(cash)
