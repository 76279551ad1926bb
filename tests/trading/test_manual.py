"""Orders of a person on the desk: once, through gateway and risk engine, over crashes, and never late."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk_world import World

from backend import paper_orders
from core.settings import Settings
from trading import manual
from trading.costs import flat_costs
from trading.gateway import OrderGateway
from trading.ledger import Ledger
from trading.manual import GOOD_FOR_S, Inbox, ManualTrade, Requests, answer_of, is_traded
from trading.market import SECOND_NS, Bars
from trading.paper import PaperBroker
from trading.paper_replay import PaperTrader
from trading.service import DecisionClient
from trading.stream import replay


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ready()
    world.decide("NIFTY", 0)  # what is held before the first bar of a session is closed at it
    yield world
    world.close()


def wanted(units: int = 65, trade_id: str = "t1", symbol: str = "NIFTY", **other: Any) -> ManualTrade:
    return replace(ManualTrade(trade_id, "live.db", symbol, units, "key:7", "", at_ns=1), **other)


def ask(world: World, trade: ManualTrade, *, late: bool = False) -> str | None:
    """As the live process does. The refusal, or None."""
    world.tell("command", manual.command(trade) | {"late": late}, symbol=trade.symbol)
    assert world.ledger is not None
    answer = answer_of(world.ledger, trade.trade_id)
    assert answer is not None
    return answer.refusal


def test_an_order_of_a_person_is_sent_filled_and_owned(world: World) -> None:
    assert ask(world, wanted()) is None
    assert [send.ticket.units for send in world.sends] == [65]
    world.fill(world.place())
    assert world.units("NIFTY") == 65
    assert str(world.desk.gateway.book("NIFTY").owner) == manual.OWNER
    world.decide("NIFTY", 0)  # the champion answers for it: takes it over, and closes it at the bar after
    assert str(world.desk.gateway.book("NIFTY").owner) == "champion:ppo/v1"
    world.decide("NIFTY", 0)
    assert world.sends.pop().ticket.units == -65
    assert world.ledger is not None
    assert world.ledger.discrepancies() == []


def test_a_second_time_it_is_the_same_order_also_in_the_next_process(world: World) -> None:
    ask(world, wanted())
    ask(world, wanted())
    broker_id = world.place()
    world.begin()
    world.ready()
    ask(world, wanted())
    world.fill(broker_id)
    ask(world, wanted())
    assert world.sends == []
    assert len(world.exchange.orders) == 1


def test_one_that_was_ordered_before_a_crash_is_answered_by_the_next_process(world: World) -> None:
    assert world.ledger is not None
    event = world.log.append("command", manual.command(wanted()) | {"late": False}, at_ns=world.now_ns, symbol="NIFTY")
    intent = manual.intent_of(wanted(), world.desk.execution, event)
    assert world.desk.execution.order(intent, wanted().order_id) is None  # and killed: no answer, no ticket
    world.begin()
    world.ready()
    answer = answer_of(world.ledger, "t1")
    assert answer is not None
    assert answer.refusal is None
    assert world.sends == []  # nobody knows whether it was sent: it is looked for, and never sent again
    world.tick(10)
    world.snapshot()
    state = world.ledger.order(wanted().order_id)
    assert state is not None
    assert not state.is_open


def test_one_that_was_written_and_not_handled_is_refused_by_the_next_process_or_found_at_the_broker(
    world: World,
) -> None:
    world.write_only("command", manual.command(wanted()) | {"late": False}, symbol="NIFTY")
    world.begin()
    world.ready()
    assert world.ledger is not None
    answer = answer_of(world.ledger, "t1")
    assert answer is not None
    assert answer.refusal is not None
    assert answer.refusal.startswith("not_reconciled")
    assert world.sends == []


@pytest.mark.parametrize(
    ("trade", "reason"),
    [
        (wanted(64), "odd_lot"),
        (wanted(65 * 21), "too_many_lots"),
        (wanted(65 * 40), "above_freeze"),
        (wanted(symbol="FINNIFTY"), "unknown_symbol"),
    ],
)
def test_what_the_risk_engine_or_the_exchange_would_not_take_is_refused_with_the_reason(
    world: World, trade: ManualTrade, reason: str
) -> None:
    refusal = ask(world, trade)
    assert refusal is not None
    assert refusal.split(":")[0] == reason
    assert world.sends == []


def test_the_kill_switch_refuses_it_and_reducing_lets_only_exits_pass(world: World) -> None:
    ask(world, wanted())
    world.fill(world.place())
    world.state("reducing")
    assert str(ask(world, wanted(trade_id="t2"))).startswith("reducing")
    assert ask(world, wanted(-65, "t3")) is None
    world.fill(world.place())
    world.state("halted")
    assert str(ask(world, wanted(trade_id="t4"))).startswith("halted")
    assert world.sends == []


def test_what_was_refused_once_is_refused_for_ever(world: World) -> None:
    world.state("halted")
    first = ask(world, wanted())
    world.state("active")
    assert ask(world, wanted()) == first
    assert world.sends == []


def test_a_refused_reversal_does_not_close_what_is_held(world: World) -> None:
    ask(world, wanted())
    world.fill(world.place())
    world.state("reducing")
    assert str(ask(world, wanted(-130, "t2"))).startswith("reducing")
    assert world.sends == []
    assert world.units("NIFTY") == 65


def test_beside_an_open_order_nothing_is_sent(world: World) -> None:
    world.decide("NIFTY", 1)
    assert str(ask(world, wanted())).startswith("open_order")
    assert len(world.sends) == 1


def test_a_late_one_is_refused(world: World) -> None:
    assert str(ask(world, wanted(), late=True)).startswith("too_late")
    assert world.sends == []


def test_requests_are_kept_once_and_taken_up_once(tmp_path: Path) -> None:
    requests, ledger = Requests(tmp_path), Ledger(tmp_path / "live.db")
    inbox = Inbox(tmp_path, ledger)
    assert inbox.new() == []  # no file, and none is made
    assert not (tmp_path / manual.FILE).exists()
    first = requests.ask(wanted())
    assert requests.ask(wanted(130)) == first == wanted()  # the first one stays
    requests.ask(wanted(trade_id="t2", ledger="live-paper.db"))  # somebody else's
    assert inbox.new() == [first]
    assert inbox.new() == []
    assert Inbox(tmp_path, ledger).new() == [first]  # the next process: it has no answer yet
    manual.answer(ledger, manual.Answer("t1", 1, None))
    manual.answer(ledger, manual.Answer("t1", 2, "halted: "))
    assert Inbox(tmp_path, ledger).new() == []
    assert answer_of(ledger, "t1") == manual.Answer("t1", 1, None)
    ledger.close()


def test_a_file_of_requests_that_is_being_made_or_damaged_keeps_nobody_from_trading(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "live.db")
    inbox, file = Inbox(tmp_path, ledger), tmp_path / manual.FILE
    for content in (b"", b"no database at all" * 100):
        file.write_bytes(content)
        assert inbox.new() == []
    file.unlink()
    Requests(tmp_path).ask(wanted())
    assert inbox.new() == [wanted()]
    ledger.close()


def test_whether_it_is_late_is_said_by_the_machine_s_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    trade = wanted()
    for now_ns, late in ((trade.expires_ns, False), (trade.expires_ns + 1, True)):
        monkeypatch.setattr("time.time_ns", lambda now_ns=now_ns: now_ns)
        assert manual.command(trade)["late"] is late
    assert trade.expires_ns - trade.at_ns == GOOD_FOR_S * SECOND_NS


def test_who_trades_a_ledger_is_known_by_its_lock(tmp_path: Path) -> None:
    ledger = tmp_path / "live.db"
    assert not is_traded(ledger)
    with ledger.with_suffix(".lock").open("a") as lock:
        assert not is_traded(ledger)
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_traded(ledger)
    assert not is_traded(ledger)


def test_the_replay_on_paper_fills_it_at_its_next_bar_and_goes_on(
    client: DecisionClient, paper_bars: Bars, paper_settings: Settings
) -> None:
    """Beside the loop that trades the same ledger, as the backend does."""
    ledger = Ledger(paper_settings.paths.state_dir / "paper.db")
    gateway = OrderGateway(ledger, paper_settings.trading)
    broker = PaperBroker(gateway, flat_costs(1.0))
    loop = PaperTrader(paper_bars.name, client, broker, settings=paper_settings, session_bars=30)
    asked: list[ManualTrade] = []
    accepted: ManualTrade | None = None
    for number, bar in enumerate(replay(paper_bars)):
        loop.on_bar(bar)
        if accepted is not None:  # at the bar before
            (fill,) = (each for each in ledger.fills(paper_bars.name) if each.order_id == accepted.order_id)
            assert (fill.price, fill.bar_ns) == (bar.open, bar.timestamp_ns)
        accepted = None
        if number > 200 and number % 30 in range(5, 25):
            units = 7 if len(asked) % 2 else -7
            trade = wanted(units, f"t{number}", paper_bars.name, ledger="paper.db", at_ns=time.time_ns())
            paper_orders.trade(paper_settings, trade)
            asked.append(trade)
            answer = answer_of(ledger, trade.trade_id)
            assert answer is not None
            assert (ledger.order(trade.order_id) is None) == (answer.refusal is not None)
            accepted = trade if answer.refusal is None else None
    assert sum(ledger.order(trade.order_id) is not None for trade in asked) > 10
    assert ledger.discrepancies() == []
    assert ledger.units(paper_bars.name) == 0  # the session's last bar closes whatever there is
    ledger.close()
