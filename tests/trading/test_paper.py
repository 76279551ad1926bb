"""Ledger and paper broker: a position is the sum of its fills, whatever is repeated and whoever is killed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BrokerError
from core.settings import load_settings
from trading.costs import flat_costs
from trading.gateway import Accepted, OrderGateway, Refused
from trading.ledger import Fill, Intent, Ledger, Order, position_of
from trading.ledger_tables import LEGACY_OWNER
from trading.paper import PaperBroker

NIFTY, PPO = "NIFTY", "champion:ppo/v1"
RULES = load_settings(preset="compact", environ={}).trading
OLD_LEDGER = Path(__file__).with_name("old_ledger.sql")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "paper.db")
    yield ledger
    ledger.close()


def order(bar_ns: int, units: float, symbol: str = NIFTY) -> Order:
    return Order(f"{symbol}:{bar_ns}", symbol, units, PPO, epoch=1, at_ns=bar_ns, bar_ns=bar_ns)


def test_an_order_fills_at_the_first_later_bar_and_only_once(ledger: Ledger) -> None:
    gateway = OrderGateway(ledger, RULES)
    broker = PaperBroker(gateway, flat_costs(10.0))
    gateway.submit(order(100, 5.0))
    broker.fill_open_orders(NIFTY, 50.0, bar_ns=100)
    assert ledger.units(NIFTY) == 0.0
    for bar_ns in (200, 200, 300):
        broker.fill_open_orders(NIFTY, 60.0, bar_ns=bar_ns)
    order_id = f"{NIFTY}:100"
    assert ledger.fills(NIFTY) == [Fill(order_id, NIFTY, 5.0, 60.0, pytest.approx(0.3), 200, PPO, trade_id=order_id)]


def test_a_repeated_intent_returns_the_one_on_record(ledger: Ledger) -> None:
    first = ledger.record_intent(Intent(NIFTY, 100, "BUY_LONG", 5.0, owner=PPO, handover="flatten", flatten_at_ns=7))
    assert ledger.record_intent(Intent(NIFTY, 100, "BUY_LONG", -9.0)) == first
    assert ledger.last_intent(NIFTY) == ledger.intent(f"{NIFTY}:100") == first


def test_a_repeated_order_does_not_reopen_a_filled_one(ledger: Ledger) -> None:
    gateway = OrderGateway(ledger, RULES)
    for _ in range(2):
        gateway.submit(order(100, 5.0))
        PaperBroker(gateway, flat_costs(0.0)).fill_open_orders(NIFTY, 60.0, bar_ns=200)
    assert ledger.units(NIFTY) == 5.0


def test_a_cancelled_order_is_not_filled_on_paper(ledger: Ledger) -> None:
    gateway = OrderGateway(ledger, RULES)
    gateway.submit(order(100, 5.0))
    assert gateway.cancel(f"{NIFTY}:100")
    assert not gateway.cancel(f"{NIFTY}:100")
    PaperBroker(gateway, flat_costs(0.0)).fill_open_orders(NIFTY, 60.0, bar_ns=200)
    assert ledger.units(NIFTY) == 0.0


def test_an_outcome_is_claimed_once(ledger: Ledger) -> None:
    wanted = ledger.record_intent(Intent(NIFTY, 100, "HOLD", 0.0, reported=False))
    assert [ledger.claim_report(wanted.intent_id) for _ in range(3)] == [True, False, False]


def test_positions_survive_reopening_and_are_listed_by_symbol(tmp_path: Path) -> None:
    for symbol, units in (("NIFTY", 5.0), ("BANKNIFTY", -2.0)):
        ledger = Ledger(tmp_path / "paper.db")
        gateway = OrderGateway(ledger, RULES)
        gateway.submit(order(100, units, symbol))
        PaperBroker(gateway, flat_costs(0.0)).fill(order(100, units, symbol), 10.0, bar_ns=100)
        ledger.close()
    ledger = Ledger(tmp_path / "paper.db")
    assert [(position.symbol, position.units) for position in ledger.positions()] == [
        ("BANKNIFTY", -2.0),
        ("NIFTY", 5.0),
    ]
    assert ledger.holdings() == {("BANKNIFTY", PPO): -2.0, ("NIFTY", PPO): 5.0}
    ledger.close()


def test_a_file_that_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "paper.db").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(BrokerError, match=r"paper\.db: not usable"):
        Ledger(tmp_path / "paper.db")
    assert (tmp_path / "paper.db").read_bytes().startswith(b"not a database")


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A ledger of the first version: NIFTY 3 long after a sale, BANKNIFTY with an order that is still open."""
    with sqlite3.connect(tmp_path / "paper.db") as connection:
        connection.executescript(OLD_LEDGER.read_text(encoding="utf-8"))
    connection.close()
    return tmp_path / "paper.db"


def test_a_ledger_of_the_first_version_is_brought_up_to_date(old_file: Path) -> None:
    for _ in range(2):  # and the second time it is up to date
        ledger = Ledger(old_file)
        assert [(fill.order_id, fill.units, fill.price, fill.owner) for fill in ledger.fills(NIFTY)] == [
            ("NIFTY:100", 5.0, 60.0, LEGACY_OWNER),
            ("NIFTY:300", -2.0, 70.0, LEGACY_OWNER),
        ]
        assert ledger.last_intent(NIFTY) == Intent(
            NIFTY, 300, "SELL_SHORT", -2.0, 1, -1, 0, 0, "v1", 4, True, owner=LEGACY_OWNER
        )
        assert [(each.order_id, each.units) for each in ledger.open_orders("BANKNIFTY")] == [("BANKNIFTY:300", -7.0)]
        assert ledger.holdings() == {(NIFTY, LEGACY_OWNER): 3.0}
        assert ledger.discrepancies() == []
        ledger.close()


def test_what_was_traded_before_owners_were_known_is_fenced_and_owned(old_file: Path) -> None:
    ledger = Ledger(old_file)
    gateway = OrderGateway(ledger, RULES)
    assert gateway.book(NIFTY).units == 3.0
    late = gateway.submit(Order("x", NIFTY, -1.0, LEGACY_OWNER, epoch=3, at_ns=400, bar_ns=400))
    assert isinstance(late, Refused) and late.reason == "stale_epoch"
    assert gateway.submit(Order("y", NIFTY, -1.0, LEGACY_OWNER, epoch=4, at_ns=400, bar_ns=400)) == Accepted("y")
    ledger.close()


def test_many_may_open_an_old_file_at_once(old_file: Path) -> None:
    found: list[list[str]] = []

    def use() -> None:
        ledger = Ledger(old_file)
        found.append([fill.order_id for fill in ledger.fills(NIFTY)])
        ledger.close()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["NIFTY:100", "NIFTY:300"]] * 8


def test_a_ledger_that_does_not_add_up_says_where(ledger: Ledger) -> None:
    gateway = OrderGateway(ledger, RULES)
    gateway.submit(order(100, 5.0))
    PaperBroker(gateway, flat_costs(0.0)).fill(order(100, 5.0), 10.0, bar_ns=200)
    assert ledger.discrepancies() == []
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE fills SET units = 4")
    assert ledger.discrepancies() == [
        "order NIFTY:100 says 5.0 units are filled, and its fills say 4.0",
        f"NIFTY: broker 4.0, owners {{'{PPO}': 4.0}}, book {PPO} 5.0",
    ]


def test_average_price_and_realised_profit_worked_by_hand() -> None:
    trades = [(10, 100.0), (10, 110.0), (-15, 120.0), (-15, 90.0), (10, 80.0)]
    history = [Fill(str(at), NIFTY, units, price, 1.0, at, PPO) for at, (units, price) in enumerate(trades)]
    long = position_of(NIFTY, history[:2])
    assert (long.units, long.average_price, long.realised) == (20, 105.0, -2.0)
    short = position_of(NIFTY, history[:4])
    assert (short.units, short.average_price, short.realised) == (-10, 90.0, 15 * 15 - 5 * 15 - 4)
    flat = position_of(NIFTY, history)
    assert (flat.units, flat.average_price, flat.realised) == (0, 0.0, 225 - 75 + 100 - 5)


@given(st.lists(st.tuples(st.integers(-9, 9).filter(bool), st.integers(50, 150)), min_size=1, max_size=30))
def test_realised_and_open_profit_always_add_up_to_the_cash_that_moved(trades: list[tuple[int, int]]) -> None:
    history = [Fill(str(at), NIFTY, units, price, 0.0, at, PPO) for at, (units, price) in enumerate(trades)]
    position = position_of(NIFTY, history)
    mark = 123.0
    cash = sum(-units * price for units, price in trades) + position.units * mark
    assert position.units == sum(units for units, _ in trades)
    assert position.realised + position.units * (mark - position.average_price) == pytest.approx(cash)
