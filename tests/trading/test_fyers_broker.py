"""Orders and books through the real SDK: what became of an order is certain, or said to be unknown."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fyers_account import FUTURE, INDEX, PRICE, TEN_O_CLOCK_S, calls, elsewhere
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BrokerError, ConfigError
from tests.fyers_emulator.process import Emulator
from trading.broker import Declined, Holding, OrderReport, Placed, Ticket, Trade, Unknown, tag_of
from trading.fyers import rows
from trading.fyers.broker import FyersBroker
from trading.fyers.client import Access, RateLimitError

LOT = 65
ORDERS = "/api/v3/orders/sync"
BUY = Ticket("NIFTY:1", FUTURE, LOT, PRICE + 50)
SALE = Ticket("NIFTY:2", FUTURE, -2 * LOT, PRICE - 50)
RESTING = Ticket("NIFTY:3", FUTURE, LOT, PRICE - 100)


@pytest.fixture
def broker(emulator: Emulator, access: Access) -> Iterator[FyersBroker]:
    emulator.ticks({INDEX: PRICE})
    broker = FyersBroker(replace(access, now_ns=lambda: int(TEN_O_CLOCK_S) * 10**9))
    yield broker
    broker.close()


def tags(emulator: Emulator) -> list[str]:
    return [order["tag"] for order in emulator.book()["orders"]]


def test_an_order_is_limited_intraday_and_has_our_tag(emulator: Emulator, broker: FyersBroker) -> None:
    placed = broker.place(SALE)
    (order,) = emulator.book()["orders"]
    assert placed == Placed(order["id"])
    assert (order["tag"], order["units"], order["limit"]) == (tag_of("NIFTY:2"), -2 * LOT, PRICE - 50)
    assert (order["type"], order["product"], order["status"]) == (1, "INTRADAY", "filled")


@pytest.mark.parametrize(
    ("fault", "outcome", "arrived"),
    [
        ({"kind": "lost_ack"}, Unknown, 1),
        ({"kind": "lost_ack", "hang_s": 0.2}, Unknown, 1),
        ({"kind": "hang", "hang_s": 0.2}, Unknown, 0),
        ({"kind": "bad_gateway"}, Unknown, 0),
        ({"kind": "bad_gateway", "done": True}, Unknown, 1),
        ({"kind": "no_ack"}, Unknown, 1),
        ({"kind": "delayed_accept", "delay_s": 0.2}, Placed, 1),
        ({"kind": "refused", "message": "RED:margin"}, Declined, 0),
        ({"kind": "unauthorized"}, Declined, 0),
        ({"kind": "rate_limited"}, Declined, 0),
        ({"kind": "rejected"}, Placed, 1),  # at the exchange, which then says no: the books have it
    ],
)
def test_what_became_of_an_order_is_certain_or_unknown(
    emulator: Emulator, broker: FyersBroker, fault: dict[str, Any], outcome: type, arrived: int
) -> None:
    emulator.post("faults", fault)
    assert isinstance(broker.place(BUY), outcome)
    assert tags(emulator) == [BUY.tag] * arrived


def test_an_order_that_hangs_is_unknown_and_may_arrive_later(
    emulator: Emulator, broker: FyersBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.snapshot()
    monkeypatch.setattr("trading.fyers.sdk.TIMEOUT_S", (1.0, 0.2))
    emulator.fault("delayed_accept", delay_s=0.6)
    assert isinstance(broker.place(BUY), Unknown)
    assert tags(emulator) == []
    emulator.get("clock")
    deadline = threading.Event()
    for _ in range(100):
        if tags(emulator):
            break
        deadline.wait(0.05)
    assert tags(emulator) == [BUY.tag]


def test_an_answer_from_nobody_is_unknown(broker: FyersBroker, access: Access) -> None:
    nowhere = FyersBroker(elsewhere(access, "http://127.0.0.1:9"))
    assert isinstance(nowhere.place(BUY), Unknown)
    nowhere.close()


@pytest.mark.parametrize(
    "ticket",
    [
        replace(BUY, units=LOT + 1),
        replace(BUY, instrument="NSE:NONE-EQ"),
        replace(BUY, instrument=INDEX),
        replace(BUY, limit_price=PRICE + 0.001),
    ],
)
def test_what_the_exchange_cannot_take_is_declined(emulator: Emulator, broker: FyersBroker, ticket: Ticket) -> None:
    assert isinstance(broker.place(ticket), Declined)
    assert tags(emulator) == []


@pytest.mark.parametrize(
    "ticket", [replace(BUY, units=0), *(replace(BUY, limit_price=p) for p in (0.0, -1.0, float("nan"), float("inf")))]
)
def test_nonsense_is_never_sent(emulator: Emulator, broker: FyersBroker, ticket: Ticket) -> None:
    before = calls(emulator, ORDERS)
    assert isinstance(broker.place(ticket), Declined)
    assert calls(emulator, ORDERS) == before


def test_while_the_account_is_shut_out_orders_are_declined_unsent(emulator: Emulator, broker: FyersBroker) -> None:
    emulator.fault("rate_limited", retry_after_s=60)
    broker.place(BUY)
    before = calls(emulator, ORDERS)
    declined = broker.place(BUY)
    assert isinstance(declined, Declined)
    assert "not sent" in declined.reason
    assert calls(emulator, ORDERS) == before
    with pytest.raises(RateLimitError):
        broker.snapshot()


def test_threads_place_orders_at_once_each_with_its_own_outcome(emulator: Emulator, broker: FyersBroker) -> None:
    outcomes: dict[str, object] = {}

    def place(number: int) -> None:
        ticket = replace(RESTING, order_id=f"NIFTY:{number}")
        outcomes[ticket.tag] = broker.place(ticket)

    emulator.fault("refused", count=3, after=1)
    threads = [threading.Thread(target=place, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    placed = {tag: outcome.broker_id for tag, outcome in outcomes.items() if isinstance(outcome, Placed)}
    assert placed == {order["tag"]: order["id"] for order in emulator.book()["orders"]}
    assert sum(isinstance(outcome, Declined) for outcome in outcomes.values()) == 3


def test_a_snapshot_has_orders_trades_holdings_and_funds(emulator: Emulator, broker: FyersBroker) -> None:
    empty = broker.snapshot()
    assert (empty.orders, empty.trades, empty.holdings) == ((), (), ())
    bought, resting = broker.place(BUY), broker.place(RESTING)
    assert isinstance(bought, Placed)
    assert isinstance(resting, Placed)
    at_ns = int(TEN_O_CLOCK_S) * 10**9
    snapshot = broker.snapshot()
    assert snapshot.at_ns == at_ns
    assert [replace(order, message="") for order in snapshot.orders] == [
        OrderReport(bought.broker_id, BUY.tag, FUTURE, LOT, LOT, "filled"),
        OrderReport(resting.broker_id, RESTING.tag, FUTURE, LOT, 0, "open"),
    ]
    assert snapshot.trades == (Trade("1", bought.broker_id, BUY.tag, FUTURE, LOT, PRICE, at_ns),)
    assert snapshot.holdings == (Holding(FUTURE, LOT),)
    assert 0 < snapshot.funds_rupees < empty.funds_rupees


def test_what_was_done_by_hand_has_no_tag_and_what_was_closed_is_flat(emulator: Emulator, broker: FyersBroker) -> None:
    emulator.fault("manual_trade", symbol=FUTURE, units=LOT)
    emulator.fault("manual_trade", symbol=FUTURE, units=-LOT)
    snapshot = broker.snapshot()
    assert [(trade.tag, trade.units) for trade in snapshot.trades] == [("", LOT), ("", -LOT)]
    assert {order.tag for order in snapshot.orders} == {""}
    assert snapshot.holdings == (Holding(FUTURE, 0),)


def test_a_partial_fill_that_is_cancelled_is_told_as_such(emulator: Emulator, broker: FyersBroker) -> None:
    emulator.fault("partial_cancel", ratio=0.5)
    broker.place(replace(BUY, units=4 * LOT))
    (order,) = broker.snapshot().orders
    assert (order.status, order.units, order.filled_units) == ("cancelled", 4 * LOT, 2 * LOT)


@pytest.mark.parametrize("part", ["orders", "tradebook", "positions", "funds"])
def test_a_snapshot_is_whole_or_an_error(emulator: Emulator, broker: FyersBroker, part: str) -> None:
    emulator.fault("bad_gateway", route=f"GET /api/v3/{part}")
    with pytest.raises(BrokerError) as refused:
        broker.snapshot()
    assert refused.value.retryable
    broker.snapshot()


def test_after_the_logins_end_a_snapshot_says_so(emulator: Emulator, broker: FyersBroker) -> None:
    emulator.fault("token_expiry")
    with pytest.raises(ConfigError) as refused:
        broker.snapshot()
    assert refused.value.code == "logged_out"


def test_a_cancel_is_a_request_and_never_an_exception(emulator: Emulator, broker: FyersBroker) -> None:
    resting = broker.place(RESTING)
    assert isinstance(resting, Placed)
    for broker_id in (resting.broker_id, resting.broker_id, "26111600009999"):
        broker.cancel(broker_id)
    assert [order.status for order in broker.snapshot().orders] == ["cancelled"]


def test_the_market_is_open_or_closed_by_segment(emulator: Emulator, broker: FyersBroker) -> None:
    emulator.post("market/status", {"status": "CLOSED", "segment": 11})
    assert broker.market_status() == {"cash": "OPEN", "index_futures": "CLOSED"}


ORDER = {"id": "1", "symbol": FUTURE, "side": 1, "qty": 65, "filledQty": 0, "status": 6, "orderTag": "1:HRMX"}
TRADE = {
    "tradeNumber": "7",
    "orderNumber": "1",
    "symbol": FUTURE,
    "side": -1,
    "tradedQty": 65,
    "tradePrice": 26_000.05,
    "orderDateTime": "16-Nov-2026 10:00:00",
    "orderTag": "2:Untagged",
}


@pytest.mark.parametrize(
    ("status", "said"),
    [(1, "cancelled"), (2, "filled"), (3, "open"), (4, "open"), (5, "rejected"), (6, "open"), (7, "cancelled")],
)
def test_each_status_of_the_broker_is_one_of_ours(status: int, said: str) -> None:
    assert rows.order_report(ORDER | {"status": status}).status == said


@pytest.mark.parametrize(
    ("told", "tag"),
    [("1:HRMX", "HRMX"), ("HRMX", "HRMX"), ("2:Untagged", ""), ("", ""), (None, ""), ("1:mine", "mine")],
)
def test_a_tag_is_what_was_given_or_none(told: object, tag: str) -> None:
    assert rows.order_report(ORDER | {"orderTag": told}).tag == tag


def test_numbers_as_text_are_numbers_and_a_trade_has_its_time_in_india() -> None:
    trade = rows.trade(TRADE | {"tradeNumber": 7, "tradedQty": "65", "tradePrice": "26000.05"})
    assert trade == Trade("7", "1", "", FUTURE, -65, 26_000.05, int(TEN_O_CLOCK_S) * 10**9)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        *((ORDER, wrong) for wrong in ({"status": 9}, {"side": 0}, {"qty": 0}, {"qty": 1.5}, {"filledQty": -1})),
        *((ORDER, wrong) for wrong in ({"id": ""}, {"id": None}, {"symbol": ""}, {"status": None})),
        *((TRADE, wrong) for wrong in ({"tradePrice": 0}, {"tradePrice": float("nan")}, {"tradePrice": None})),
        *((TRADE, wrong) for wrong in ({"tradedQty": 0}, {"orderDateTime": "yesterday"}, {"tradeNumber": None})),
    ],
)
def test_a_row_that_cannot_be_read_makes_the_whole_answer_worthless(row: dict[str, Any], wrong: dict[str, Any]) -> None:
    book = "orderBook" if row is ORDER else "tradeBook"
    read = rows.order_reports if row is ORDER else rows.trades
    assert len(read({book: [row]})) == 1
    with pytest.raises(BrokerError) as refused:
        read({book: [row, row | wrong]})
    assert (refused.value.code, refused.value.retryable) == ("malformed", True)


@pytest.mark.parametrize(
    "body", [{}, {"orderBook": None}, {"orderBook": {}}, {"orderBook": [None]}, {"orderBook": [7]}]
)
def test_a_book_that_is_no_list_is_not_an_empty_book(body: dict[str, Any]) -> None:
    with pytest.raises(BrokerError):
        rows.order_reports(body)


def test_funds_without_an_available_balance_are_not_zero() -> None:
    assert rows.free_rupees({"fund_limit": [{"id": 10, "equityAmount": 5.5}]}) == 5.5
    for body in ({"fund_limit": []}, {"fund_limit": [{"id": 10, "equityAmount": float("nan")}]}):
        with pytest.raises(BrokerError):
            rows.free_rupees(body)


def test_positions_of_all_products_are_one_holding() -> None:
    held = [{"symbol": FUTURE, "netQty": 130}, {"symbol": FUTURE, "netQty": -65}, {"symbol": "NSE:X-EQ", "netQty": 1}]
    assert rows.holdings({"netPositions": held}) == (Holding(FUTURE, 65), Holding("NSE:X-EQ", 1))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(ORDER)), st.sampled_from(sorted(TRADE)), ANYTHING)
def test_whatever_stands_in_a_field_a_row_is_read_or_refused(of_order: str, of_trade: str, value: object) -> None:
    for read, row in ((rows.order_report, ORDER | {of_order: value}), (rows.trade, TRADE | {of_trade: value})):
        try:
            read(row)
        except BrokerError as refused:
            assert refused.code == "malformed"


@contextmanager
def saying(status: int, body: bytes, length: int | None = None) -> Iterator[str]:
    """A broker with one answer: for what the emulator never says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"s": "ok", "code": 1101, "id": "26111600000001"}', Placed),
        (200, b'{"s": "ok", "code": 1101}', Unknown),
        (200, b'{"s": "ok", "code": 1101, "id": ""}', Unknown),
        (200, b'{"s": "ok", "code": 201, "id": "1"}', Unknown),
        (202, b'{"s": "ok", "code": 1101, "id": "1"}', Unknown),
        (200, b"[]", Unknown),
        (200, b"", Unknown),
        (200, b'{"s": "error", "code": -99, "message": "RED"}', Declined),
        (400, b'{"s": "error", "code": -99, "message": "RED"}', Declined),
        (400, b'{"s": "error", "code": -99, "message": "RED", "id": "1"}', Unknown),  # it is in the books
        (400, b'{"s": "error", "code": "-99"}', Unknown),
        (400, b'{"s": "error"}', Unknown),
        (400, b"<html>bad request</html>", Unknown),
        (408, b'{"s": "error", "code": -99}', Unknown),
        (429, b'{"s": "error", "code": 429}', Declined),
        (500, b'{"s": "error", "code": -99}', Unknown),
        (504, b'{"s": "error", "code": -99}', Unknown),
        (302, b'{"s": "error", "code": -99}', Unknown),
    ],
)
def test_only_the_servers_own_word_makes_an_outcome_certain(
    access: Access, status: int, body: bytes, outcome: type
) -> None:
    with saying(status, body) as url:
        broker = FyersBroker(elsewhere(access, url))
        assert isinstance(broker.place(BUY), outcome)
        broker.close()


def test_an_answer_that_is_cut_off_is_no_answer(access: Access) -> None:
    body = b'{"s": "ok", "code": 1101, "id": "26111600000001"}'
    with saying(200, body, length=len(body) + 10) as url:
        broker = FyersBroker(elsewhere(access, url))
        assert isinstance(broker.place(BUY), Unknown)
        broker.close()
