"""What follows from what a broker says, case by case; test_reconcile_machine.py has them in every order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.settings import load_settings
from trading.broker import Holding, OrderReport, Snapshot, Trade, tag_of
from trading.gateway import SECOND_NS, OrderGateway
from trading.ledger import Ledger, Order
from trading.market import DAY_NS, day_of
from trading.ownership import Handover, Owner
from trading.reconcile import HELD_BEFORE, Findings, Problem, apply, blocked, heard, reconcile
from trading.standing import Ours, ours

RULES = load_settings(preset="compact", environ={}).trading
PPO, FUTURE = "champion:ppo/v1", "NSE:NIFTY26NOVFUT"
SENT_NS = 1_795_000_000 * SECOND_NS
SETTLE_NS = 3 * SECOND_NS
LATER_NS = SENT_NS + 10 * SECOND_NS


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[OrderGateway]:
    ledger = Ledger(tmp_path / "live.db")
    yield OrderGateway(ledger, RULES)
    ledger.close()


def send(gateway: OrderGateway, order_id: str = "a", units: float = 130.0, at_ns: int = SENT_NS) -> None:
    gateway.submit(Order(order_id, "NIFTY", units, PPO, 1, at_ns, at_ns, instrument=FUTURE, limit_price=100.0))


def report(status: Any = "open", *, filled: int = 0, **other: Any) -> OrderReport:
    return replace(OrderReport("b1", tag_of("a"), FUTURE, 130, filled, status), **other)


def trade(trade_id: str = "t1", units: int = 65, *, at_ns: int = SENT_NS, **other: Any) -> Trade:
    return replace(Trade(trade_id, "b1", tag_of("a"), FUTURE, units, 100.0, at_ns), **other)


def snapshot(*told: OrderReport | Trade | Holding, at_ns: int = LATER_NS) -> Snapshot:
    orders = tuple(each for each in told if isinstance(each, OrderReport))
    trades = tuple(each for each in told if isinstance(each, Trade))
    return Snapshot(at_ns, orders, trades, tuple(each for each in told if isinstance(each, Holding)), 1e6)


def standing(gateway: OrderGateway, at_ns: int = LATER_NS) -> Ours:
    return ours(gateway.ledger, day_of(at_ns), {FUTURE: "NIFTY"})


def found(gateway: OrderGateway, told: Snapshot, **unknown: int) -> Findings:
    """What a snapshot says; put on record, and looked at again: nothing more follows."""
    findings = reconcile(standing(gateway, told.at_ns), told, unknown=unknown, settle_ns=SETTLE_NS)
    apply(findings, gateway, cost=lambda _trade: 1.0, adopt=False)
    again = reconcile(standing(gateway, told.at_ns), told, unknown=unknown, settle_ns=SETTLE_NS)
    assert not again.changes and again.problems == findings.problems
    assert gateway.ledger.discrepancies() == []
    return findings


def kinds(findings: Findings) -> dict[str, bool]:
    """Whether each kind of problem blocks."""
    return {problem.kind: problem.blocks for problem in findings.problems}


def test_where_both_agree_nothing_follows(gateway: OrderGateway) -> None:
    assert found(gateway, snapshot()) == Findings()
    send(gateway)
    gateway.acknowledge("a", "b1")
    gateway.book_trade("a", trade(), 1.0)
    assert found(gateway, snapshot(report(filled=65), trade(), Holding(FUTURE, 65))) == Findings()


def test_an_order_whose_answer_was_lost_is_found_by_its_tag(gateway: OrderGateway) -> None:
    send(gateway)
    assert found(gateway, snapshot(report()), a=SENT_NS) == Findings(acknowledged=(("a", "b1"),))


def test_trades_that_no_stream_told_are_booked(gateway: OrderGateway) -> None:
    send(gateway)
    told = snapshot(report("filled", filled=130), trade("t1"), trade("t2"), Holding(FUTURE, 130))
    findings = found(gateway, told)
    assert findings.trades == (("a", trade("t1")), ("a", trade("t2"))) and findings.problems == ()
    state = gateway.ledger.order("a")
    assert state is not None and (state.status, state.broker_id) == ("filled", "b1")


def test_what_is_told_twice_or_in_another_order_is_told_once(gateway: OrderGateway) -> None:
    send(gateway)
    rows = [report(), report("cancelled", filled=65), trade(), trade(), Holding(FUTURE, 65), Holding(FUTURE, 65)]
    findings = [
        reconcile(standing(gateway), snapshot(*told), unknown={}, settle_ns=SETTLE_NS)
        for told in (rows, list(reversed(rows)))
    ]
    assert findings[0] == findings[1]
    assert findings[0].trades == (("a", trade()),) and findings[0].cancelled == (("a", "at the broker"),)
    assert findings[0].problems == ()


@pytest.mark.parametrize("end", ["cancelled", "rejected"])
def test_an_order_ends_as_the_broker_says(gateway: OrderGateway, end: str) -> None:
    send(gateway)
    findings = found(gateway, snapshot(report(end, message="no margin")))
    assert getattr(findings, end) == (("a", "no margin"),)
    state = gateway.ledger.order("a")
    assert state is not None and (state.status, state.reason) == (end, "no margin")


def test_an_order_ends_only_with_all_its_trades(gateway: OrderGateway) -> None:
    send(gateway)
    early = found(gateway, snapshot(report("cancelled", filled=65), Holding(FUTURE, 65)))
    assert early.cancelled == () and kinds(early) == {"trades_behind": True, "position": True}
    assert [order.order_id for order in gateway.ledger.open_orders("NIFTY")] == ["a"]
    late = found(gateway, snapshot(report("cancelled", filled=65), trade(), Holding(FUTURE, 65)))
    assert late.cancelled == (("a", "at the broker"),) and late.problems == ()


def test_an_order_that_no_snapshot_shows_in_time_never_arrived(gateway: OrderGateway) -> None:
    send(gateway)
    early = snapshot(at_ns=SENT_NS + SETTLE_NS)
    assert found(gateway, early, a=SENT_NS) == Findings()
    assert found(gateway, replace(early, at_ns=early.at_ns + 1), a=SENT_NS).cancelled == (("a", "never_arrived"),)


def test_an_order_that_is_being_sent_is_left_alone(gateway: OrderGateway) -> None:
    send(gateway)
    assert found(gateway, snapshot(at_ns=SENT_NS + 60 * SECOND_NS)) == Findings()


def test_what_arrives_after_all_is_cancelled_there_and_its_trades_are_booked(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.cancel("a", "never_arrived")
    findings = found(gateway, snapshot(report(filled=65), trade(), Holding(FUTURE, 65)))
    assert findings.to_cancel == ("b1",) and findings.acknowledged == (("a", "b1"),)
    assert gateway.ledger.units("NIFTY") == 65.0 and findings.problems == ()


def test_what_changed_hands_while_it_was_there_is_cancelled_there_until_it_is(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    gateway.hand_over(Handover("NIFTY", Owner("champion", "ppo/v2"), "adopt", 2, LATER_NS))
    assert found(gateway, snapshot(report())).to_cancel == ("b1",)
    assert found(gateway, snapshot(report("cancelled"))).cancelled == (("a", "at the broker"),)
    assert gateway.ledger.unfinished() == []


def test_of_two_orders_with_one_tag_the_newer_is_cancelled_and_both_are_booked(gateway: OrderGateway) -> None:
    send(gateway)
    newer = report(broker_id="b10", filled=65)
    told = snapshot(report(broker_id="b9"), newer, trade(broker_id="b10"), Holding(FUTURE, 65))
    findings = found(gateway, told)
    assert findings.acknowledged == (("a", "b9"),) and findings.to_cancel == ("b10",)
    assert kinds(findings) == {"duplicate_order": True}
    once_cancelled = replace(newer, status="cancelled")
    told = snapshot(report(broker_id="b9"), once_cancelled, trade(broker_id="b10"), Holding(FUTURE, 65))
    assert kinds(found(gateway, told)) == {"duplicate_order": False}
    assert [order.order_id for order in gateway.ledger.open_orders("NIFTY")] == ["a"]


def test_the_end_of_a_duplicate_is_not_the_end_of_the_order(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    assert heard(standing(gateway), [report("cancelled", broker_id="b2")]).cancelled == ()


def test_an_order_that_was_filled_by_two_is_no_longer_wanted_there(gateway: OrderGateway) -> None:
    send(gateway)
    rows = [report(broker_id="b9", filled=65), report(broker_id="b10", filled=65)]
    trades = [trade("t1", broker_id="b9"), trade("t2", broker_id="b10")]
    found(gateway, snapshot(*rows, *trades, Holding(FUTURE, 130)))
    assert set(found(gateway, snapshot(*rows, *trades, Holding(FUTURE, 130))).to_cancel) == {"b9", "b10"}


def test_more_than_was_ordered_is_a_problem_that_lets_the_rest_go(gateway: OrderGateway) -> None:
    send(gateway, units=65.0)
    told = snapshot(report("filled", units=65, filled=65), trade("t1"), trade("t2"), Holding(FUTURE, 130))
    findings = found(gateway, told)
    assert kinds(findings) == {"overfill": False}
    assert gateway.book("NIFTY").mode == "reduce_only" and gateway.ledger.units("NIFTY") == 130.0


def test_an_order_of_our_prefix_that_this_ledger_does_not_know_blocks_everything(gateway: OrderGateway) -> None:
    stranger = report(tag=tag_of("another ledger's"))
    findings = found(gateway, snapshot(stranger, trade(tag=stranger.tag)))
    assert kinds(findings) == {"unknown_order": True} and findings.foreign == ()
    assert blocked(frozenset(), findings) == {""}


@pytest.mark.parametrize("tag", ["", "by a person"])
def test_what_was_made_by_hand_is_apart_and_positions_agree_with_it(gateway: OrderGateway, tag: str) -> None:
    told = snapshot(report("filled", tag=tag, filled=65), trade(tag=tag), Holding(FUTURE, 65))
    assert found(gateway, told) == Findings(foreign=(("NIFTY", trade(tag=tag)),))
    assert found(gateway, told) == Findings()
    assert standing(gateway).apart == {FUTURE: 65.0}


def test_positions_of_what_we_do_not_trade_are_nobody_s_problem(gateway: OrderGateway) -> None:
    other = trade(tag="by a person", instrument="NSE:SBIN-EQ")
    findings = found(gateway, snapshot(other, Holding("NSE:SBIN-EQ", 7), Holding("NSE:ITC-EQ", 9)))
    assert findings == Findings(foreign=((None, other),))


def test_a_trade_that_nobody_says_anything_of_waits_for_its_order(gateway: OrderGateway) -> None:
    """A stream that tells no tags: it may be a trade of what is being sent, and is never taken for another's."""
    send(gateway)
    untagged = trade(tag="")
    assert heard(standing(gateway), trades=[untagged]) == Findings()
    behind = found(gateway, snapshot(untagged, Holding(FUTURE, 65)))
    assert behind == Findings(unsettled=("NIFTY",))
    findings = found(gateway, snapshot(report(filled=65), untagged, Holding(FUTURE, 65)))
    assert findings.trades == (("a", untagged),) and findings.problems == ()
    assert heard(
        standing(gateway), trades=[replace(untagged, trade_id="t2")]
    ).trades  # by the broker's id, from then on


def test_a_holding_that_disagrees_blocks_its_symbol_until_it_agrees(gateway: OrderGateway) -> None:
    send(gateway)
    rows = [report(filled=65), trade()]
    found(gateway, snapshot(*rows, Holding(FUTURE, 65)))
    wrong = found(gateway, snapshot(*rows, Holding(FUTURE, 130)))
    told = f"130 of {FUTURE} are held, trades make 65.0; {HELD_BEFORE}"
    assert wrong.problems == (Problem("position", "NIFTY", told),)
    assert kinds(found(gateway, snapshot(*rows, Holding(FUTURE, 65), Holding(FUTURE, 0)))) == {"position": True}
    assert blocked(frozenset(), wrong) == {"NIFTY"}
    assert blocked(frozenset({"NIFTY"}), found(gateway, snapshot(*rows, Holding(FUTURE, 65)))) == set()


def test_a_missing_holding_is_not_flat(gateway: OrderGateway) -> None:
    send(gateway)
    assert kinds(found(gateway, snapshot(report(filled=65), trade()))) == {"position_unknown": True}


def test_what_was_just_traded_is_not_judged_and_what_was_blocked_stays_so(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    now_ns = SENT_NS + 60 * SECOND_NS
    gateway.book_trade("a", trade(at_ns=now_ns), 1.0)
    findings = found(gateway, snapshot(report(), at_ns=now_ns))
    assert findings == Findings(unsettled=("NIFTY",))
    assert blocked(frozenset({"NIFTY", "BANKNIFTY"}), findings) == {"NIFTY"}


def test_a_trade_of_ours_that_the_broker_does_not_know_is_a_problem_once_it_should(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    gateway.book_trade("a", trade(), 1.0)
    early = snapshot(report(), Holding(FUTURE, 65), at_ns=SENT_NS + SETTLE_NS)
    assert found(gateway, early).problems == ()
    assert kinds(found(gateway, replace(early, at_ns=LATER_NS))) == {"trade_missing": True}


def test_an_acknowledged_order_that_is_gone_is_a_problem_today_and_over_tomorrow(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    assert kinds(found(gateway, snapshot())) == {"order_missing": True}
    assert found(gateway, snapshot(at_ns=LATER_NS + DAY_NS)).cancelled == (("a", "its day is over"),)


def test_yesterday_s_ids_say_nothing_about_today_s_orders(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    by_hand = report("filled", tag="", filled=65)
    made = trade(tag="", at_ns=SENT_NS + DAY_NS)
    findings = found(gateway, snapshot(by_hand, made, Holding(FUTURE, 65), at_ns=LATER_NS + DAY_NS))
    assert findings.foreign == (("NIFTY", made),) and findings.trades == ()


@pytest.mark.parametrize("other", [{"units": 260}, {"units": -130}, {"instrument": "NSE:BANKNIFTY26NOVFUT"}])
def test_an_order_that_was_altered_at_the_broker_blocks_while_it_is_open(
    gateway: OrderGateway, other: dict[str, Any]
) -> None:
    send(gateway)
    assert kinds(found(gateway, snapshot(report(**other)))) == {"altered": True}
    assert kinds(found(gateway, snapshot(report("cancelled", **other)))) == {"altered": False}


@pytest.mark.parametrize(
    "wrong", [{"units": -65}, {"units": 0}, {"price": 0.0}, {"price": float("nan")}, {"instrument": "NSE:SBIN-EQ"}]
)
def test_a_trade_that_cannot_be_is_not_booked_and_blocks(gateway: OrderGateway, wrong: dict[str, Any]) -> None:
    send(gateway)
    findings = found(gateway, snapshot(report(filled=65), trade(**wrong)))
    assert findings.trades == () and kinds(findings)["conflict"]


def test_one_trade_with_two_contents_is_a_conflict(gateway: OrderGateway) -> None:
    send(gateway)
    findings = found(gateway, snapshot(report(filled=65), trade(), trade(units=30), Holding(FUTURE, 65)))
    assert len(findings.trades) == 1 and kinds(findings)["conflict"]


def test_a_stream_concludes_nothing_from_what_it_does_not_say(gateway: OrderGateway) -> None:
    send(gateway)
    gateway.acknowledge("a", "b1")
    gateway.book_trade("a", trade(), 1.0)
    assert heard(standing(gateway)) == Findings()
    assert heard(standing(gateway), [report()], [trade("t2")]) == Findings(trades=(("a", trade("t2")),))
