"""A person's orders over HTTP: on the replay's ledger, or handed to the live process; once, whoever is killed when."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_backend_app import backend, settings_of
from test_backtest_jobs import client_of

from backend import manual_trades
from backend.manual_trades import ManualTradeRequest, ManualTrades
from core.settings import Settings
from serving import keys
from serving.scopes import Scope
from trading import switch
from trading.broker import Trade
from trading.costs import flat_costs
from trading.events import EventLog, bar_body
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.manual import OWNER, Answer, Inbox, Requests, answer
from trading.market import SECOND_NS
from trading.paper import PaperBroker
from trading.stream import Bar

BAR_NS = 1_700_000_000 * SECOND_NS
LOT = 50  # of NIFTY in 2023


def show_bar(ledger: Ledger, symbol: str = "NIFTY", price: float = 20_000.0, at_ns: int = BAR_NS) -> None:
    """As the replay does."""
    bar = Bar(at_ns, price, price, price, price, float("nan"), 0, False)
    EventLog(ledger).append("bar", bar_body(bar, {symbol: (price, at_ns)}), at_ns=at_ns, symbol=symbol)


@dataclass
class Paper:
    """A state directory whose replay on paper has shown a bar."""

    state_dir: Path
    settings: Settings
    ledger: Ledger

    def ask(self, quantity: int = LOT, side: str = "buy", key: str = "key-00001", **more: Any) -> dict[str, Any]:
        """In this process, as the route does."""
        body = {"symbol": "NIFTY", "side": side, "quantity": quantity, **more}
        desk = ManualTrades(self.settings)
        trade = desk.ask(ManualTradeRequest.model_validate(body), "asha", key)
        return desk.state(trade).model_dump()

    def fill(self, at_ns: int = BAR_NS + 300 * SECOND_NS, price: float = 20_010.0) -> None:
        broker = PaperBroker(OrderGateway(self.ledger, self.settings.trading), flat_costs(1.0))
        broker.fill_open_orders("NIFTY", price, at_ns)
        show_bar(self.ledger, price=price, at_ns=at_ns)


@pytest.fixture
def paper(tmp_path: Path) -> Iterator[Paper]:
    ledger = Ledger(tmp_path / "paper.db")
    show_bar(ledger)
    yield Paper(tmp_path, settings_of(tmp_path), ledger)
    ledger.close()


def test_on_paper_it_is_filled_at_the_next_bar_and_its_owner_is_named(paper: Paper) -> None:
    told = paper.ask()
    assert (told["status"], told["ledger"], told["filled_units"]) == ("open", "paper.db", 0.0)
    paper.fill()
    assert paper.ledger.units("NIFTY") == LOT
    assert str(OrderGateway(paper.ledger, paper.settings.trading).book("NIFTY").owner) == OWNER
    told = paper.ask()  # the same key
    assert (told["status"], told["filled_units"], told["average_price"]) == ("filled", LOT, 20_010.0)
    assert len(paper.ledger.fills("NIFTY")) == 1
    assert paper.ledger.discrepancies() == []


@pytest.mark.parametrize("write", ["UPDATE requests SET units = 1", "DELETE FROM requests"])
def test_what_a_person_asked_for_is_on_record_and_stays_there(paper: Paper, write: str) -> None:
    paper.ask(reason="a hedge")
    database = sqlite3.connect(paper.state_dir / "manual_trades.db")
    with closing(database), pytest.raises(sqlite3.IntegrityError, match="append-only"):
        database.execute(write)
    (kept,) = Requests(paper.state_dir).newest(10)
    assert (kept.by, kept.symbol, kept.units, kept.reason) == ("asha", "NIFTY", LOT, "a hedge")


def test_what_a_model_holds_is_closed_for_its_owner(paper: Paper) -> None:
    gateway = OrderGateway(paper.ledger, paper.settings.trading)
    order = Order("NIFTY:1", "NIFTY", float(LOT), "challenger:hrm/v1", epoch=0, at_ns=1, bar_ns=1)
    gateway.submit(order)
    PaperBroker(gateway, flat_costs(1.0)).fill(order, 20_000.0, bar_ns=1)
    assert paper.ask(side="sell")["status"] == "open"
    paper.fill()
    assert paper.ledger.units("NIFTY") == 0
    assert {fill.owner for fill in paper.ledger.fills("NIFTY")} == {"challenger:hrm/v1"}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"quantity": LOT + 1}, "odd_lot"),
        ({"quantity": LOT * 21}, "too_many_lots"),
        ({"symbol": "BANKNIFTY"}, "no_price"),
    ],
)
def test_the_same_risk_engine_refuses_it(paper: Paper, asked: dict[str, Any], reason: str) -> None:
    told = paper.ask(**asked)
    assert (told["status"], told["detail"].split(":")[0]) == ("refused", reason)
    assert paper.ledger.unfinished() == []
    assert paper.ask(**asked) == told  # and says the same again


def test_a_kill_refuses_it_and_resuming_does_not_bring_it_back(paper: Paper) -> None:
    switch.engage(paper.state_dir, "halted", "ravi", "the feed")
    assert paper.ask()["detail"].startswith("halted")
    switch.release(paper.state_dir, "ravi", "it is back")
    assert paper.ask()["status"] == "refused"
    assert paper.ask(key="key-00002")["status"] == "open"


def test_a_loss_beyond_the_limit_refuses_it(paper: Paper) -> None:
    paper.ask(quantity=5 * LOT)
    paper.fill()
    paper.fill(at_ns=BAR_NS + 600 * SECOND_NS, price=18_000.0)
    assert paper.ask(key="key-00002")["detail"].split(":")[0] in ("drawdown", "daily_loss")
    assert paper.ask(quantity=5 * LOT, side="sell", key="key-00003")["status"] == "open"  # out it may


def test_beside_an_open_order_it_waits_for_its_turn(paper: Paper) -> None:
    paper.ask()
    assert paper.ask(key="key-00002")["detail"].startswith("open_order")


def test_asked_twice_at_once_it_is_traded_once(paper: Paper) -> None:
    threads = [threading.Thread(target=paper.ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paper.ledger.unfinished()) == 1


@pytest.mark.parametrize("account", ["paper", "real"])
def test_real_orders_are_asked_for_by_name_and_paper_is_never_real(paper: Paper, account: str) -> None:
    with traded(paper.state_dir / ("live.db" if account == "paper" else "paper.db")), pytest.raises(Exception) as error:
        paper.ask(account=account)
    assert error.value.code == ("real_account" if account == "paper" else "no_live_desk")  # type: ignore[attr-defined]


def test_a_request_that_was_left_by_a_killed_process_is_traded_in_time_or_never(
    paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the request and the order: the key may be sent again."""

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(manual_trades.paper_orders, "trade", killed)
        paper.ask()
    assert paper.ask()["status"] == "open"
    assert len(paper.ledger.unfinished()) == 1
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(manual_trades.paper_orders, "trade", killed)
        paper.ask(key="key-00002")
    monkeypatch.setattr("time.time_ns", lambda now=time.time_ns: now() + 3600 * SECOND_NS)
    told = paper.ask(key="key-00002")
    assert (told["status"], told["detail"].split(":")[0]) == ("refused", "too_late")


@contextmanager
def traded(ledger: Path) -> Iterator[None]:
    """A live process has it."""
    with ledger.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def live_desk(state_dir: Path, take: Callable[[Ledger, Any], None]) -> Iterator[None]:
    """A live process that takes what it is asked for, in a thread, as its turns do."""
    over = threading.Event()
    ledger = Ledger(state_dir / "live.db")

    def turns() -> None:
        inbox = Inbox(state_dir, ledger)
        while not over.wait(0.01):
            for trade in inbox.new():
                take(ledger, trade)

    thread = threading.Thread(target=turns)
    with traded(state_dir / "live.db"):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            ledger.close()


def test_over_http_it_is_handed_to_the_live_process_which_alone_writes_its_ledger(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    headers = {"Idempotency-Key": "key-00001"}
    wanted = {"symbol": "NIFTY", "side": "buy", "quantity": 65, "account": "real"}

    def take(ledger: Ledger, trade: Any) -> None:
        if trade.units < 0:
            answer(ledger, Answer(trade.trade_id, 1, "disagrees: the broker holds something else"))
            return
        gateway = OrderGateway(ledger, settings.trading)
        order = Order(
            trade.order_id, trade.symbol, float(trade.units), OWNER, epoch=0, at_ns=1, bar_ns=1, instrument="F"
        )
        gateway.submit(order)
        answer(ledger, Answer(trade.trade_id, 1, None))
        gateway.acknowledge(trade.order_id, "b1")
        gateway.book_trade(trade.order_id, Trade("t1", "b1", "", "F", 65, 24_000.0, 2), 1.0)

    with live_desk(tmp_path, take), backend(tmp_path) as (process, listening), client_of(tmp_path, listening) as client:
        first = client.post("/api/trading/manual-trade", json=wanted, headers=headers)
        assert first.status_code == 200, first.text
        told = first.json()
        assert (told["status"], told["broker_id"], told["average_price"]) == ("filled", "b1", 24_000.0)
        assert client.get(first.headers["location"]).json() == told
        refused = client.post(
            "/api/trading/manual-trade", json=wanted | {"side": "sell"}, headers={"Idempotency-Key": "key-00002"}
        )
        assert (refused.status_code, refused.json()["code"]) == (409, "disagrees")
        paper = client.post(
            "/api/trading/manual-trade", json=wanted | {"account": "paper"}, headers={"Idempotency-Key": "key-00003"}
        )
        assert (paper.status_code, paper.json()["code"]) == (422, "real_account")
        process.kill()
        process.wait()
        with backend(tmp_path) as (_, again), client_of(tmp_path, again) as second:
            after = second.post("/api/trading/manual-trade", json=wanted, headers=headers)
            assert after.json() == told
            other = second.post("/api/trading/manual-trade", json=wanted | {"quantity": 130}, headers=headers)
            assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(Requests(tmp_path).after(0, "live.db")) == 2


@pytest.mark.slow
def test_killed_while_it_waits_the_answer_is_there_for_the_next_process(tmp_path: Path) -> None:
    """kill -9 of the backend in the middle: the desk answers nobody, and whoever asks again with the key hears it."""
    wanted = {"symbol": "NIFTY", "side": "buy", "quantity": 65, "account": "real"}
    go_on, taken = threading.Event(), threading.Event()
    orders: list[str] = []

    def take(ledger: Ledger, trade: Any) -> None:
        taken.set()
        go_on.wait(60)
        orders.append(trade.order_id)
        answer(ledger, Answer(trade.trade_id, 1, "halted: by ravi"))

    with live_desk(tmp_path, take):
        with backend(tmp_path) as (process, listening), client_of(tmp_path, listening) as client:
            asking = threading.Thread(target=_asked, args=(client, wanted))
            asking.start()
            assert taken.wait(60)
            process.kill()
            process.wait()
            asking.join()
        go_on.set()
        with backend(tmp_path) as (_, again), client_of(tmp_path, again) as client:
            answered = _asked(client, wanted)
            assert answered is not None
            assert (answered.status_code, answered.json()["code"]) == (409, "halted")
    assert len(orders) == 1


def _asked(client: httpx.Client, wanted: dict[str, Any]) -> httpx.Response | None:
    try:
        return client.post("/api/trading/manual-trade", json=wanted, headers={"Idempotency-Key": "key-00001"})
    except httpx.TransportError:
        return None  # killed


def test_it_needs_its_own_scope_and_a_key_names_a_trade(tmp_path: Path) -> None:
    others = tuple(scope for scope in Scope if scope not in (Scope.TRADE_WRITE, Scope.ADMIN))
    texts = [keys.create(tmp_path, "asha", scopes)[1] for scopes in ((Scope.TRADE_WRITE,), others)]
    wanted = {"symbol": "NIFTY", "side": "buy", "quantity": 65}
    with backend(tmp_path) as (_, listening), client_of(tmp_path, listening) as client:
        answers = [
            client.post(
                "/api/trading/manual-trade",
                json=wanted | body,
                headers={"Authorization": f"Bearer {text}"} | ({"Idempotency-Key": key} if key else {}),
            )
            for text, key, body in (
                (texts[1], "key-00001", {}),
                (texts[0], "short", {}),
                (texts[0], "key-00001", {"quantity": 0}),
                (texts[0], "key-00001", {"quantity": 1.5}),
                (texts[0], "key-00001", {"side": "hold"}),
                (texts[0], "key-00001", {}),
                (texts[0], "key-00001", {}),
                (texts[0], "", {}),  # as the seed's clients ask: each a trade of its own
                (texts[0], "", {}),
            )
        ]
    codes = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert codes == [(403, "scope_missing"), *[(422, "request_invalid")] * 4, *[(409, "no_price")] * 4]
    trades = [answer.json()["trade_id"] for answer in answers[-4:]]
    assert trades[0] == trades[1]
    assert len(set(trades)) == 3
