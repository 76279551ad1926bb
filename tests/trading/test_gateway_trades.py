"""What a broker does with an order: its id, its trades in parts, its end; and trades that no order of ours made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BrokerError
from core.settings import load_settings
from trading.broker import Trade
from trading.gateway import SECOND_NS, Accepted, OrderGateway, Refused
from trading.ledger import Ledger, Order, OrderState, position_of
from trading.ledger_tables import foreign_trades, refusals
from trading.ownership import Book, Handover, Owner, closed_by_hand

RULES = load_settings(preset="compact", environ={}).trading
PPO, HRM = "champion:ppo/v1", "challenger:hrm/v1"
FUTURE = "NSE:NIFTY26NOVFUT"
NOW_NS = 1_795_000_000 * SECOND_NS
DAY_NS = 86_400 * SECOND_NS


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[OrderGateway]:
    ledger = Ledger(tmp_path / "live.db")
    yield OrderGateway(ledger, RULES)
    ledger.close()


def order(order_id: str, units: float, *, owner: str = PPO, epoch: int | None = 1) -> Order:
    return Order(order_id, "NIFTY", units, owner, epoch, NOW_NS, NOW_NS, "d1", "v1", "NSE", FUTURE, 20000.5)


def trade(trade_id: str, units: int, *, price: float = 100.0, broker_id: str = "b1", at_ns: int = NOW_NS) -> Trade:
    return Trade(trade_id, broker_id, "", FUTURE, units, price, at_ns)


def state(gateway: OrderGateway, order_id: str) -> OrderState:
    found = gateway.ledger.order(order_id)
    assert found is not None
    return found


def status(gateway: OrderGateway, order_id: str) -> str:
    return state(gateway, order_id).status


def test_what_is_sent_is_on_record_as_it_was_accepted_and_comes_back_the_same(gateway: OrderGateway) -> None:
    wanted = order("a", 130.0)
    gateway.submit(wanted)
    assert gateway.submit(replace(wanted, limit_price=1.0)) == Accepted("a")  # sent again at another price: the first
    assert state(gateway, "a") == OrderState(wanted, "open")
    assert gateway.ledger.unfinished() == [OrderState(wanted, "open")]
    assert gateway.ledger.order("b") is None


def test_an_order_is_acknowledged_once_and_keeps_the_first_id(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 65.0))
    assert gateway.acknowledge("a", "b1")
    assert not gateway.acknowledge("a", "b1") and not gateway.acknowledge("a", "b2")
    assert state(gateway, "a").broker_id == "b1"


def test_parts_of_an_order_add_up_and_the_last_one_fills_it(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 130.0))
    assert gateway.book_trade("a", trade("t1", 65, price=100.0), 1.0)
    assert (status(gateway, "a"), state(gateway, "a").open_units) == ("open", 65.0)
    assert gateway.book_trade("a", trade("t2", 65, price=110.0), 1.0)
    assert (status(gateway, "a"), state(gateway, "a").open_units) == ("filled", 0.0)
    position = position_of("NIFTY", gateway.ledger.fills("NIFTY"))
    assert (position.units, position.average_price, position.costs, position.fills) == (130.0, 105.0, 2.0, 2)
    assert gateway.book("NIFTY").units == 130.0 and gateway.ledger.discrepancies() == []


def test_a_trade_is_booked_once_however_often_it_is_told(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 130.0))
    assert [gateway.book_trade("a", trade("t1", 65), 1.0) for _ in range(3)] == [True, False, False]
    assert gateway.ledger.units("NIFTY") == 65.0


def test_both_sides_of_a_trade_with_oneself_are_booked_and_numbers_come_again_another_day(
    gateway: OrderGateway,
) -> None:
    for order_id, units in (("buy", 65), ("sell", -65), ("tomorrow", 65)):
        gateway.submit(order(order_id, float(units)))
        assert gateway.book_trade(order_id, trade("1", units), 0.0)
    assert gateway.ledger.units("NIFTY") == 65.0


@pytest.mark.parametrize("end", ["cancelled", "rejected"])
def test_what_was_traded_is_booked_whatever_was_said_of_the_order(gateway: OrderGateway, end: str) -> None:
    gateway.submit(order("a", 130.0))
    gateway.book_trade("a", trade("t1", 65), 0.0)
    finish = gateway.cancel if end == "cancelled" else gateway.reject
    assert finish("a", "the limit") and not finish("a", "again")
    assert (status(gateway, "a"), state(gateway, "a").reason) == (end, "the limit")
    assert gateway.book_trade("a", trade("t2", 30), 0.0) and status(gateway, "a") == end
    assert gateway.book_trade("a", trade("t3", 35), 0.0) and status(gateway, "a") == "filled"
    assert gateway.ledger.units("NIFTY") == 130.0


def test_each_part_goes_to_whoever_owns_the_symbol_then(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 195.0, owner=HRM))
    gateway.acknowledge("a", "b1")
    gateway.book_trade("a", trade("t1", 65), 0.0)
    gateway.hand_over(Handover("NIFTY", Owner.parse(PPO), "flatten", 2, NOW_NS))
    assert status(gateway, "a") == "cancelling"  # the broker has it still
    assert [each.order_id for each in gateway.ledger.open_orders("NIFTY")] == ["a"]
    gateway.book_trade("a", trade("t2", 65), 0.0)
    assert gateway.cancel("a", "handed_over") and status(gateway, "a") == "cancelled"
    assert [(fill.units, fill.owner, fill.decision_id) for fill in gateway.ledger.fills("NIFTY")] == [
        (65.0, HRM, "d1"),
        (65.0, PPO, "d1"),
    ]
    assert gateway.ledger.holdings() == {("NIFTY", PPO): 130.0}
    assert gateway.book("NIFTY").exit_due(NOW_NS) and gateway.ledger.discrepancies() == []


def test_an_exit_waits_for_an_order_that_closes_as_well_and_may_still_be_filled(gateway: OrderGateway) -> None:
    gateway.submit(order("in", 130.0, owner=HRM))
    gateway.book_trade("in", trade("t1", 130), 0.0)
    gateway.submit(order("out", -130.0, owner=HRM))
    gateway.book_trade("out", trade("t2", -65), 0.0)
    gateway.hand_over(Handover("NIFTY", Owner.parse(PPO), "flatten", 2, NOW_NS))
    refused = gateway.submit(order("exit", -65.0, epoch=None))
    assert isinstance(refused, Refused) and refused.reason == "raises_exposure"
    gateway.cancel("out")
    assert gateway.submit(order("exit", -65.0, epoch=None)) == Accepted("exit")


def test_of_a_part_filled_exit_only_the_rest_is_under_way(gateway: OrderGateway) -> None:
    gateway.submit(order("in", 130.0))
    gateway.book_trade("in", trade("t1", 130), 0.0)
    gateway.submit(order("half", -65.0, epoch=None))
    gateway.book_trade("half", trade("t2", -30), 0.0)
    assert isinstance(gateway.submit(order("too much", -66.0, epoch=None)), Refused)
    assert gateway.submit(order("rest", -65.0, epoch=None)) == Accepted("rest")


def test_more_than_was_ordered_is_booked_and_may_only_become_less_until_it_is_flat(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 65.0))
    for number in range(2):
        gateway.book_trade("a", trade(f"t{number}", 65), 0.0)
    assert (status(gateway, "a"), state(gateway, "a").filled_units) == ("filled", 130.0)
    assert gateway.book("NIFTY").mode == "reduce_only" and gateway.ledger.discrepancies() == []
    assert isinstance(gateway.submit(order("more", 65.0)), Refused)
    gateway.submit(order("out", -130.0))
    gateway.book_trade("out", trade("t3", -130), 0.0)
    assert gateway.book("NIFTY").mode == "normal"


@pytest.mark.parametrize(
    "wrong",
    [
        trade("t", -65),
        trade("t", 0),
        trade("t", 65, price=0.0),
        trade("t", 65, price=float("nan")),
        replace(trade("t", 65), instrument="NSE:BANKNIFTY26NOVFUT"),
    ],
)
def test_a_trade_that_cannot_be_of_an_order_is_not_booked(gateway: OrderGateway, wrong: Trade) -> None:
    gateway.submit(order("a", 65.0))
    with pytest.raises(BrokerError, match="cannot be"):
        gateway.book_trade("a", wrong, 0.0)
    assert gateway.ledger.fills("NIFTY") == []


def test_nothing_becomes_of_an_order_that_the_gateway_never_accepted(gateway: OrderGateway) -> None:
    for call in (
        lambda: gateway.acknowledge("x", "b1"),
        lambda: gateway.cancel("x"),
        lambda: gateway.reject("x", ""),
        lambda: gateway.book_trade("x", trade("t", 65), 0.0),
    ):
        with pytest.raises(BrokerError, match="never accepted"):
            call()


@pytest.mark.parametrize("price", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_price_is_rupees_above_0(price: float) -> None:
    with pytest.raises(BrokerError, match="limit price"):
        replace(order("a", 65.0), limit_price=price)


def test_slices_of_an_intent_are_found_and_no_other_s(gateway: OrderGateway) -> None:
    names = ("N_FTY:1", "N_FTY:1/2", "N_FTY:1/3", "N_FTY:10", "N_FTY:1:square_off", "NIFTY:1/2")
    for name in names:
        gateway.submit(order(name, 65.0))
    assert [each.order.order_id for each in gateway.ledger.orders_of("N_FTY:1")] == list(names[:3])


def test_the_risk_engine_is_asked_within_the_transaction_and_its_refusal_is_on_record(tmp_path: Path) -> None:
    asked: list[Book] = []

    def judge(order: Order, book: Book) -> tuple[str, str] | None:
        asked.append(book)
        return None if abs(book.units + order.units) <= 65 else ("too_many_lots", "one is enough")

    ledger = Ledger(tmp_path / "live.db")
    gateway = OrderGateway(ledger, RULES, judge)
    assert gateway.submit(order("a", 65.0)) == Accepted("a")
    gateway.book_trade("a", trade("t1", 65), 0.0)
    assert gateway.submit(order("b", 65.0)) == Refused("b", "too_many_lots", "one is enough")
    assert asked[-1] == gateway.book("NIFTY")
    assert gateway.submit(order("a", 65.0)) == Accepted("a", "filled")  # it was judged when it was accepted
    assert isinstance(stale := gateway.submit(order("c", 65.0, epoch=0)), Refused) and stale.reason == "stale_epoch"
    assert len(asked) == 2  # nothing is judged that the gateway refuses itself
    with ledger.engine.connect() as connection:
        reasons = connection.execute(sa.select(refusals.c.reason).order_by(refusals.c.seq)).scalars().all()
    assert reasons == ["too_many_lots", "stale_epoch"]
    ledger.close()


def test_an_order_that_the_risk_engine_fails_to_judge_is_not_accepted(tmp_path: Path) -> None:
    def broken(_order: Order, _book: Book) -> tuple[str, str] | None:
        raise ZeroDivisionError

    ledger = Ledger(tmp_path / "live.db")
    with pytest.raises(ZeroDivisionError):
        OrderGateway(ledger, RULES, broken).submit(order("a", 65.0))
    assert ledger.order("a") is None
    ledger.close()


def by_hand(gateway: OrderGateway) -> list[tuple[float, float]]:
    wanted = sa.select(foreign_trades.c.units, foreign_trades.c.adopted_units).order_by(foreign_trades.c.seq)
    with gateway.ledger.engine.connect() as connection:
        return [(units, adopted) for units, adopted in connection.execute(wanted).tuples()]


def test_a_trade_by_hand_is_kept_apart_once(gateway: OrderGateway) -> None:
    told = trade("h1", 65, broker_id="hand")
    assert [gateway.foreign(told, "NIFTY", adopt=False) for _ in range(2)] == [True, False]
    assert by_hand(gateway) == [(65.0, 0.0)] and gateway.ledger.units("NIFTY") == 0.0
    tomorrow = replace(told, at_ns=NOW_NS + DAY_NS)
    assert gateway.foreign(tomorrow, "NIFTY", adopt=False)  # the exchange numbers trades and orders anew


def test_an_adopted_trade_is_the_owner_s(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 65.0, owner=HRM))
    gateway.book_trade("a", trade("t1", 65), 0.0)
    told = trade("h1", 130, broker_id="hand", price=103.0)
    assert [gateway.foreign(told, "NIFTY", adopt=True, cost=6.0) for _ in range(2)] == [True, False]
    fill = gateway.ledger.fills("NIFTY")[-1]
    assert (fill.order_id, fill.trade_id, fill.units, fill.owner, fill.cost) == ("", "h1", 130.0, HRM, 6.0)
    assert gateway.book("NIFTY").units == 195.0 and gateway.ledger.discrepancies() == []


def test_an_adopted_trade_of_a_symbol_that_was_never_traded_waits_for_the_champion(gateway: OrderGateway) -> None:
    gateway.foreign(trade("h1", 65, broker_id="hand"), "NIFTY", adopt=True)
    assert gateway.book("NIFTY") == Book("NIFTY", Owner.parse("champion:unknown/0"), 65.0)
    assert gateway.hand_over(Handover("NIFTY", Owner.parse(PPO), "adopt", 1, NOW_NS))
    assert gateway.ledger.holdings() == {("NIFTY", PPO): 65.0}


def test_what_is_traded_by_hand_elsewhere_is_never_ours(gateway: OrderGateway) -> None:
    other = replace(trade("h1", 10, broker_id="hand"), instrument="NSE:SBIN-EQ")
    assert gateway.foreign(other, None, adopt=True)
    assert by_hand(gateway) == [(10.0, 0.0)] and gateway.ledger.positions() == []


def test_who_closes_our_position_by_hand_or_as_the_broker_does_before_the_close_leaves_us_flat(
    gateway: OrderGateway,
) -> None:
    gateway.submit(order("a", 65.0))
    gateway.book_trade("a", trade("t1", 65, price=100.0), 0.0)
    gateway.foreign(trade("h1", 65, broker_id="hand"), "NIFTY", adopt=False)  # theirs
    gateway.foreign(trade("h2", -65, broker_id="hand"), "NIFTY", adopt=False)  # theirs again
    assert gateway.ledger.units("NIFTY") == 65.0
    gateway.foreign(trade("rms", -130, broker_id="rms", price=110.0), "NIFTY", adopt=False, cost=8.0)
    assert by_hand(gateway)[-1] == (-130.0, -65.0)
    position = position_of("NIFTY", gateway.ledger.fills("NIFTY"))
    assert (position.units, position.realised) == (0.0, 650.0 - 4.0)


@given(st.integers(-9, 9).filter(bool), st.integers(-9, 9), st.integers(-9, 9))
def test_a_trade_by_hand_closes_what_hands_made_before_what_is_ours(units: int, apart: int, held: int) -> None:
    ours = closed_by_hand(float(units), float(apart), float(held))
    one, expected, rest = (1 if units > 0 else -1), 0, held
    for _ in range(abs(units)):  # unit by unit
        if apart * one < 0:
            apart += one
        elif rest * one < 0:
            rest, expected = rest + one, expected + one
        else:
            apart += one
    assert ours == expected
    assert abs(held + ours) <= abs(held)
