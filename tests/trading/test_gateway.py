"""What the gateway refuses, what it lets pass, and that many at once find one truth."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from benchmarks.orders import interleaved
from core.errors import BrokerError
from core.settings import load_settings
from trading.gateway import SECOND_NS, Accepted, OrderGateway, Refused
from trading.ledger import Ledger, Order
from trading.ledger_tables import orders, refusals
from trading.ownership import Handover, Owner

RULES = load_settings(preset="compact", environ={}).trading
PPO, HRM = "champion:ppo/v1", "challenger:hrm/v1"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[OrderGateway]:
    ledger = Ledger(tmp_path / "paper.db")
    yield OrderGateway(ledger, RULES)
    ledger.close()


def order(order_id: str, units: float, *, owner: str = PPO, epoch: int | None = 1, at_s: float = 0.0) -> Order:
    return Order(order_id, "NIFTY", units, owner, epoch, int(at_s * SECOND_NS), 0, f"decision of {order_id}", "v1")


def reason(result: Accepted | Refused) -> str | None:
    return result.reason if isinstance(result, Refused) else None


def hold(gateway: OrderGateway, units: float, owner: str = PPO) -> None:
    gateway.submit(order("first", units, owner=owner, at_s=-100.0))
    gateway.fill("first", 100.0, 0.0, 0)


def test_an_order_is_on_record_with_all_that_an_audit_asks_for(gateway: OrderGateway) -> None:
    gateway.submit(order("a", 5.0, owner=HRM, epoch=3))
    with gateway.ledger.engine.connect() as connection:
        row = connection.execute(sa.select(orders)).mappings().one()
    expected = {"owner": HRM, "epoch": 3, "decision_id": "decision of a", "algo_id": "hrm-paper", "model_version": "v1"}
    assert {name: row[name] for name in expected} == expected


def test_an_epoch_once_seen_fences_every_older_one_also_after_a_restart(gateway: OrderGateway) -> None:
    gateway.raise_fence(7)
    gateway.raise_fence(5)
    assert reason(gateway.submit(order("a", 1.0, epoch=6))) == "stale_epoch"
    again = OrderGateway(Ledger(gateway.ledger.path), RULES)
    assert reason(again.submit(order("b", 1.0, epoch=6))) == "stale_epoch"
    assert again.submit(order("c", 1.0, epoch=9)) == Accepted("c")
    assert reason(gateway.submit(order("d", 1.0, epoch=8))) == "stale_epoch"
    again.ledger.close()


def test_within_a_batch_a_newer_epoch_fences_what_comes_after_it(gateway: OrderGateway) -> None:
    results = gateway.submit_all([order("a", 1.0, epoch=1), order("b", 1.0, epoch=2), order("c", 1.0, epoch=1)])
    assert [reason(result) for result in results] == [None, None, "stale_epoch"]


def test_a_refused_order_is_on_record_with_its_reason(gateway: OrderGateway) -> None:
    gateway.raise_fence(2)
    gateway.submit(order("a", 1.0, epoch=1))
    with gateway.ledger.engine.connect() as connection:
        row = connection.execute(sa.select(refusals)).one()
    assert (row.order_id, row.owner, row.epoch, row.reason) == ("a", PPO, 1, "stale_epoch")


@pytest.mark.parametrize("units", [0.0, 0.5, float("nan"), float("inf"), -float("inf")])
def test_an_order_of_no_whole_units_is_no_order(units: float) -> None:
    with pytest.raises(BrokerError, match="whole units"):
        order("a", units)


def test_an_order_of_nobody_is_no_order() -> None:
    for owner in ("", "shadow:hrm/v1", "champion", "champion:"):
        with pytest.raises(BrokerError, match="names no owner"):
            order("a", 1.0, owner=owner)


def test_a_position_stays_with_its_owner_until_it_is_flat(gateway: OrderGateway) -> None:
    hold(gateway, 5.0, HRM)
    assert reason(gateway.submit(order("a", -5.0))) == "not_owner"
    gateway.submit(order("b", -5.0, owner=HRM))
    assert reason(gateway.submit(order("c", 1.0))) == "not_owner"  # an open order keeps it as well
    gateway.fill("b", 101.0, 0.0, 0)
    assert gateway.submit(order("d", 1.0)) == Accepted("d")
    assert gateway.book("NIFTY").owner == Owner("champion", "ppo/v1")


@pytest.mark.parametrize("held", [5.0, -5.0])
def test_an_exit_may_only_make_a_position_smaller(gateway: OrderGateway, held: float) -> None:
    hold(gateway, held)
    sign = 1.0 if held > 0 else -1.0
    assert reason(gateway.submit(order("more", sign, epoch=None))) == "raises_exposure"
    assert reason(gateway.submit(order("through", -6.0 * sign, epoch=None))) == "raises_exposure"
    assert gateway.submit(order("half", -3.0 * sign, epoch=None)) == Accepted("half")
    assert reason(gateway.submit(order("twice", -3.0 * sign, epoch=None))) == "raises_exposure"
    gateway.cancel("half")
    assert gateway.submit(order("all", -5.0 * sign, epoch=None)) == Accepted("all")


def test_in_a_frozen_symbol_nothing_is_new_but_cancels_pass(gateway: OrderGateway) -> None:
    hold(gateway, 5.0, HRM)
    gateway.submit(order("open", 1.0, owner=HRM))
    gateway.hand_over(Handover("NIFTY", Owner("champion", "ppo/v1"), "freeze", 2, 0))
    for units, epoch in ((1.0, 2), (-5.0, 2), (-5.0, None)):
        assert reason(gateway.submit(order(f"{units} {epoch}", units, epoch=epoch))) == "frozen"
    assert not gateway.cancel("open")  # the hand-over did
    assert gateway.release("NIFTY", 1) and not gateway.release("NIFTY", 2)
    gateway.submit(order("free", 1.0, epoch=2))
    gateway.hand_over(Handover("NIFTY", Owner("champion", "rule/v1"), "freeze", 3, 0))
    assert gateway.ledger.open_orders("NIFTY") == []


def test_a_fill_that_comes_after_the_rollback_books_to_its_decision_and_the_new_owner(gateway: OrderGateway) -> None:
    gateway.submit(order("late", 5.0, owner=HRM))
    gateway.hand_over(Handover("NIFTY", Owner("champion", "ppo/v1"), "flatten", 2, 0))
    assert gateway.fill("late", 100.0, 0.0, 0) and not gateway.fill("late", 100.0, 0.0, 0)
    (fill,) = gateway.ledger.fills("NIFTY")
    assert (fill.owner, fill.decision_id) == (PPO, "decision of late")
    assert gateway.book("NIFTY").exit_due(0)  # what came late goes as the rest did
    assert gateway.ledger.holdings() == {("NIFTY", PPO): 5.0}


def test_a_fill_of_nobody_s_order_is_an_error(gateway: OrderGateway) -> None:
    with pytest.raises(BrokerError, match="never accepted"):
        gateway.fill("ghost", 100.0, 0.0, 0)


def test_the_eleventh_order_of_a_second_waits_and_no_decision_is_lost(gateway: OrderGateway) -> None:
    results = gateway.submit_all([order(str(number), 1.0, at_s=number / 20) for number in range(11)])
    assert [reason(result) for result in results] == [None] * 10 + ["too_many_orders"]
    late = results[-1]
    assert isinstance(late, Refused) and late.retry_at_ns == SECOND_NS
    assert gateway.submit(replace(order("10", 1.0), at_ns=SECOND_NS)) == Accepted("10")
    elsewhere = replace(order("bse", 1.0, at_s=0.5), exchange="BSE")
    assert gateway.submit(elsewhere) == Accepted("bse")


@given(st.lists(st.integers(0, 3000), min_size=30, max_size=30))
@effort(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_second_has_more_orders_than_allowed_whatever_order_they_come_in(
    tmp_path_factory: pytest.TempPathFactory, sent_ms: list[int]
) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("rate") / "paper.db")
    gateway = OrderGateway(ledger, RULES)
    for number, at_ms in enumerate(sent_ms):
        wanted = order(str(number), 1.0, at_s=at_ms / 1e3)
        while isinstance(result := gateway.submit(wanted), Refused):
            assert result.retry_at_ns is not None and result.retry_at_ns > wanted.at_ns
            wanted = replace(wanted, at_ns=result.retry_at_ns)
    stamps = sorted(each.at_ns for each in ledger.open_orders("NIFTY"))
    ledger.close()
    assert len(stamps) == 30
    eleventh = zip(stamps, stamps[RULES.orders_per_s :], strict=False)
    assert all(last - first >= SECOND_NS for first, last in eleventh)


def test_a_replay_of_older_bars_is_not_held_up_by_the_orders_of_newer_ones(gateway: OrderGateway) -> None:
    gateway.submit_all([order(f"new {number}", 1.0, at_s=1e6) for number in range(10)])
    assert gateway.submit(order("old", 1.0, at_s=5.0)) == Accepted("old")


def test_the_same_orders_from_many_threads_are_accepted_once(gateway: OrderGateway) -> None:
    wanted = [order(str(number), 1.0, at_s=float(number)) for number in range(20)]

    def send() -> None:
        for each in wanted:
            assert isinstance(gateway.submit(each), Accepted)
            gateway.fill(each.order_id, 1.0, 0.0, 0)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gateway.book("NIFTY").units == gateway.ledger.units("NIFTY") == 20.0
    assert Counter(fill.order_id for fill in gateway.ledger.fills("NIFTY")).most_common(1)[0][1] == 1


def test_of_many_interleaved_orders_and_epochs_no_stale_one_is_accepted(tmp_path: Path) -> None:
    found = interleaved(tmp_path, orders=15_000, processes=2, seed=1)  # a million: `make chaos`
    assert found["stale_accepted"] == 0 and found["discrepancies"] == found["epochs_fell"] == 0
    assert found["orders"] == 15_000
    assert (
        min(found["accepted"], found["refused_stale_epoch"], found["epochs"], found["fills"], found["handovers"]) > 10
    )


def test_the_fence_of_accepted_orders_never_falls(gateway: OrderGateway) -> None:
    gateway.submit_all(
        [order(str(n), 1.0, epoch=epoch, at_s=float(n)) for n, epoch in enumerate([1, 3, 2, 3, 1, 5, 4])]
    )
    with gateway.ledger.engine.connect() as connection:
        epochs = connection.execute(sa.select(orders.c.epoch).order_by(orders.c.seq)).scalars().all()
    assert epochs == [1, 3, 3, 5] and all(first <= second for first, second in pairwise(epochs))
