"""The live process as a person starts it, against the emulated broker with its real SDK: a stepped day, a crash."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from decision_service import RuleService
from live_world import DAY, DEADLINE_S, World, eventually, start_s

from core.actions import ACTION_OF
from core.settings import load_settings
from tests.fyers_emulator.process import Emulator, running
from trading import switch
from trading.event_replay import replay
from trading.opening import live_desk

SYMBOLS = ("NIFTY", "BANKNIFTY")
FIRST, KILLED, HALTED, RESUMED, LAST = 0, 7, 13, 16, 19  # bars


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with running() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def service() -> Iterator[RuleService]:
    with RuleService() as service:
        yield service


def trade_at_every_bar(service: RuleService) -> None:
    """Buy what is not held, close what is."""

    def decide(number: int) -> tuple[int, bytes]:
        body = service.requests[number]
        held = body["accounts"]["champion"]["position"]
        action = int(ACTION_OF[held + 1, (0 if held else 1) + 1])
        return 200, json.dumps(service.decision(body) | {"action": action, "quantity": 1.0}).encode()

    service.override = decide


def step(world: World, bar: int) -> None:
    """One bar of the market, and all that follows from the one before."""
    world.step(bar, parts=(0,))
    decided(world, bar)
    world.step(bar, parts=(1, 2, 3))
    eventually(lambda: not world.unfinished(), "all orders over")


def decided(world: World, bars: int) -> None:
    def least() -> bool:
        return min(len(world.intents(symbol)) for symbol in world.symbols) >= bars

    eventually(least, f"{bars} bars of each symbol decided")


@dataclass(frozen=True)
class Day:
    """What one day left behind."""

    world: World
    book: dict[str, Any]
    summary: dict[str, Any]
    refused: subprocess.CompletedProcess[str]
    orders_when_halted: int
    orders_when_resumed: int


@pytest.fixture(scope="module")
def day(emulator: Emulator, service: RuleService, tmp_path_factory: pytest.TempPathFactory) -> Day:
    world = World(emulator, service, tmp_path_factory.mktemp("live") / "state", SYMBOLS)
    world.prepare()
    trade_at_every_bar(service)
    with world.live() as live:
        live.trading()
        refused = subprocess.run(
            world.command(), env=world.environment(), capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        for bar in range(FIRST, KILLED):
            step(world, bar)
        world.step(KILLED, parts=(0, 1))
        live.kill()
    with world.live() as live:
        live.trading()
        decided(world, KILLED)
        world.step(KILLED, parts=(2, 3))
        for bar in range(KILLED + 1, HALTED):
            step(world, bar)
        switch.engage(world.state_dir, "halted", "a test", "to see it stop")
        halted = len(emulator.book()["orders"])
        for bar in range(HALTED, RESUMED):
            step(world, bar)
        resumed = len(emulator.book()["orders"])
        switch.release(world.state_dir, "a test", "seen")
        for bar in range(RESUMED, LAST + 1):
            step(world, bar)
        summary = live.stop()
    return Day(world, emulator.book(), summary, refused, halted, resumed)


def test_every_bar_is_decided_once_over_a_crash(day: Day) -> None:
    for symbol in SYMBOLS:
        starts = [row.bar_ns for row in day.world.intents(symbol)]
        assert starts == [start_s(bar) * 10**9 for bar in range(FIRST, LAST)]


def test_the_bar_in_which_the_process_died_is_taken_from_history(day: Day) -> None:
    for symbol in SYMBOLS:
        (bar,) = (
            each.body["bar"]
            for each in day.world.events("bar")
            if each.symbol == symbol and each.body["bar"][0] == start_s(KILLED) * 10**9
        )
        closes = day.world.prices[symbol]
        assert bar[4] == pytest.approx(closes[KILLED], abs=0.01)
        assert bar[1] == pytest.approx(closes[KILLED - 1], abs=0.01)  # of a tick that only the dead process saw


def test_orders_fill_and_the_ledger_is_the_brokers_book(day: Day) -> None:
    with day.world.ledger() as ledger:
        ours = {(f.trade_id, f.instrument, f.units, f.price) for symbol in SYMBOLS for f in ledger.fills(symbol)}
        held = {day.world.traded(each.symbol): each.units for each in ledger.positions() if each.units}
        assert ledger.discrepancies() == []
        assert ledger.unfinished() == []
    theirs = {(t["number"], t["symbol"], float(t["units"]), t["price"]) for t in day.book["trades"]}
    assert ours == theirs
    assert len(ours) > 2 * (LAST - RESUMED)
    assert held == {each["symbol"]: float(each["units"]) for each in day.book["positions"] if each["units"]}


def test_no_order_is_at_the_broker_twice(day: Day) -> None:
    tags = Counter(each["tag"] for each in day.book["orders"])
    assert max(tags.values()) == 1


def test_nothing_goes_out_while_trading_is_halted(day: Day) -> None:
    assert day.orders_when_resumed == day.orders_when_halted
    with day.world.ledger() as ledger, ledger.engine.connect() as connection:
        refused = connection.exec_driver_sql("select distinct reason from refusals").scalars().all()
    assert "halted" in refused
    assert len(day.book["orders"]) > day.orders_when_resumed  # and goes on afterwards


def test_a_second_process_on_the_same_ledger_is_refused(day: Day) -> None:
    assert day.refused.returncode == 2
    assert json.loads(day.refused.stdout.splitlines()[-1])["error"]["code"] == "already_running"


def test_the_summary_says_what_was_done_and_how_quickly(day: Day) -> None:
    summary = day.summary
    assert summary["ended"] == "SIGTERM"
    assert summary["answer_ms"]["count"] == summary["counts"]["decided"]
    assert 0 < summary["decision_to_order_ms"]["count"] <= summary["counts"]["orders"]
    assert summary["decision_to_order_ms"]["p99_ms"] > 0


def test_the_log_gives_the_day_again(day: Day) -> None:
    settings = load_settings(environ={k: v for k, v in day.world.environment().items() if k.startswith("HRM_")})
    with day.world.ledger() as ledger:
        assert replay(ledger, DAY, settings, live_desk).differences == ()


def test_no_secret_is_written_anywhere(day: Day) -> None:
    token = day.world.environment()["FYERS_ACCESS_TOKEN"]
    for file in Path(day.world.state_dir).rglob("*"):
        if file.is_file():
            assert token.encode() not in file.read_bytes(), file


def test_on_paper_fills_are_simulated_and_the_session_ends_flat_by_itself(
    emulator: Emulator, service: RuleService, tmp_path: Path
) -> None:
    world = World(emulator, service, tmp_path / "state", broker="paper")
    world.prepare()
    trade_at_every_bar(service)
    with world.live() as live:
        live.trading()
        for bar in range(4):
            step(world, bar)
        eventually(lambda: world.units("NIFTY") != 0, "filled")
        for bar in (69, 70, 71, 72):  # the feed was silent in between; 70 squares off
            world.step(bar)
        eventually(lambda: not world.units("NIFTY"), "squared off")
        emulator.clock(now=float(start_s(75) + 100))
        summary = live.wait()
    assert summary["ended"] == "the session is over"
    assert summary["positions"] == {}
    assert summary["counts"]["missing_bar"] > 60
    assert emulator.book()["orders"] == []
