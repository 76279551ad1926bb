"""A challenger that holds a position is rolled back: what becomes of it, from the answer to the fill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from decision_service import RuleService
from test_paper_replay import ROOT, held_by_challenger, rolled_back_at

from core.settings import Settings, load_settings
from trading.costs import flat_costs
from trading.gateway import OrderGateway
from trading.ledger import Fill, Ledger
from trading.market import SECOND_NS, Bars
from trading.paper import PaperBroker
from trading.paper_replay import PaperTrader
from trading.service import DecisionClient
from trading.stream import Bar, replay

CHAMPION, CHALLENGER = "champion:ppo/v1", "challenger:hrm/v1"
SYMBOL = "SYNTHETIC"
BAR_NS = 300 * SECOND_NS


class Desk:
    """One trader on its ledger, bar by bar."""

    def __init__(self, settings: Settings, client: DecisionClient, bars: Bars) -> None:
        self.ledger = Ledger(settings.paths.state_dir / "paper.db")
        self.gateway = OrderGateway(self.ledger, settings.trading)
        broker = PaperBroker(self.gateway, flat_costs(settings.trading.cost_bps))
        self.trader = PaperTrader(bars.name, client, broker, settings=settings, session_bars=30)
        self.bars = replay(bars)

    def trade_until(self, wanted: Callable[[Bar], bool]) -> None:
        """Up to and including the first bar that is wanted; the invariant holds after each."""
        for bar in self.bars:
            self.trader.on_bar(bar)
            assert self.ledger.discrepancies() == []
            if wanted(bar):
                return

    def fills_from(self, bar_ns: int) -> list[Fill]:
        return [fill for fill in self.ledger.fills(SYMBOL) if fill.bar_ns >= bar_ns]


@pytest.fixture(scope="module")
def found_ns(paper_bars: Bars, tmp_path_factory: pytest.TempPathFactory) -> int:
    state = str(tmp_path_factory.mktemp("trial"))
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": state})
    with RuleService() as service, DecisionClient(service.url, "token") as client:
        return held_by_challenger(paper_bars, settings, client, service)


@pytest.fixture
def taken_ns(found_ns: int, service: RuleService) -> int:
    """The bar at whose close the challenger, which holds something, is rolled back."""
    service.role = lambda _bar_ns: "challenger"
    return found_ns


@pytest.fixture
def desk(paper_settings: Settings, client: DecisionClient, paper_bars: Bars) -> Iterator[Desk]:
    desk = Desk(paper_settings, client, paper_bars)
    yield desk
    desk.ledger.close()


def asked_at(service: RuleService, bar_ns: int) -> dict[str, Any]:
    return next(each for each in service.requests if each["request_id"].endswith(f":{bar_ns}"))


def test_adopted_units_stay_as_they_are_and_the_champion_decides_on_them(
    taken_ns: int, desk: Desk, service: RuleService
) -> None:
    rolled_back_at(taken_ns, "adopt", service)
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns - BAR_NS)
    before = desk.gateway.book(SYMBOL)
    assert str(before.owner) == CHALLENGER and before.units
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns)
    adopted = desk.gateway.book(SYMBOL)
    assert (str(adopted.owner), adopted.units, adopted.mode) == (CHAMPION, desk.ledger.units(SYMBOL), "normal")
    assert desk.ledger.open_orders(SYMBOL) == []
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns + BAR_NS)
    question = asked_at(service, taken_ns + BAR_NS)
    assert question["acting"] == "champion"
    assert question["accounts"]["champion"]["position"] == (1 if adopted.units > 0 else -1)
    assert all(fill.owner == CHAMPION for fill in desk.fills_from(taken_ns + BAR_NS))


def test_a_reduce_only_position_never_grows_and_is_flattened_in_time(
    taken_ns: int, desk: Desk, service: RuleService
) -> None:
    rolled_back_at(taken_ns, "reduce_only", service, flatten_after_s=600.0)
    service.stubborn = True  # the champion wants what is not allowed: more
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns)
    held = desk.gateway.book(SYMBOL)
    assert (str(held.owner), held.mode, held.flatten_at_ns) == (CHAMPION, "reduce_only", taken_ns + 3 * BAR_NS)
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns + 2 * BAR_NS)
    assert desk.gateway.book(SYMBOL).units == held.units  # not yet
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns + 3 * BAR_NS)
    assert [(fill.units, fill.owner) for fill in desk.fills_from(taken_ns + BAR_NS)] == [(-held.units, CHAMPION)]
    assert desk.gateway.book(SYMBOL).mode == "normal"


def test_near_the_close_a_reduce_only_position_goes_at_once(
    taken_ns: int, desk: Desk, service: RuleService, paper_bars: Bars
) -> None:
    rolled_back_at(taken_ns, "reduce_only", service)
    service.terms["flatten_before_close_s"] = 86400.0
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns)
    desk.trade_until(lambda bar: True)
    desk.trade_until(lambda bar: True)
    assert desk.ledger.units(SYMBOL) == 0.0


def test_flatten_leaves_at_the_next_price_and_the_champion_starts_flat(
    taken_ns: int, desk: Desk, service: RuleService
) -> None:
    rolled_back_at(taken_ns, "flatten", service)
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns)
    held = desk.gateway.book(SYMBOL)
    exits = [(order.units, order.owner, order.order_id) for order in desk.ledger.open_orders(SYMBOL)]
    assert exits == [(-held.units, CHAMPION, f"{SYMBOL}:{taken_ns}")]
    desk.trade_until(lambda bar: True)
    assert [fill.units for fill in desk.fills_from(taken_ns + BAR_NS)] == [-held.units]
    question = asked_at(service, taken_ns + BAR_NS)
    assert (question["acting"], question["accounts"]["champion"]["position"]) == (None, 0)


def test_a_frozen_symbol_stays_as_it_is_until_a_person_releases_it(
    taken_ns: int, desk: Desk, service: RuleService, paper_settings: Settings
) -> None:
    rolled_back_at(taken_ns, "freeze", service)
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns)
    held = desk.gateway.book(SYMBOL)
    desk.trade_until(lambda bar: bar.last_of_session)
    desk.trade_until(lambda bar: bar.last_of_session)  # nor is it squared off
    assert desk.gateway.book(SYMBOL) == held and held.mode == "freeze"
    assert desk.fills_from(taken_ns + BAR_NS) == []
    command = [
        sys.executable,
        "-m",
        "cli",
        "--state-dir",
        str(paper_settings.paths.state_dir),
        "trade",
        "release",
        SYMBOL,
    ]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    assert desk.gateway.book(SYMBOL).mode == "normal"
    desk.trade_until(lambda bar: bar.last_of_session)
    assert desk.ledger.units(SYMBOL) == 0.0 and desk.fills_from(taken_ns + BAR_NS)


def test_what_is_rolled_back_while_no_model_answers_is_handed_over_as_well(
    taken_ns: int, desk: Desk, service: RuleService
) -> None:
    rolled_back_at(taken_ns, "flatten", service)
    service.safe = True
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns + BAR_NS)
    assert desk.ledger.units(SYMBOL) == 0.0
    assert str(desk.gateway.book(SYMBOL).owner) == "champion:none/none"


def test_a_challenger_that_vanished_while_nobody_traded_leaves_a_position_that_may_only_shrink(
    taken_ns: int, desk: Desk, service: RuleService
) -> None:
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns - BAR_NS)
    service.challenger_version = "v2"  # a new attempt, with another challenger
    desk.trade_until(lambda bar: bar.timestamp_ns == taken_ns)
    book = desk.gateway.book(SYMBOL)
    assert (str(book.owner), book.mode) == ("challenger:hrm/v2", "reduce_only")
    assert book.units == desk.ledger.units(SYMBOL) != 0.0


def test_killed_around_a_hand_over_it_ends_with_the_same_fills(
    taken_ns: int, desk: Desk, service: RuleService, paper_settings: Settings
) -> None:
    rolled_back_at(taken_ns, "flatten", service)
    desk.trade_until(lambda _bar: False)
    expected = desk.ledger.fills(SYMBOL)
    state = paper_settings.paths.state_dir.with_name("killed")
    command = [sys.executable, str(Path(__file__).with_name("paper_worker.py")), service.url, str(state), "10000"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = 0
    for delay_ms in (0, 3, 6):
        service.latest_ns = 0
        with subprocess.Popen(command, env=environment) as worker:
            deadline = time.monotonic() + 60.0
            while service.latest_ns < taken_ns and worker.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(delay_ms / 1e3)  # where in the hand-over it ends is not known, and that is the point
            killed += worker.poll() is None
            os.kill(worker.pid, signal.SIGKILL)
    subprocess.run(command, env=environment, check=True, timeout=60)
    ledger = Ledger(state / "paper.db")
    assert ledger.fills(SYMBOL) == expected
    assert ledger.discrepancies() == []
    ledger.close()
    assert killed > 0
