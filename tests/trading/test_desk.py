"""The desk, an event at a time: what it asks, orders, waits for and refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from desk_world import (
    CHAMPION,
    DAY,
    HISTORY,
    INTERVAL_NS,
    OPENED_NS,
    PRICES,
    World,
    a_bar,
    answer,
    desk_settings,
    traded,
)

from core.actions import Action
from core.settings import Settings
from trading import events
from trading.broker import OrderReport, Trade
from trading.costs import Side
from trading.effects import Alert, CancelOrder, Effect, Engage, Report, TakeSnapshot
from trading.execution import MOST_FAILED_EXITS
from trading.market import SECOND_NS

T = TypeVar("T")
LOT = {"NIFTY": 65, "BANKNIFTY": 30}


def with_trading(folder: Path, **changed: float) -> Settings:
    settings = desk_settings(folder)
    return settings.model_copy(update={"trading": settings.trading.model_copy(update=changed)})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ready()
    yield world
    world.close()


def of_kind(effects: list[Any], kind: type[T]) -> list[T]:
    return [effect for effect in effects if isinstance(effect, kind)]


def intents(world: World, symbol: str = "NIFTY") -> dict[int, str]:
    """The reasons on record, by number of the bar."""
    found = {}
    for number in range(world.bars[symbol]):
        bar_ns = a_bar(symbol, number).timestamp_ns
        for name in (f"{symbol}:{bar_ns}", f"{symbol}:{bar_ns}:square_off"):
            intent = world.ledger.intent(name)
            if intent is not None:
                found[number] = intent.reason
    return found


def alerts(world: World) -> list[str]:
    return [effect.text for effect in of_kind(world.all_effects, Alert)]


def hold_long(world: World, symbol: str = "NIFTY", lots: int = 1) -> None:
    world.decide(symbol, 1, quantity=float(lots * LOT[symbol]))
    world.fill(world.place())


def test_a_decision_becomes_a_limit_order_of_the_traded_contract(world: World) -> None:
    world.decide("NIFTY", 1, quantity=65.0)
    (send,) = world.sends
    assert (send.ticket.order_id, send.ticket.instrument) == (
        f"NIFTY:{a_bar('NIFTY', 0).timestamp_ns}",
        traded("NIFTY"),
    )
    assert send.ticket.units == 65
    assert send.ticket.limit_price == 24_120.0  # 50 bps above
    state = world.ledger.order(send.ticket.order_id)
    assert (state.status, state.broker_id, state.order.limit_price) == ("open", None, send.ticket.limit_price)
    world.fill(world.place())
    assert world.units("NIFTY") == 65
    assert world.ledger.discrepancies() == []


def test_before_the_switch_and_a_snapshot_nothing_is_decided_and_every_bar_has_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.bar("NIFTY")
    assert (world.asks, intents(world)) == ([], {0: "HOLD:not_reconciled"})
    world.snapshot()
    world.bar("NIFTY")
    assert [ask.bar.timestamp_ns for ask in world.asks] == [a_bar("NIFTY", 1).timestamp_ns]
    world.close()


def test_after_a_crash_a_new_snapshot_comes_before_everything(world: World) -> None:
    world.write_only("snapshot", events.snapshot_body(world.exchange.snapshot(world.now_ns), None))
    world.begin()
    assert of_kind(world.all_effects, TakeSnapshot)
    world.bar("NIFTY")
    assert world.asks == []


def test_a_bar_without_an_answer_is_a_hold_once_the_next_one_closes(world: World) -> None:
    world.bar("NIFTY")
    (late,) = world.asks
    world.asks.clear()
    world.bar("NIFTY")
    world.answer(late, answer(0, 1))
    assert intents(world) == {0: "HOLD:no_answer"}
    assert (world.sends, world.desk.counts["late_answer"]) == ([], 1)


@pytest.mark.parametrize("said", [None, answer(1, 0)], ids=["none", "closes what is not held"])
def test_without_a_valid_answer_it_holds_and_counts(world: World, said: object) -> None:
    world.bar("NIFTY")
    world.answer(world.asks.pop(), said)
    assert intents(world) == {0: "HOLD"}
    assert (world.sends, world.desk.counts["no_answer"]) == ([], 1)


def test_an_impossible_bar_is_counted_and_held(world: World) -> None:
    body = events.bar_body(a_bar("NIFTY", 0), {})
    body["bar"][2] = 1.0  # its high
    world.tell("bar", body, symbol="NIFTY")
    world.bars["NIFTY"] = 1
    assert intents(world) == {0: "HOLD:invalid_bar"}
    world.bar("NIFTY")
    world.tell("bar", events.bar_body(a_bar("NIFTY", 0), {}), symbol="NIFTY")  # again, and late
    assert world.desk.counts["invalid_bar"] == 2
    assert len(world.asks) == 1


def test_while_an_order_is_open_the_next_decision_is_a_hold(world: World) -> None:
    world.decide("NIFTY", 1)
    world.place()
    world.bar("NIFTY")
    assert intents(world)[1] == "HOLD:open_order"
    assert world.asks == []


def test_an_order_that_came_to_nothing_leaves_its_arm_flat(world: World) -> None:
    world.decide("NIFTY", 1)
    world.tell("declined", events.reason_body(world.sends.pop().ticket.order_id, "no funds"))
    world.bar("NIFTY")
    (ask,) = world.asks
    assert ask.request["accounts"]["champion"]["position"] == 0


def test_what_is_not_filled_in_its_lifetime_is_cancelled_and_asked_again(world: World) -> None:
    world.decide("NIFTY", 1)
    broker_id = world.place()
    world.tick(world.settings.live.order_lifetime_s + 1)
    world.tick(1)
    assert world.cancels == [broker_id]
    world.tick(world.settings.live.snapshot_s)
    assert world.cancels == [broker_id, broker_id]
    world.exchange.end(broker_id, "cancelled")
    world.tell("order", events.report_body(world.exchange.report(broker_id)))
    assert world.ledger.order(world.exchange.orders[broker_id].ticket.order_id).status == "cancelled"
    assert world.ledger.unfinished() == []


def test_large_decisions_go_out_in_slices_one_after_the_other(world: World) -> None:
    lots = 1300 // 65 + 8  # more than the exchange takes at once
    limits = world.settings.risk.model_copy(update={"max_lots": 100})
    world.desk.limits.settings = world.settings.model_copy(update={"risk": limits})
    world.decide("NIFTY", 1, quantity=65.0 * lots)
    first = world.sends[0].ticket
    assert (len(world.sends), first.units) == (1, 1755)
    broker_id = world.place()
    world.fill(broker_id, 755)
    assert world.sends == []
    world.fill(broker_id)
    (second,) = world.sends
    assert (second.ticket.order_id, second.ticket.units) == (f"{first.order_id}/2", 65 * lots - 1755)
    world.fill(world.place())
    assert world.units("NIFTY") == 65 * lots
    assert world.sends == []


def test_a_cancelled_slice_ends_its_decision(world: World) -> None:
    limits = world.settings.risk.model_copy(update={"max_lots": 100})
    world.desk.limits.settings = world.settings.model_copy(update={"risk": limits})
    world.decide("NIFTY", 1, quantity=65.0 * 28)
    broker_id = world.place()
    world.fill(broker_id, 65)
    world.exchange.end(broker_id, "cancelled")
    world.tell("order", events.report_body(world.exchange.report(broker_id)))
    world.tick(1)
    assert (world.sends, world.units("NIFTY")) == ([], 65)


def test_an_order_of_unknown_outcome_is_looked_for_and_never_sent_again(world: World) -> None:
    world.decide("NIFTY", 1)
    order_id = world.sends[0].ticket.order_id
    broker_id = world.place(acknowledged=False)
    effects = world.tell("unknown", events.reason_body(order_id, "timeout"))
    assert of_kind(effects, TakeSnapshot)
    world.exchange.fill(broker_id, 65, world.now_ns)
    world.tick(1)
    world.snapshot()
    assert (world.units("NIFTY"), world.ledger.order(order_id).broker_id) == (65, broker_id)
    assert world.sends == []


def test_an_order_that_no_snapshot_shows_never_arrived_and_is_cancelled_if_it_does(world: World) -> None:
    world.decide("NIFTY", 1)
    send = world.sends.pop()
    world.tell("unknown", events.reason_body(send.ticket.order_id, "timeout"))
    world.tick(1)
    world.snapshot()
    assert world.ledger.order(send.ticket.order_id).status == "open"
    world.tick(world.settings.live.unknown_settle_s + 1)
    world.snapshot()
    state = world.ledger.order(send.ticket.order_id)
    assert (state.status, state.reason) == ("cancelled", "never_arrived")
    broker_id = world.exchange.accept(send.ticket)  # it hung somewhere
    world.tick(1)
    world.snapshot()
    assert world.cancels == [broker_id]
    assert [each.order_id for each in [send.ticket, *[s.ticket for s in world.sends]]] == [send.ticket.order_id]


def test_an_acknowledgement_of_what_was_given_up_cancels_it(world: World) -> None:
    world.decide("NIFTY", 1)
    send = world.sends.pop()
    world.tell("unknown", events.reason_body(send.ticket.order_id, "timeout"))
    world.tick(world.settings.live.unknown_settle_s + 1)
    world.snapshot()
    effects = world.tell("placed", events.order_body(send.ticket.order_id, "b9"))
    assert of_kind(effects, CancelOrder) == [CancelOrder("b9")]


def test_a_ticket_that_the_switch_stopped_is_cancelled(world: World) -> None:
    world.decide("NIFTY", 1)
    order_id = world.sends.pop().ticket.order_id
    world.tell("unsent", events.reason_body(order_id, "halted"))
    assert world.ledger.order(order_id).status == "cancelled"


def test_trades_are_booked_once_however_often_and_in_whatever_order_they_are_told(world: World) -> None:
    world.decide("NIFTY", 1, quantity=130.0)
    broker_id = world.place(acknowledged=False)
    first = world.exchange.fill(broker_id, 65, world.now_ns)
    second = world.exchange.fill(broker_id, 65, world.now_ns)
    for trade in (second, first, second, first):
        world.tell("trade", events.trade_body(trade))
    world.tick(5)
    world.snapshot()
    fills = world.ledger.fills("NIFTY")
    assert [(fill.units, fill.trade_id, fill.owner) for fill in fills] == [(65, "t1", CHAMPION), (65, "t0", CHAMPION)]
    whole = world.desk.costs["NIFTY"](DAY).of(Side.BUY, first.price, 130.0)
    assert sum(fill.cost for fill in fills) == pytest.approx(whole, rel=1e-12)  # brokerage is once an order


def test_the_last_bar_squares_off_and_later_bars_only_feed_features(world: World) -> None:
    hold_long(world)
    world.bar("NIFTY", last=True)
    (send,) = world.sends
    assert (send.ticket.units, send.ticket.order_id.endswith(":square_off")) == (-65, True)
    world.fill(world.place())
    world.bar("NIFTY")
    assert world.units("NIFTY") == 0
    assert world.desk.blocked("NIFTY") is None
    assert intents(world) == {0: intents(world)[0], 1: "square_off"}
    assert world.asks == []


def test_a_flat_symbol_has_an_intent_of_its_last_bar_as_well(world: World) -> None:
    world.bar("NIFTY", last=True)
    assert intents(world) == {0: "HOLD:session_over"}
    assert world.sends == []


def test_an_entry_that_is_still_open_at_the_last_bar_is_cancelled_and_what_it_filled_closed(world: World) -> None:
    world.decide("NIFTY", 1, quantity=130.0)
    broker_id = world.place()
    world.bar("NIFTY", last=True)
    assert (world.cancels, world.sends) == ([broker_id], [])
    world.fill(broker_id, 65)
    world.exchange.end(broker_id, "cancelled")
    world.tell("order", events.report_body(world.exchange.report(broker_id)))
    (send,) = world.sends
    assert send.ticket.units == -65


def test_a_cancelled_order_with_trades_that_were_not_told_yet_is_not_closed_too_large(world: World) -> None:
    hold_long(world)
    world.bar("NIFTY", last=True)
    broker_id = world.place()
    world.exchange.fill(broker_id, -25, world.now_ns)  # and the stream says nothing
    world.exchange.end(broker_id, "cancelled")
    effects = world.tell("order", events.report_body(world.exchange.report(broker_id)))
    world.tick(1)
    assert of_kind(effects, TakeSnapshot)
    assert world.sends == []
    world.snapshot()
    world.tick(1)
    world.tick(5)
    world.snapshot()
    assert [send.ticket.units for send in world.sends] == [-40]


def reject_exits(world: World, seconds: int) -> list[tuple[float, str]]:
    """Of each exit that the broker does not take within that time, one second after the other: when, and its id."""
    began_ns, seen = world.now_ns, []
    for _ in range(seconds):
        if world.sends:
            order_id = world.sends.pop().ticket.order_id
            seen.append(((world.now_ns - began_ns) / SECOND_NS, order_id))
            world.tell("declined", events.reason_body(order_id, "rejected"))
            assert world.sends == []
        world.tick(1)
    return seen


def test_a_rejected_close_is_tried_again_later_each_time_and_not_for_ever(world: World) -> None:
    hold_long(world)
    world.bar("NIFTY", last=True)
    seen = reject_exits(world, 400)
    assert [at_s for at_s, _ in seen] == [0, 1, 3, 7, 15, 31, 61, 91, 121, 151]
    assert len({order_id for _, order_id in seen}) == len(seen) == MOST_FAILED_EXITS
    assert any("close them by hand" in text for text in alerts(world))


def test_a_broker_that_shuts_the_account_out_for_a_minute_in_the_square_off_is_outlasted(world: World) -> None:
    hold_long(world)
    world.bar("NIFTY", last=True)
    reject_exits(world, 60)
    for _ in range(60):
        while world.sends:
            world.fill(world.place())
        world.tick(1)
    assert world.units("NIFTY") == 0


def test_two_desks_on_one_account_are_two_and_stop_each_other(tmp_path: Path) -> None:
    one, other = World(tmp_path / "one", desk="one"), World(tmp_path / "other", desk="other")
    other.exchange = one.exchange
    for world in (one, other):
        world.ready()
    for world in (one, other):  # the same model, the same bar
        world.decide("NIFTY", 1)
    assert one.sends[0].ticket.order_id == other.sends[0].ticket.order_id
    for world in (one, other):
        world.exchange.fill(world.place(), 65, world.now_ns)
        world.tick(10)
        world.snapshot()
    one.snapshot()
    for world in (one, other):
        assert world.units("NIFTY") == 65  # its own
        assert world.desk.blocked("NIFTY") == "not_reconciled"
        assert any("another desk" in text for text in alerts(world))
        world.bar("NIFTY", last=True)
        assert world.sends == []
        world.close()


def test_an_exit_waits_until_the_symbol_agrees_again(world: World) -> None:
    hold_long(world)
    world.tick(10)
    world.exchange.trade_by_hand(traded("NIFTY"), -65, world.now_ns)
    snapshot = world.exchange.snapshot(world.now_ns)
    wrong = type(snapshot)(snapshot.at_ns, snapshot.orders, snapshot.trades[:-1], snapshot.holdings, 1e9)
    world.tick(10)
    world.hear(wrong)
    assert world.desk.blocked("NIFTY") == "disagrees"
    world.bar("NIFTY", last=True)
    assert world.sends == []
    world.exchange.trades.pop()
    world.tick(10)
    world.snapshot()
    assert [send.ticket.units for send in world.sends] == [-65]


def test_an_order_of_our_prefix_that_nobody_knows_stops_everything(world: World) -> None:
    stranger = OrderReport("b77", "HRMSTRANGER", traded("NIFTY"), 65, 0, "open")
    snapshot = world.exchange.snapshot(world.now_ns)
    world.hear(type(snapshot)(world.now_ns, (stranger,), (), (), 1e9))
    world.bar("BANKNIFTY")
    assert intents(world, "BANKNIFTY") == {0: "HOLD:not_reconciled"}
    assert any("unknown_order" in text for text in alerts(world))


@pytest.mark.parametrize("adopt", ["adopt", "leave"])
def test_what_is_traded_by_hand_is_adopted_or_left_alone(tmp_path: Path, adopt: str) -> None:
    world = World(tmp_path, settings=desk_settings(tmp_path, manual_positions=adopt))
    world.ready()
    hold_long(world)
    world.exchange.trade_by_hand(traded("NIFTY"), 65, world.now_ns)
    world.tick(10)
    world.snapshot()
    world.tick(10)
    world.snapshot()
    assert world.units("NIFTY") == (130 if adopt == "adopt" else 65)
    assert world.desk.blocked("NIFTY") is None
    world.bar("NIFTY", last=True)
    assert world.sends[0].ticket.units == -world.units("NIFTY")
    world.close()


def test_halted_cancels_what_is_open_and_sends_nothing_not_even_exits(world: World) -> None:
    hold_long(world)
    world.decide("BANKNIFTY", 1, quantity=30.0)
    broker_id = world.place()
    world.state("halted")
    assert world.cancels == [broker_id]
    world.bar("NIFTY", last=True)
    world.tick(1)
    assert world.sends == []
    world.state("reducing")
    assert [send.ticket.units for send in world.sends] == [-65]


def test_reducing_lets_only_exits_out_and_a_reversal_becomes_one(world: World) -> None:
    hold_long(world)
    world.decide("BANKNIFTY", 1, quantity=30.0)
    entry = world.place()
    world.state("reducing")
    assert world.cancels == [entry]
    world.decide("NIFTY", -1, quantity=65.0)
    (send,) = world.sends
    assert send.ticket.units == -65
    assert world.ledger.order(send.ticket.order_id).order.units == -65


def test_flatten_lets_everything_go_at_once(world: World) -> None:
    hold_long(world)
    hold_long(world, "BANKNIFTY")
    world.state("reducing", flatten=True)
    assert sorted(send.ticket.units for send in world.sends) == [-65, -30]
    while world.sends:
        world.fill(world.place())
    world.state("reducing", flatten=True)
    assert world.sends == []


def test_a_closed_gate_refuses_entries_and_lets_exits_pass(world: World) -> None:
    hold_long(world)
    world.tick(1, gate="market_closed")
    world.decide("BANKNIFTY", 1, quantity=30.0)
    assert world.sends == []
    assert world.desk.counts["refused:gate_closed"] == 1
    world.decide("NIFTY", 0)
    assert [send.ticket.units for send in world.sends] == [-65]


def test_a_loss_engages_the_switch_and_counts_from_the_moment_it_is_seen(tmp_path: Path) -> None:
    world = World(tmp_path, settings=with_trading(tmp_path, initial_capital=1e6))
    world.ready()
    hold_long(world)
    prices = {"NIFTY": (PRICES["NIFTY"] - 1000.0, world.now_ns)}  # 65,000 rupees, of 50,000
    effects = world.tell("clock", events.clock_body(prices, None))
    (engage,) = of_kind(effects, Engage)
    assert (engage.state, engage.reason.split(":")[0]) == ("reducing", "daily_loss")
    assert engage.until_ns > world.now_ns
    assert world.desk.limits.state == "reducing"
    assert not of_kind(world.tell("clock", events.clock_body(prices, None)), Engage)
    world.decide("BANKNIFTY", 1, quantity=30.0)
    assert world.sends == []
    world.close()


def engaged(effects: list[Effect]) -> list[str]:
    return [each.reason.split(":")[0] for each in of_kind(effects, Engage)]


def undecided(world: World, bars: int, symbol: str = "NIFTY") -> list[str]:
    """So many bars without a model: none answers in time, and the service's own HOLD, in turn. What was engaged."""
    before = len(world.all_effects)
    for number in range(bars):
        world.bar(symbol)
        asked = world.asks.pop()
        if number % 2:
            said = answer(0, 0).model_copy(update={"role": "safe", "action": Action.HOLD})
            world.answer(asked, said)
    world.bar(symbol)  # the time of the last one is over
    world.answer(world.asks.pop(), None)
    return engaged(world.all_effects[before:])


def test_bars_that_no_model_decides_while_something_is_held_leave_exits_only_until_a_person_resumes(
    world: World,
) -> None:
    limit = world.settings.risk.undecided_bars
    hold_long(world)
    assert undecided(world, limit - 2) == []
    world.decide("NIFTY", 1)  # a model is back: it counts from the beginning
    assert undecided(world, limit) == ["undecided"]
    world.decide("BANKNIFTY", 1, quantity=30.0)
    assert world.sends == []
    world.state("reducing")
    world.state("active")
    assert undecided(world, limit - 2) == []
    world.decide("BANKNIFTY", 1, quantity=30.0)
    assert [send.ticket.units for send in world.sends] == [30]
    world.place()
    world.decide("NIFTY", 0)
    assert [send.ticket.units for send in world.sends] == [-65]


def test_bars_that_no_model_decides_while_nothing_is_held_engage_nothing(world: World) -> None:
    assert undecided(world, 2 * world.settings.risk.undecided_bars) == []
    world.decide("NIFTY", 1)
    assert [send.ticket.units for send in world.sends] == [65]


def test_a_drawdown_is_judged_from_the_highest_equity_also_after_a_crash_until_a_person_resumes(tmp_path: Path) -> None:
    world = World(tmp_path, settings=with_trading(tmp_path, initial_capital=1e6))
    world.ready()
    hold_long(world)
    world.tell("clock", events.clock_body({"NIFTY": (PRICES["NIFTY"] + 2000.0, world.now_ns)}, None))
    peak = world.desk.equity.peak
    world.begin()
    assert world.desk.equity.peak == peak > 1.1e6
    low = {"NIFTY": (PRICES["NIFTY"] - 1500.0, world.now_ns)}
    reasons = [each.reason.split(":")[0] for each in of_kind(world.tell("clock", events.clock_body(low, None)), Engage)]
    assert reasons == ["drawdown"]
    world.state("reducing")
    world.tell("state", {**world.switch.__dict__, "state": "active"})
    assert world.desk.equity.peak == world.desk.equity.now < peak
    world.close()


def test_a_new_process_takes_up_the_exit_that_the_last_one_was_killed_in(world: World) -> None:
    hold_long(world)
    world.bar("NIFTY", last=True)
    world.begin()  # the ticket was never sent
    world.tick(world.settings.live.unknown_settle_s + 1)
    world.snapshot()
    world.tick(1)
    (send,) = world.sends
    assert send.ticket.units == -65
    assert send.ticket.order_id.endswith(":square_off/2")


def test_a_new_process_asks_again_about_the_bar_that_was_not_answered(world: World) -> None:
    world.bar("NIFTY")
    (asked,) = world.asks
    world.begin()
    world.ready()
    (again,) = world.asks
    assert repr(again) == repr(asked)  # as text: a NaN is no number
    world.answer(again, answer(0, 1))
    assert len(world.sends) == 1


def test_a_bar_whose_next_one_closed_before_the_new_process_was_ready_is_held(world: World) -> None:
    world.bar("NIFTY")
    world.begin()
    world.bar("NIFTY")
    assert intents(world) == {0: "HOLD:not_reconciled", 1: "HOLD:not_reconciled"}


def test_an_event_that_was_written_and_not_handled_is_handled_by_the_next_process(world: World) -> None:
    world.decide("NIFTY", 1)
    broker_id = world.place()
    trade = world.exchange.fill(broker_id, 65, world.now_ns)
    world.write_only("trade", events.trade_body(trade))
    world.begin()
    assert world.units("NIFTY") == 65


def test_handling_an_event_again_changes_nothing(world: World) -> None:
    hold_long(world)
    world.bar("NIFTY", last=True)
    rows = dump(world)
    for _ in range(3):
        world.begin()
        assert dump(world) == rows


def dump(world: World) -> object:
    with world.ledger.engine.connect() as connection:
        names = ("intents", "orders", "fills", "books", "handovers", "refusals", "foreign_trades")
        return {name: connection.exec_driver_sql(f"SELECT * FROM {name}").all() for name in names}


def test_outcomes_of_both_arms_are_reported_once(world: World) -> None:
    world.bar("NIFTY")
    said = answer(0, 1)
    shadow = answer(0, -1, arm="challenger")
    world.answer(world.asks.pop(), said.model_copy(update={"shadow": shadow}))
    world.fill(world.place())
    world.bar("NIFTY")
    world.begin()
    (report,) = of_kind(world.all_effects, Report)
    assert report.symbol == "NIFTY"
    assert report.champion_bps > report.challenger_bps


def test_a_release_lifts_a_freeze(world: World) -> None:
    hold_long(world)
    with world.ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE books SET mode = 'freeze'")
    world.bar("NIFTY", last=True)
    assert world.sends == []
    world.tell("command", {"command": "release", "by": "me", "reason": "looked"}, symbol="NIFTY")
    assert [send.ticket.units for send in world.sends] == [-65]


def test_a_position_of_yesterday_goes_at_the_first_bar(world: World) -> None:
    hold_long(world)
    world.bars["NIFTY"] = 0
    tomorrow = 24 * 3600 * 10**9
    first = a_bar("NIFTY", 0)
    world.now_ns += tomorrow
    late = type(first)(
        first.timestamp_ns + tomorrow, first.open, first.high, first.low, first.close, first.signal, 2, False
    )
    world.tick(0)
    world.tell("bar", events.bar_body(late, world.prices()), symbol="NIFTY")
    assert [send.ticket.units for send in world.sends] == [-65]


def test_too_many_orders_wait_for_their_second(tmp_path: Path) -> None:
    world = World(tmp_path, settings=with_trading(tmp_path, orders_per_s=1))
    world.ready()
    for symbol in ("NIFTY", "BANKNIFTY"):
        world.bar(symbol)
    for ask in list(world.asks):
        world.answer(ask, answer(0, 1, quantity=float(LOT[ask.symbol])))
    first, second = world.sends
    assert second.not_before_ns == first.not_before_ns + 10**9
    world.close()


def test_a_trade_of_an_unknown_tag_is_left_to_the_next_snapshot(world: World) -> None:
    trade = Trade("t9", "b9", "HRMOTHER", traded("NIFTY"), 65, 1.0, world.now_ns)
    effects = world.tell("trade", events.trade_body(trade))
    assert of_kind(effects, TakeSnapshot)
    assert world.units("NIFTY") == 0


def test_without_a_price_nothing_is_ordered(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.desk.limits.prices.clear()
    world.hear(world.exchange.snapshot(world.now_ns))
    world.bar("NIFTY")
    ask = world.asks.pop()
    world.desk.limits.prices.clear()
    body = events.answer_body(
        ask.bar.timestamp_ns, answer(0, 1), asked=events.digest_of(ask.request), elapsed_ms=1.0, prices={}
    )
    world.tell("answer", body, symbol="NIFTY")
    assert world.sends == []
    assert world.desk.counts["refused:no_price"] == 1
    world.close()


def test_a_last_bar_that_never_comes_does_not_leave_a_position_open(world: World) -> None:
    hold_long(world)
    square_off = OPENED_NS + 6 * 3600 * SECOND_NS  # 15:15
    world.now_ns = square_off - 300 * SECOND_NS
    world.tick(0)
    assert world.sends == []
    world.tick(61)
    assert [send.ticket.units for send in world.sends] == [-65]


def test_a_trade_that_comes_after_the_close_is_closed_as_well(world: World) -> None:
    world.decide("NIFTY", 1)
    send = world.sends.pop()
    world.tell("unknown", events.reason_body(send.ticket.order_id, "timeout"))
    world.tick(world.settings.live.unknown_settle_s + 1)
    world.snapshot()
    world.bar("NIFTY", last=True)
    assert world.units("NIFTY") == 0
    late = world.exchange.accept(send.ticket)
    world.exchange.fill(late, 65, world.now_ns)
    world.tick(5)
    world.snapshot()
    world.tick(5)
    world.snapshot()
    assert [each.ticket.units for each in world.sends] == [-65]


def test_bars_that_came_as_history_only_are_held_and_the_newest_is_still_decided(world: World) -> None:
    world.bar("NIFTY")
    world.asks.clear()
    world.begin()
    world.ready()
    world.asks.clear()
    missed = [a_bar("NIFTY", number) for number in range(-HISTORY, 3)]
    world.now_ns = missed[-1].timestamp_ns + INTERVAL_NS
    world.tell("history", events.history_body(missed), symbol="NIFTY")
    world.bars["NIFTY"] = 3
    world.bar("NIFTY")
    assert intents(world) == {0: "HOLD:no_answer", 1: "HOLD:missed", 2: "HOLD:missed"}
    assert [ask.bar.timestamp_ns for ask in world.asks] == [a_bar("NIFTY", 3).timestamp_ns]


def test_a_resumption_that_was_written_and_not_handled_is_one_for_the_next_process(tmp_path: Path) -> None:
    world = World(tmp_path, settings=with_trading(tmp_path, initial_capital=1e6))
    world.ready()
    hold_long(world)
    world.tell("clock", events.clock_body({"NIFTY": (PRICES["NIFTY"] + 2000.0, world.now_ns)}, None))
    world.state("reducing")
    low = {"NIFTY": (PRICES["NIFTY"] - 1500.0, world.now_ns)}
    world.tell("clock", events.clock_body(low, None))
    world.switch = replace(world.switch, state="active")
    world.write_only("state", events.state_body(world.switch))
    world.begin()
    effects = world.tell("clock", events.clock_body(low, None))
    assert not any("drawdown" in engage.reason for engage in of_kind(effects, Engage))
    assert world.desk.equity.peak < 1.01e6  # not the 130,000 rupees more that there were
    world.close()
