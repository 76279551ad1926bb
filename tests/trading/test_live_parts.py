"""The parts of the live process: sender, threads, bars in order, grids, latencies, and who may begin."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BrokerError, ConfigError, DataError
from core.settings import Settings, load_settings
from flows.live_commands import trade_live
from trading import switch
from trading.bar_builder import BarBuilder
from trading.broker import Placed, Ticket, Unknown
from trading.costs import flat_costs
from trading.events import EventLog, history_body
from trading.gateway import Accepted, OrderGateway
from trading.latency import Histogram
from trading.ledger import Ledger, Order
from trading.live_bars import LiveBars
from trading.live_ports import Ports
from trading.market import SECOND_NS
from trading.sandbox import SandboxBroker
from trading.sender import Sender, Unsent
from trading.session_grid import Grid
from trading.stream import Bar
from trading.threads import Threads
from trading.ticks import Tick

FUTURE = "NSE:NIFTY26NOVFUT"
DAY = date(2026, 11, 18)
NOW_NS = int(datetime(2026, 11, 18, 5, 0, tzinfo=UTC).timestamp()) * SECOND_NS
RULES = load_settings(environ={}).live
GRID = Grid.of("NIFTY", DAY, RULES)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "live-paper.db")
    yield ledger
    ledger.close()


# --- the sender


class Desk:
    """A gateway with a position of 65 units, a sandbox, and what goes there."""

    def __init__(self, ledger: Ledger, settings: Settings, state_dir: Path) -> None:
        self.gateway = OrderGateway(ledger, settings.trading)
        self.broker = SandboxBroker(
            ledger, {FUTURE: flat_costs(1.0)}, capital=1e6, margin_ratio=0.15, clock=lambda: NOW_NS
        )
        self.ending = threading.Event()
        self.sender = Sender(self.broker, self.gateway, state_dir, self.ending)
        held = self.accepted("NIFTY:0", 65)
        self.gateway.fill(held.order_id, 24_000.0, 0.0, NOW_NS)

    def accepted(self, order_id: str, units: int) -> Ticket:
        order = Order(
            order_id, "NIFTY", float(units), "champion:hrm/v1", 1, NOW_NS, NOW_NS, instrument=FUTURE, limit_price=2.4e4
        )
        assert isinstance(self.gateway.submit(order), Accepted)
        return Ticket(order_id, FUTURE, units, 2.4e4)

    def sent(self) -> list[str]:
        return [each.tag for each in self.broker.snapshot().orders]


@pytest.fixture
def desk(ledger: Ledger, paper_settings: Settings, tmp_path: Path) -> Desk:
    return Desk(ledger, paper_settings, tmp_path)


def test_a_ticket_goes_out_when_it_may(desk: Desk) -> None:
    ticket, due_s = desk.accepted("NIFTY:1", 65), time.monotonic() + 0.05
    assert isinstance(desk.sender.send(ticket, due_s), Placed)
    assert time.monotonic() >= due_s
    assert desk.sent() == [ticket.tag]


def test_nothing_goes_out_once_trading_is_halted(desk: Desk, tmp_path: Path) -> None:
    opening, closing = desk.accepted("NIFTY:1", 65), desk.accepted("NIFTY:2", -65)
    (tmp_path / switch.KILL).touch()
    assert isinstance(desk.sender.send(opening, 0.0), Unsent)
    assert isinstance(desk.sender.send(closing, 0.0), Unsent)
    assert desk.sent() == []


def test_while_reducing_only_what_closes_goes_out(desk: Desk, tmp_path: Path) -> None:
    opening, closing = desk.accepted("NIFTY:1", 65), desk.accepted("NIFTY:2", -65)
    switch.engage(tmp_path, "reducing", "a test", "")
    assert isinstance(desk.sender.send(opening, 0.0), Unsent)
    assert isinstance(desk.sender.send(closing, 0.0), Placed)
    assert desk.sent() == [closing.tag]


def test_the_switch_is_read_after_the_wait(desk: Desk, tmp_path: Path) -> None:
    ticket, outcome = desk.accepted("NIFTY:1", 65), []
    thread = threading.Thread(target=lambda: outcome.append(desk.sender.send(ticket, time.monotonic() + 1.0)))
    thread.start()
    switch.engage(tmp_path, "halted", "a test", "")
    thread.join()
    assert isinstance(outcome[0], Unsent)
    assert desk.sent() == []


def test_a_process_that_ends_sends_nothing_more_and_does_not_wait(desk: Desk) -> None:
    ticket = desk.accepted("NIFTY:1", 65)
    desk.ending.set()
    assert desk.sender.send(ticket, time.monotonic() + 3600.0) == Unsent("the process ends")
    assert desk.sent() == []


def test_a_call_that_broke_is_unknown_never_a_failure(desk: Desk) -> None:
    class Breaking(SandboxBroker):
        def place(self, ticket: Ticket) -> Placed:
            super().place(ticket)
            raise RuntimeError("token=secret")

    desk.broker.__class__ = Breaking
    ticket = desk.accepted("NIFTY:1", 65)
    assert desk.sender.send(ticket, 0.0) == Unknown("RuntimeError")
    assert desk.sent() == [ticket.tag]


# --- threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads({"one": 1, "history": 2})
    yield threads
    threads.close()


def test_what_a_call_answers_is_handled_by_the_reader_in_its_own_thread(threads: Threads) -> None:
    came: list[tuple[int, int]] = []
    threads.do("one", threading.get_ident, lambda ident: came.append((ident, threading.get_ident())))
    threads.finish("one", wait_s=10.0)
    ((called, handled),) = came
    assert called != handled == threading.get_ident()
    assert threads.under_way["one"] == 0


def test_a_call_that_fails_ends_the_reader(threads: Threads) -> None:
    threads.do("one", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        threads.finish("one", wait_s=10.0)


def test_what_waits_for_a_thread_never_begins_after_the_close(threads: Threads) -> None:
    gate, begun = threading.Event(), []
    threads.do("one", gate.wait)
    threads.do("one", lambda: begun.append(1))
    threads.close()
    gate.set()
    time.sleep(0.05)
    assert begun == []


# --- the grid


def test_the_bars_of_a_session_are_the_indexs_and_the_last_one_is_before_the_brokers_square_off() -> None:
    starts = list(GRID.closed_by(GRID.closes_ns))
    assert len(starts) == 75
    assert [
        datetime.fromtimestamp(each / 1e9, UTC).strftime("%H:%M") for each in (starts[0], starts[-1], GRID.last_ns)
    ] == [
        "03:45",
        "09:55",
        "09:35",
    ]  # Kolkata is 5:30 ahead: 9:15, 15:25, and the bar that ends at 15:10, 5 minutes before 15:15


def test_on_a_half_day_everything_is_closed_as_long_before_the_close_as_usually() -> None:
    half = Grid.of("NIFTY", date(2024, 3, 2), RULES)  # until 12:30; the broker began at 12:15
    assert datetime.fromtimestamp(half.end_of(half.last_ns) / 1e9, UTC).strftime("%H:%M") == "06:40"  # 12:10 in India


@given(st.integers(-3_600, 8 * 3_600))
def test_a_bar_is_closed_exactly_when_no_time_of_it_is_left(offset_s: int) -> None:
    at_ns = GRID.opens_ns + offset_s * SECOND_NS
    closed, forming = list(GRID.closed_by(at_ns)), GRID.start_of(at_ns)
    assert all(GRID.end_of(start) <= at_ns for start in closed)
    assert (forming is not None) == (GRID.opens_ns <= at_ns < GRID.closes_ns)
    if forming is not None:
        assert forming == (closed[-1] + GRID.interval_ns if closed else GRID.opens_ns)


def test_a_day_without_a_session_has_no_grid() -> None:
    with pytest.raises(DataError) as refused:
        Grid.of("NIFTY", date(2026, 11, 22), RULES)
    assert refused.value.code == "no_session"


# --- bars in order


def bar(start_ns: int, price: float = 24_000.0) -> Bar:
    last = start_ns == GRID.last_ns
    return Bar(start_ns, price, price, price, price, float("nan"), GRID.session, last)


def starts(n: int) -> list[int]:
    return [GRID.opens_ns + k * GRID.interval_ns for k in range(n)]


class Session:
    """Live bars at a time that the test sets, with a history that it gives."""

    def __init__(self, ledger: Ledger, threads: Threads, now_ns: int) -> None:
        self.now_ns, self.threads, self.log = now_ns, threads, EventLog(ledger)
        self.past: Callable[[], list[Bar]] = lambda: []
        self.told: list[int | list[int]] = []
        ports = SimpleNamespace(clock=lambda: self.now_ns, history=lambda _symbol, _now_ns: self.past())
        self.bars = LiveBars(
            {"NIFTY": GRID},
            BarBuilder({"NIFTY": GRID}, {"NIFTY": FUTURE}, lambda _: None),
            cast(Ports, ports),
            threads=threads,
            event_log=self.log,
            tell=self.tell,
        )

    def tell(self, symbol: str, what: Bar | list[Bar]) -> None:
        if isinstance(what, list):
            self.told.append([each.timestamp_ns for each in what])
            self.log.append("history", history_body(what), at_ns=self.now_ns, symbol=symbol)
        else:
            self.told.append(what.timestamp_ns)
            body = history_body([what])
            self.log.append("bar", {"bar": body["bars"][0], "prices": {}}, at_ns=self.now_ns, symbol=symbol)

    def tick(self, at_ns: int, price: float = 24_000.0) -> None:
        self.now_ns = at_ns
        self.bars.push(Tick("NIFTY", price, at_ns, at_ns))

    def settle(self) -> None:
        self.threads.finish("history", wait_s=10.0)


@pytest.fixture
def session(ledger: Ledger, threads: Threads) -> Session:
    return Session(ledger, threads, GRID.opens_ns - SECOND_NS)


def test_a_day_begins_with_history_and_goes_on_with_its_bars(session: Session) -> None:
    yesterday = bar(GRID.opens_ns - 24 * 3600 * SECOND_NS)
    session.past = lambda: [yesterday]
    session.bars.begin()
    session.settle()
    for start_ns in starts(3):
        session.tick(start_ns + SECOND_NS)
    assert session.told == [[yesterday.timestamp_ns], *starts(2)]


def test_a_restart_asks_for_what_it_missed_and_decides_only_the_newest(session: Session) -> None:
    session.now_ns = starts(6)[5] + 60 * SECOND_NS
    session.past = lambda: [bar(each) for each in starts(5)]
    session.bars.begin()
    session.settle()
    assert session.told == [starts(4), starts(5)[4]]


def test_a_restart_without_a_gap_asks_for_nothing_but_the_bar_that_it_broke(session: Session) -> None:
    asked: list[int] = []
    session.tell("NIFTY", [bar(GRID.opens_ns - 24 * 3600 * SECOND_NS)])
    for start_ns in starts(3):
        session.tell("NIFTY", bar(start_ns))
    session.told.clear()
    session.now_ns = starts(4)[3] + 60 * SECOND_NS
    session.past = lambda: asked.append(1) or [bar(each) for each in starts(4)]  # type: ignore[func-returns-value]
    session.bars.begin()
    session.settle()
    assert (session.told, asked) == ([], [])
    session.tick(starts(4)[3] + 100 * SECOND_NS)
    session.tick(starts(5)[4] + SECOND_NS)
    session.settle()
    assert session.told == [starts(4)[3]]
    assert asked == [1]


def test_a_bar_that_nobody_knows_holds_up_no_more_than_one_other(session: Session) -> None:
    session.bars.begin()
    session.settle()
    session.tick(starts(1)[0] + SECOND_NS)
    session.tick(starts(3)[2] + SECOND_NS)  # none of the second bar
    session.settle()
    assert session.told[-1] == starts(1)[0]
    session.tick(starts(4)[3] + SECOND_NS)
    assert session.told[-1] == starts(3)[2]
    assert session.bars.counts["missing_bar"] == 1


def test_without_its_history_a_symbol_starts_with_nothing_until_it_comes(session: Session) -> None:
    def no_history() -> list[Bar]:
        raise BrokerError("away", retryable=True)

    session.past = no_history
    session.bars.begin()
    session.settle()
    for start_ns in starts(3):
        session.tick(start_ns + SECOND_NS)
    assert session.told == [[], starts(1)[0]]  # the second waits for history, until the third is over
    assert session.bars.counts["no_history"] >= 1


def test_the_bar_that_squares_off_waits_for_no_history(session: Session) -> None:
    session.now_ns = GRID.last_ns - 2 * SECOND_NS
    session.past = lambda: []
    session.bars.begin()
    session.tick(GRID.last_ns + SECOND_NS)
    session.tick(GRID.last_ns + GRID.interval_ns + SECOND_NS)
    assert GRID.last_ns in session.told


# --- latencies


@given(st.lists(st.floats(0.02, 5_000.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_percentile_is_at_most_nine_percent_above_the_true_one(measured: list[float], ratio: float) -> None:
    histogram = Histogram()
    for ms in measured:
        histogram.add(ms)
    true = sorted(measured)[max(0, -(-len(measured) * int(ratio * 100) // 100) - 1)]
    found = histogram.percentile(ratio)
    assert found is not None
    assert true <= found * (1 + 1e-9)
    assert found <= true * 1.0906


def test_a_histogram_without_measurements_says_so() -> None:
    summary = Histogram().summary()
    assert (summary["count"], summary["p99_ms"]) == (0, None)
    json.dumps(summary, allow_nan=False)


# --- who may begin


def begin(state_dir: Path, broker: str, **given: Any) -> None:
    settings = load_settings(environ={"HRM_PATHS__STATE_DIR": str(state_dir), "HRM_LIVE__BROKER": broker})
    trade_live(settings, None, **{"real_orders": False, "confirm": None, "as_json": True} | given)


@pytest.mark.parametrize(
    ("broker", "given", "token", "code"),
    [
        ("paper", {}, False, "no_credentials"),
        ("fyers", {"confirm": "APP-100"}, False, "no_credentials"),
        ("fyers", {}, True, "not_confirmed"),
        ("fyers", {"real_orders": True}, True, "not_confirmed"),  # nobody is there to type
        ("fyers", {"confirm": "APP-101"}, True, "not_confirmed"),
        ("paper", {"confirm": "APP-100"}, True, "paper_broker"),
        ("paper", {"real_orders": True}, True, "paper_broker"),
    ],
)
def test_real_orders_need_setting_login_and_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: str, given: dict[str, Any], token: bool, code: str
) -> None:
    for name in ("FYERS_CLIENT_ID", "FYERS_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("FYERS_CLIENT_ID", "APP-100")
        monkeypatch.setenv("FYERS_ACCESS_TOKEN", "not-a-jwt")
    with pytest.raises(ConfigError) as refused:
        begin(tmp_path, broker, **given)
    assert refused.value.code == code
    assert not list(tmp_path.glob("live*"))
