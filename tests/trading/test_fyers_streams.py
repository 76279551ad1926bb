"""Prices and news of orders over the real SDK's protocol: they come, come again after a break, and end when told."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fyers_account import FUTURE, INDEX, PRICE, TEN_O_CLOCK_S, calls, elsewhere, until
from websockets.sync.server import Server, ServerConnection, serve

from core.errors import BrokerError, DataError
from tests.fyers_emulator.process import Emulator
from trading.broker import OrderReport, Ticket, Trade, tag_of
from trading.fyers import sockets
from trading.fyers.broker import FyersBroker
from trading.fyers.client import Access
from trading.fyers.feed import FyersFeed, fyers_symbol
from trading.fyers.order_stream import OrderStream
from trading.ticks import Tick

AT_NS = int(TEN_O_CLOCK_S) * 10**9
LOT = 65
BUY = Ticket("NIFTY:1", FUTURE, LOT, PRICE + 50)


@pytest.fixture
def ticks(emulator: Emulator, access: Access) -> Iterator[list[Tick]]:
    """What a feed of the index, by its instrument's name, and of its future tells."""
    with feeding(emulator, access) as (_, told):
        yield told


@contextmanager
def feeding(emulator: Emulator, access: Access) -> Iterator[tuple[FyersFeed, list[Tick]]]:
    emulator.ticks({INDEX: PRICE})
    before, told = threading.active_count(), list[Tick]()
    feed = FyersFeed(replace(access, now_ns=lambda: 42))
    feed.start(told.append, ["NIFTY", FUTURE])
    try:
        until(lambda: len(told) >= 2)
        yield feed, told
    finally:
        feed.close()
        assert threading.active_count() == before


@contextmanager
def hearing(access: Access) -> Iterator[tuple[OrderStream, list[OrderReport | Trade], list[None]]]:
    news: list[OrderReport | Trade] = []
    missed: list[None] = []
    stream = OrderStream(access)
    stream.start(news.append, lambda: missed.append(None))
    try:
        until(lambda: missed)
        yield stream, news, missed
    finally:
        stream.close()
        assert not alive("fyers-orders")


@contextmanager
def listening(answer: Callable[[ServerConnection], None]) -> Iterator[str]:
    """A server that is none: its address, for what the emulator never does."""
    server: Server
    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def alive(name: str) -> bool:
    return any(thread.name == name for thread in threading.enumerate())


def prices(ticks: list[Tick], symbol: str) -> list[float]:
    return [tick.price for tick in list(ticks) if tick.symbol == symbol]


def test_ticks_have_the_desks_names_and_the_exchanges_time(emulator: Emulator, ticks: list[Tick]) -> None:
    emulator.ticks({INDEX: PRICE + 5}, at=TEN_O_CLOCK_S + 1)
    until(lambda: len(ticks) >= 4)
    assert ticks[:2] == [Tick("NIFTY", PRICE, AT_NS, 42), Tick(FUTURE, PRICE, AT_NS, 42)]
    assert Tick("NIFTY", PRICE + 5, AT_NS + 10**9, 42) in ticks
    assert prices(ticks, FUTURE) == [PRICE, PRICE + 5]


@pytest.mark.parametrize(
    "how", ["zero", "negative", "sentinel", "future", "past", "outlier", "unknown_symbol", "truncated"]
)
def test_a_malformed_tick_does_not_stop_the_true_ones(emulator: Emulator, ticks: list[Tick], how: str) -> None:
    emulator.fault("malformed_tick", how=how, symbol=INDEX)
    emulator.ticks({INDEX: PRICE + 5}, at=TEN_O_CLOCK_S + 1)
    emulator.ticks({INDEX: PRICE + 6}, at=TEN_O_CLOCK_S + 2)
    until(lambda: PRICE + 6 in prices(ticks, "NIFTY"))
    told = prices(ticks, "NIFTY")
    assert PRICE + 5 in told
    assert -21_474_836.48 not in told
    assert set(told) - {PRICE, PRICE + 5, PRICE + 6} == {
        "zero": {0.0},
        "negative": {-PRICE - 5},
        "outlier": {2 * PRICE + 10},
    }.get(how, set())
    assert {tick.symbol for tick in ticks} == {"NIFTY", FUTURE}


def test_a_feed_that_was_cut_comes_again_with_its_symbols(emulator: Emulator, ticks: list[Tick]) -> None:
    for number in range(1, 3):
        before = len(ticks)
        emulator.fault("disconnect", sockets=["data"])
        until(lambda before=before: len(ticks) >= before + 2)  # a snapshot of each
        emulator.ticks({INDEX: PRICE + number}, at=TEN_O_CLOCK_S + number)
        until(lambda number=number: PRICE + number in prices(ticks, FUTURE))


def test_a_feed_is_restarted_when_asked(emulator: Emulator, access: Access) -> None:
    with feeding(emulator, access) as (feed, told):
        before = len(told)
        feed.restart()
        until(lambda: len(told) >= before + 2)
        assert emulator.get("sockets")["data"] == 1


def test_two_feeds_are_two(emulator: Emulator, access: Access) -> None:
    """The SDK would hand out the first one."""
    with feeding(emulator, access) as (_, one), feeding(emulator, access) as (_, two):
        emulator.ticks({INDEX: PRICE + 5})
        until(lambda: PRICE + 5 in prices(one, "NIFTY") and PRICE + 5 in prices(two, "NIFTY"))


def test_symbols_that_the_broker_does_not_know_leave_the_others(emulator: Emulator, access: Access) -> None:
    emulator.ticks({INDEX: PRICE})
    told: list[Tick] = []
    feed = FyersFeed(access)
    feed.start(told.append, ["NSE:NONE-EQ", "NIFTY"])
    until(lambda: told)
    feed.close()
    assert told[0].symbol == "NIFTY"


def test_whoever_is_told_a_tick_may_fail_without_ending_the_feed(emulator: Emulator, access: Access) -> None:
    emulator.ticks({INDEX: PRICE})
    told: list[Tick] = []

    def tell(tick: Tick) -> None:
        told.append(tick)
        if len(told) == 1:
            raise RuntimeError("a full disk")

    feed = FyersFeed(access)
    feed.start(tell, ["NIFTY"])
    until(lambda: len(told) >= 2)
    feed.close()


@pytest.mark.parametrize("kind", ["expired", "garbage"])
def test_a_feed_without_a_good_token_tells_nothing_and_ends_when_closed(
    emulator: Emulator, access: Access, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from pydantic import SecretStr

    token = emulator.login(expires_in_s=-60) if kind == "expired" else "garbage"
    own = replace(access, credentials=replace(access.credentials, access_token=SecretStr(token)))
    feed, told = FyersFeed(own), []
    feed.start(told.append, ["NIFTY"])
    said = ""

    def spoken() -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return "hrm fyers login" in said

    until(spoken)
    feed.close()
    assert not told
    assert token not in said


def test_closing_a_feed_that_never_began_is_nothing(access: Access) -> None:
    feed = FyersFeed(access)
    feed.restart()
    feed.close()
    OrderStream(access).close()


def test_names_are_the_brokers_symbols(access: Access) -> None:
    assert [fyers_symbol(name) for name in ("NIFTY", "NIFTYBEES", FUTURE)] == [INDEX, "NSE:NIFTYBEES-EQ", FUTURE]
    with pytest.raises(DataError, match="NOSUCH"):
        FyersFeed(access).start(lambda _: None, ["NOSUCH"])


def test_a_quote_is_as_old_as_the_question_before_the_change(emulator: Emulator, access: Access) -> None:
    now = [100]
    emulator.ticks({INDEX: PRICE})
    feed = FyersFeed(replace(access, now_ns=lambda: now[0]))
    answers = []
    for asked_ns, price in ((100, PRICE), (200, PRICE), (300, PRICE + 5), (400, PRICE + 5), (500, PRICE + 5)):
        now[0] = asked_ns
        if price != PRICE and asked_ns == 300:
            emulator.ticks({INDEX: price})
        answers += feed.quotes(["NIFTY"])
    feed.close()
    assert [tick.symbol for tick in answers] == ["NIFTY"] * 5
    assert [tick.price for tick in answers] == [PRICE, PRICE, PRICE + 5, PRICE + 5, PRICE + 5]
    assert [tick.at_ns for tick in answers] == [0, 0, 200, 200, 200]


@pytest.mark.parametrize("how", ["zero", "negative", "text", "null"])
def test_a_malformed_quote_is_told_as_what_it_is(emulator: Emulator, access: Access, how: str) -> None:
    emulator.ticks({INDEX: PRICE})
    emulator.fault("malformed_tick", how=how, where="quotes")
    feed = FyersFeed(access)
    (tick,) = feed.quotes(["NIFTY"])
    feed.close()
    assert tick.price == {"zero": 0.0, "negative": -PRICE}.get(how) or math.isnan(tick.price) or how == "zero"
    assert math.isnan(tick.price) == (how in ("text", "null"))


def test_many_quotes_are_asked_for_in_calls_of_fifty(emulator: Emulator, access: Access) -> None:
    symbols = [f"NSE:S{number:03d}-EQ" for number in range(120)]
    for symbol in symbols:
        emulator.list(symbol)
    emulator.ticks(dict.fromkeys(symbols, 10.0))
    before = calls(emulator, "/data/quotes")
    feed = FyersFeed(access)
    assert [tick.symbol for tick in feed.quotes([*symbols, "NSE:NONE-EQ"])] == symbols
    feed.close()
    assert calls(emulator, "/data/quotes") == before + 3


def test_quotes_without_an_answer_are_a_broker_error(emulator: Emulator, access: Access) -> None:
    emulator.fault("bad_gateway", route="GET /data/quotes")
    feed = FyersFeed(access)
    with pytest.raises(BrokerError) as refused:
        feed.quotes(["NIFTY"])
    feed.close()
    assert refused.value.retryable


def test_orders_and_trades_are_told_as_they_happen(emulator: Emulator, access: Access) -> None:
    emulator.ticks({INDEX: PRICE})
    broker = FyersBroker(access)
    with hearing(access) as (_, news, missed):
        broker.place(BUY)
        until(lambda: len(news) >= 3)
        emulator.fault("manual_trade", symbol=FUTURE, units=-LOT)
        until(lambda: len(news) >= 6)
        assert len(missed) == 1
    snapshot = broker.snapshot()
    broker.close()
    assert [one for one in news if isinstance(one, Trade)] == list(snapshot.trades)
    last = {one.broker_id: one for one in news if isinstance(one, OrderReport)}
    assert list(last.values()) == list(snapshot.orders)
    assert {one.tag for one in news} == {tag_of("NIFTY:1"), ""}


def test_after_a_break_it_is_said_that_something_may_be_missed(emulator: Emulator, access: Access) -> None:
    emulator.ticks({INDEX: PRICE})
    broker = FyersBroker(access)
    with hearing(access) as (stream, news, missed):
        emulator.fault("disconnect_on_order")
        broker.place(BUY)
        until(lambda: len(missed) >= 2)
        broker.place(replace(BUY, order_id="NIFTY:2"))
        until(lambda: {one.tag for one in news if isinstance(one, Trade)} >= {tag_of("NIFTY:2")})
        stream.restart()
        until(lambda: len(missed) >= 3)
    assert len(broker.snapshot().trades) == 2
    broker.close()


def test_news_that_cannot_be_read_asks_for_a_snapshot(access: Access) -> None:
    def answer(connection: ServerConnection) -> None:
        connection.recv()
        connection.send('{"s": "ok", "code": 1605}')
        for text in ("{", '{"s": "ok", "orders": {"id": "1"}}', '{"s": "ok", "trades": []}', '{"s": "ok", "edis": 1}'):
            connection.send(text)
        for _ in connection:
            connection.send("pong")

    with listening(answer) as url, hearing(elsewhere(access, url)) as (_, news, missed):
        until(lambda: len(missed) >= 4)
        assert not news


@pytest.mark.parametrize("limit", ["READY_S", "max_silence_s"])
def test_a_server_that_says_nothing_is_left(access: Access, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    connections: list[None] = []

    def answer(connection: ServerConnection) -> None:
        connections.append(None)
        if limit == "max_silence_s":
            connection.recv()
            connection.send('{"s": "ok", "code": 1605}')
        for _ in connection:
            pass

    if limit == "READY_S":
        monkeypatch.setattr(sockets, "READY_S", 0.3)
    else:
        monkeypatch.setattr("trading.fyers.order_stream._News.max_silence_s", 0.3)
    with listening(answer) as url:
        stream = OrderStream(elsewhere(access, url))
        stream.start(lambda _: None, lambda: None)
        until(lambda: len(connections) >= 2)
        stream.close()
    assert not alive("fyers-orders")


def test_a_server_that_is_not_there_is_asked_again_until_closed(
    access: Access, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = OrderStream(elsewhere(access, "http://127.0.0.1:9"))
    stream.start(lambda _: None, lambda: None)
    said = []

    def spoken() -> bool:
        said.append(capfd.readouterr().out)
        return "".join(said).count("fyers_stream_lost") >= 2

    until(spoken)
    stream.close()
    assert not alive("fyers-orders")
