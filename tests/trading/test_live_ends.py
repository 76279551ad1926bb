"""What ends a live process, what it says then, why one does not begin, and what waits while a call hangs."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from desk_world import DAY, OPENED_NS, desk_settings, make_desk, traded
from pydantic import SecretStr
from structlog.testing import capture_logs

from core.errors import BrokerError, ConfigError, DataError
from core.settings import Settings
from flows.live_checks import require_later, require_token_for
from flows.live_commands import trade_live
from trading.broker import Ticket
from trading.clock import MachineClock
from trading.costs import flat_costs
from trading.effects import CancelOrder, Send
from trading.events import EventLog, reason_body
from trading.fyers.client import Access
from trading.fyers.login import Credentials
from trading.gateway import Accepted, OrderGateway
from trading.ledger import Ledger, Order
from trading.live import Live
from trading.live_ports import Ports
from trading.market import SECOND_NS
from trading.sandbox import SandboxBroker
from trading.service import DecisionClient
from trading.session_grid import Grid
from trading.stream import Bar
from trading.ticks import Tick

HOUR_NS = 3600 * SECOND_NS
NIFTY = traded("NIFTY")


class StandingClock:
    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def told(self, at_ns: int) -> None: ...

    def close(self) -> None: ...


class QuietFeed:
    """A market without a price."""

    def start(self, tell: Callable[[Tick], None], symbols: Sequence[str]) -> None: ...

    def quotes(self, symbols: Sequence[str]) -> list[Tick]:
        return []

    def restart(self) -> None: ...

    def close(self) -> None: ...


def no_history(_symbol: str, _now_ns: int) -> list[Bar]:
    raise DataError("none is needed")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "state").mkdir()
    return desk_settings(tmp_path / "state", symbols=("NIFTY",))


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.paths.state_dir / "live-paper.db")
    yield ledger
    ledger.close()


def accepted(ledger: Ledger, settings: Settings, order_id: str, units: int) -> Ticket:
    order = Order(
        order_id, "NIFTY", units, "champion:ppo/v1", 1, OPENED_NS, OPENED_NS, instrument=NIFTY, limit_price=2.4e4
    )
    assert isinstance(OrderGateway(ledger, settings.trading).submit(order), Accepted)
    return Ticket(order_id, NIFTY, units, 2.4e4)


def hold_65(ledger: Ledger, settings: Settings) -> None:
    accepted(ledger, settings, "NIFTY:0", 65)
    OrderGateway(ledger, settings.trading).fill("NIFTY:0", 24_000.0, 0.0, OPENED_NS)


def live_over(ledger: Ledger, settings: Settings, **ports: Any) -> Live:
    """A process that asks a service that is not there, on a simulated account."""
    clock = StandingClock(OPENED_NS)
    broker = SandboxBroker(ledger, {NIFTY: flat_costs(1.0)}, capital=1e8, margin_ratio=0.15, clock=clock)
    given: dict[str, Any] = {
        "service": DecisionClient("http://127.0.0.1:9", "a token"),
        "broker": broker,
        "stream": broker,
        "feed": QuietFeed(),
        "history": no_history,
        "market_status": dict,
        "server_time": lambda: None,
        "clock": clock,
    }
    grids = {"NIFTY": Grid.of("NIFTY", DAY, settings.live)}
    return Live(make_desk(ledger, settings, DAY), Ports(**given | ports), grids, settings)


def fill_the_disk(ledger: Ledger) -> None:
    """Not a page more than there is now."""

    def full(connection: Any, _record: Any) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    ledger.engine.dispose()
    sa.event.listen(ledger.engine, "connect", full)


def test_a_full_disk_ends_the_process_with_a_remedy_and_says_what_stays_at_the_broker(
    ledger: Ledger, settings: Settings
) -> None:
    hold_65(ledger, settings)
    live = live_over(ledger, settings)
    fill_the_disk(ledger)
    with capture_logs() as logs, pytest.raises(BrokerError) as ended:
        live.run()
    assert ended.value.code == "ledger_unwritable"
    assert str(ledger.path) in str(ended.value)
    assert "Make room on its disk and start again" in str(ended.value)
    assert [each["held"] for each in logs if each["event"] == "desk_ends"] == [{"NIFTY": 65}]


class LoggedOut(SandboxBroker):
    def snapshot(self) -> Any:
        raise ConfigError("Fyers orders: token expired (-8); run `hrm fyers login`", code="logged_out")


def test_a_login_that_is_over_ends_the_process_and_says_what_stays_at_the_broker(
    ledger: Ledger, settings: Settings
) -> None:
    hold_65(ledger, settings)
    broker = LoggedOut(ledger, {NIFTY: flat_costs(1.0)}, capital=1e8, margin_ratio=0.15, clock=lambda: OPENED_NS)
    with capture_logs() as logs, pytest.raises(ConfigError) as ended:
        live_over(ledger, settings, broker=broker).run()
    assert ended.value.code == "logged_out"
    assert [each["held"] for each in logs if each["event"] == "desk_ends"] == [{"NIFTY": 65}]


def test_an_order_waits_for_the_order_rate_only_whatever_the_clock_says(ledger: Ledger, settings: Settings) -> None:
    """The last process had a later time: the log stands still, and what closes a position does not wait for it."""
    live = live_over(ledger, settings)
    ticket = accepted(ledger, settings, "NIFTY:1", 65)
    later_ns = OPENED_NS + HOUR_NS
    live.log.append("unsent", reason_body("NIFTY:1", ""), at_ns=later_ns)
    live._execute([Send(ticket, later_ns)])
    live.threads.finish("send", wait_s=10.0)
    live.threads.close()
    live.ports.close()
    assert [each.broker_id for each in ledger.unfinished()] == [f"SIM{ticket.tag}"]


def test_what_is_still_held_when_the_session_is_over_is_for_a_person(ledger: Ledger, settings: Settings) -> None:
    hold_65(ledger, settings)
    closes_ns = Grid.of("NIFTY", DAY, settings.live).closes_ns
    live = live_over(ledger, settings, clock=StandingClock(closes_ns + 61 * SECOND_NS))
    with capture_logs() as logs:
        summary = live.run()
    assert (summary["ended"], summary["positions"]) == ("the session is over", {"NIFTY": 65})
    told = [each["text"] for each in logs if each.get("log_level") == "error"]
    assert told.count("the session is over, and still held are {'NIFTY': 65.0}; close them by hand") == 1


class Hanging(SandboxBroker):
    """Cancellations that hang until they are let go."""

    def hang(self) -> threading.Event:
        self.asked: list[str] = []
        self.let_go = threading.Event()
        return self.let_go

    def cancel(self, broker_id: str) -> None:
        self.asked.append(broker_id)
        assert self.let_go.wait(30.0)


def test_a_cancellation_that_hangs_is_not_asked_for_again_behind_itself(ledger: Ledger, settings: Settings) -> None:
    broker = Hanging(ledger, {NIFTY: flat_costs(1.0)}, capital=1e8, margin_ratio=0.15, clock=lambda: OPENED_NS)
    let_go = broker.hang()
    live = live_over(ledger, settings, broker=broker)
    for _ in range(5):
        live._execute([CancelOrder("b1"), CancelOrder("b2")])
    let_go.set()
    live.threads.finish("cancel", wait_s=30.0)
    assert sorted(broker.asked) == ["b1", "b2"]
    live._execute([CancelOrder("b1")])  # it is not cancelled yet
    live.threads.finish("cancel", wait_s=30.0)
    live.threads.close()
    live.ports.close()
    assert sorted(broker.asked) == ["b1", "b1", "b2"]


class SlowFeed(QuietFeed):
    def __init__(self) -> None:
        self.asked, self.let_go = 0, threading.Event()

    def quotes(self, symbols: Sequence[str]) -> list[Tick]:
        self.asked += 1
        assert self.let_go.wait(30.0)
        return []


def test_a_question_for_prices_that_hangs_has_no_second_one_behind_it(ledger: Ledger, settings: Settings) -> None:
    feed = SlowFeed()
    live = live_over(ledger, settings, feed=feed)
    began_s = time.monotonic()
    for after_s in (0, 3, 6, 9):
        live.prices.look(OPENED_NS + SECOND_NS, began_s + after_s)
    feed.let_go.set()
    live.threads.finish("aside", wait_s=30.0)
    assert feed.asked == 1
    live.prices.look(OPENED_NS + SECOND_NS, began_s + 12)
    live.threads.finish("aside", wait_s=30.0)
    live.threads.close()
    live.ports.close()
    assert feed.asked == 2


def test_a_time_that_is_set_back_moves_no_session_and_one_that_is_set_forward_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, before_ns = MachineClock(), time.time_ns()
    for hours, expected in ((0, 0), (-5, 0), (2, 2), (-5, 2)):
        monkeypatch.setattr("time.time_ns", lambda at_ns=before_ns + hours * HOUR_NS: at_ns)
        assert 0 <= clock() - (before_ns + expected * HOUR_NS) < HOUR_NS


def test_a_log_of_a_later_time_is_not_gone_on_with(ledger: Ledger) -> None:
    require_later(ledger, 0)  # nothing is in it
    EventLog(ledger).append("unsent", reason_body("NIFTY:1", ""), at_ns=OPENED_NS)
    require_later(ledger, OPENED_NS - 59 * SECOND_NS)
    with pytest.raises(ConfigError, match=r"2026-03-10T03:45:00.*--state-dir of its own") as refused:
        require_later(ledger, OPENED_NS - HOUR_NS)
    assert refused.value.code == "clock_behind"


def access_until(expires_ns: int, folder: Path, base_url: str | None = None) -> Access:
    said = base64.urlsafe_b64encode(json.dumps({"exp": expires_ns // SECOND_NS}).encode()).decode()
    return Access(Credentials("APP-100", SecretStr(f"head.{said}.tail")), folder, base_url)


def test_a_login_that_ends_within_the_session_begins_none(tmp_path: Path) -> None:
    closes_ns = OPENED_NS + 6 * HOUR_NS
    require_token_for(access_until(closes_ns, tmp_path), closes_ns)
    require_token_for(
        access_until(OPENED_NS, tmp_path, "http://127.0.0.1:1"), closes_ns
    )  # an emulator has its own time
    with pytest.raises(ConfigError, match="before the session does; run `hrm fyers login`") as refused:
        require_token_for(access_until(closes_ns - SECOND_NS, tmp_path), closes_ns)
    assert refused.value.code == "logged_out"


def test_on_a_day_without_a_session_the_next_one_is_named(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sunday_ns = OPENED_NS - 2 * 24 * HOUR_NS
    monkeypatch.setenv("FYERS_CLIENT_ID", "APP-100")
    monkeypatch.setenv("FYERS_ACCESS_TOKEN", "not-a-jwt")
    monkeypatch.setattr("time.time_ns", lambda: sunday_ns)
    with pytest.raises(DataError, match="2026-03-08 is no session of the exchange; the next one is 2026-03-09") as told:
        trade_live(settings, None, real_orders=False, confirm=None, as_json=True)
    assert told.value.code == "no_session"
