"""The emulated sockets as the broker's real SDK hears them, and their faults."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import websocket
from fyers_sdk import Told, client, data_socket, eventually, order_socket, point_at

from tests.fyers_emulator import hsm
from tests.fyers_emulator.process import Emulator, running
from trading.calendar import KOLKATA

# The SDK's thread that pings does not look whether its socket was closed meanwhile.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception in thread .*__ping:pytest.PytestUnhandledThreadExceptionWarning"
)

INDEX, BANK = "NSE:NIFTY50-INDEX", "NSE:NIFTYBANK-INDEX"
FUTURE = "NSE:NIFTY26NOVFUT"
NINE_THIRTY = datetime(2026, 11, 20, 9, 30, tzinfo=KOLKATA).timestamp()
LOT = 65


@pytest.fixture(scope="module")
def one() -> Iterator[Emulator]:
    with running() as emulator:
        yield emulator


@pytest.fixture
def emulator(one: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    point_at(one, monkeypatch)
    one.reset()
    one.clock(now=NINE_THIRTY, speed=0.0)
    one.ticks({INDEX: 26_000.0})
    return one


def prices(told: Told, symbol: str = INDEX) -> list[float]:
    return [message["ltp"] for message in told.of(symbol=symbol) if "ltp" in message]


def prices_at(told: Told) -> list[tuple[float, float]]:
    """Of the index, with the seconds after 9:30."""
    return [(message["ltp"], message["exch_feed_time"] - NINE_THIRTY) for message in told.of(symbol=INDEX)]


def tick(emulator: Emulator, told: Told, price: float, after_s: float) -> None:
    """One price, and wait until it was heard."""
    emulator.ticks({INDEX: price}, at=NINE_THIRTY + after_s)
    eventually(lambda: prices(told)[-1:] == [price], f"{price} was not heard: {told.messages[-3:]} {told.errors}")


def buy(emulator: Emulator, token: str, **changes: Any) -> None:
    body = {"symbol": FUTURE, "qty": LOT, "type": 2, "side": 1, "productType": "INTRADAY", "validity": "DAY"}
    answer = httpx.post(
        f"{emulator.url}/api/v3/orders/sync",
        json=body | {"orderTag": "HRM1"} | changes,
        headers={"Authorization": f"{emulator.client_id}:{token}"},
    )
    assert answer.json()["code"] == 1101


def heard(told: Told) -> list[tuple[str, Any]]:
    """Of orders their status, of trades their number, of positions the units, in the order they came."""
    names = {"orders": "status", "trades": "tradeNumber", "positions": "netQty"}
    return [
        (topic, message[topic][name])
        for message in list(told.messages)
        if isinstance(message, dict)
        for topic, name in names.items()
        if topic in message
    ]


ONE_FILL = [("orders", 6), ("trades", "1"), ("positions", LOT), ("orders", 2)]


# data


def test_a_snapshot_comes_first_and_then_what_changes(emulator: Emulator) -> None:
    with data_socket(emulator, emulator.login(), INDEX, FUTURE, "NSE:NOWHERE-EQ") as told:
        eventually(lambda: prices(told) and prices(told, FUTURE))
        first = told.of(symbol=INDEX)[0]
        assert (first["type"], first["prev_close_price"], first["exch_feed_time"]) == ("if", 26_000.0, NINE_THIRTY)
        assert told.of(symbol=FUTURE)[0]["type"] == "sf"
        assert any(error.get("invalid_symbols") == ["NSE:NOWHERE-EQ"] for error in told.errors)
        tick(emulator, told, 26_010.0, 1)
        tick(emulator, told, 25_990.0, 2)
        last = told.of(symbol=INDEX)[-1]
        assert (last["high_price"], last["low_price"], last["open_price"]) == (26_010.0, 25_990.0, 26_000.0)
        assert last["exch_feed_time"] == NINE_THIRTY + 2
        eventually(lambda: prices(told, FUTURE) == [26_000.0, 26_010.0, 25_990.0])
        assert emulator.get("sockets")["subscribed"] == [FUTURE, INDEX]


def test_what_a_test_lists_follows_its_index(emulator: Emulator) -> None:
    index, share = "NSE:SYN01-INDEX", "NSE:SYN01-EQ"
    emulator.list(index)
    emulator.list(share, lot=5, tick=0.05)
    emulator.follow({share: {"index": index, "basis": 12.5}})
    with data_socket(emulator, emulator.login(), index, share) as told:
        eventually(lambda: len(told.of(type="sub")) == 1)
        emulator.ticks({index: 1_000.0}, at=NINE_THIRTY + 1)
        eventually(lambda: prices(told, share) == [1_012.5] and prices(told, index) == [1_000.0])
    token = emulator.login()
    buy(emulator, token, symbol=share, qty=5)
    assert emulator.book()["trades"][0]["price"] == 1_012.5


def test_the_sdk_acknowledges_so_many_frames(emulator: Emulator) -> None:
    with data_socket(emulator, emulator.login(), INDEX) as told:
        eventually(lambda: prices(told))
        for i in range(1, 2 * hsm.ACKNOWLEDGE_EVERY):
            emulator.ticks({INDEX: 26_000.0 + i}, at=NINE_THIRTY + i)
        eventually(lambda: len(prices(told)) == 2 * hsm.ACKNOWLEDGE_EVERY)
        assert emulator.get("log")["requests"] == [r for r in emulator.get("log")["requests"] if r["note"] == "call"]


def test_lite_mode_and_depth(emulator: Emulator) -> None:
    with data_socket(emulator, emulator.login(), INDEX, litemode=True) as told:
        eventually(lambda: prices(told))
        tick(emulator, told, 26_010.0, 1)
        assert set(told.of(symbol=INDEX)[-1]) == {"ltp", "symbol", "type"}
    with data_socket(emulator, emulator.login(), FUTURE, data_type="DepthUpdate") as told:
        book = eventually(lambda: told.of(symbol=FUTURE))[0]
        assert (book["bid_price1"], book["ask_price1"]) == (26_009.9, 26_010.1)


@pytest.mark.parametrize(
    "how", ["zero", "negative", "outlier", "future", "past", "sentinel", "truncated", "unknown_symbol"]
)
def test_a_malformed_tick_comes_before_the_true_one(emulator: Emulator, how: str) -> None:
    with data_socket(emulator, emulator.login(), INDEX) as told:
        eventually(lambda: prices(told))
        emulator.fault("malformed_tick", how=how)
        emulator.ticks({INDEX: 26_010.0}, at=NINE_THIRTY + 1)
        true = (26_010.0, 1.0)  # a malformed one can have its price, at another time
        between = eventually(lambda: (ticks := prices_at(told))[-1:] == [true] and ticks)[1:-1]
        expected = {
            "zero": [(0.0, 1.0)],
            "negative": [(-26_010.0, 1.0)],
            "outlier": [(52_020.0, 1.0)],
            "future": [(26_010.0, 3601.0)],
            "past": [(26_010.0, -3599.0)],
            "sentinel": [(26_000.0, 1.0)],  # the SDK keeps the price it had
        }
        assert between == expected.get(how, [])  # the rest it swallows
        assert not told.of(symbol="GHOST")


def test_a_truncated_snapshot_silences_the_sdk_until_it_connects_anew(emulator: Emulator) -> None:
    with data_socket(emulator, emulator.login(), INDEX) as told:
        eventually(lambda: prices(told))
        emulator.fault("malformed_tick", how="truncated_snapshot")
        for i in range(3):
            emulator.ticks({INDEX: 26_010.0 + i}, at=NINE_THIRTY + 1 + i)
        emulator.fault("disconnect", sockets=["data"])
        eventually(lambda: len(told.of(type="sub")) == 2)
        eventually(lambda: prices(told) == [26_000.0, 26_012.0])


def test_quotes_are_malformed_too(emulator: Emulator) -> None:
    with client(emulator.login()) as fyers:
        for how, price in [("zero", 0), ("text", "n/a"), ("null", None)]:
            emulator.fault("malformed_tick", how=how, where="quotes")
            assert fyers.quotes(data={"symbols": INDEX})["d"][0]["v"]["lp"] == price
        assert fyers.quotes(data={"symbols": INDEX})["d"][0]["v"]["lp"] == 26_000.0


def test_a_feed_that_stalls_says_nothing_and_stays_connected(emulator: Emulator) -> None:
    with data_socket(emulator, emulator.login(), INDEX) as told:
        eventually(lambda: prices(told))
        emulator.fault("stalled_feed", count=2, symbol=INDEX)
        emulator.ticks({INDEX: 26_001.0}, at=NINE_THIRTY + 1)
        emulator.ticks({INDEX: 26_002.0}, at=NINE_THIRTY + 2)
        tick(emulator, told, 26_003.0, 3)
        assert prices(told) == [26_000.0, 26_003.0]
        assert emulator.get("sockets")["data"] == 1


def test_the_sdk_comes_back_after_a_disconnect_and_subscribes_again(emulator: Emulator) -> None:
    token = emulator.login()
    with data_socket(emulator, token, INDEX) as told, order_socket(emulator, token) as orders:
        eventually(lambda: prices(told))
        emulator.fault("disconnect")
        eventually(lambda: len(told.of(type="sub")) == 2, "the data socket did not come back")
        eventually(lambda: len(orders.of(code=1605)) == 2, "the order socket did not come back")
        tick(emulator, told, 26_010.0, 1)
        buy(emulator, token)
        eventually(lambda: heard(orders) == ONE_FILL)


def test_a_token_that_has_expired_opens_no_socket(emulator: Emulator) -> None:
    token = emulator.login()
    emulator.fault("token_expiry")
    with data_socket(emulator, token) as told:
        eventually(lambda: told.errors)
        assert told.errors[0]["code"] == 11001
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(
            emulator.url.replace("http", "ws") + "/trade", header={"authorization": f"{emulator.client_id}:{token}"}
        )


# orders


def test_an_order_is_told_from_its_acceptance_to_its_fill(emulator: Emulator) -> None:
    token = emulator.login()
    with order_socket(emulator, token) as told:
        buy(emulator, token)
        eventually(lambda: len(heard(told)) == 4)
        assert heard(told) == ONE_FILL
        first = next(message["orders"] for message in told.messages if "orders" in message)
        trade = next(message["trades"] for message in told.messages if "trades" in message)
    assert (first["orderTag"], first["qty"], first["filledQty"], first["side"]) == ("1:HRM1", LOT, 0, 1)
    assert (trade["orderNumber"], trade["tradedQty"], trade["tradePrice"]) == (first["id"], LOT, 26_000.0)
    assert trade["orderTag"] == "1:HRM1"


def test_a_rejection_is_told(emulator: Emulator) -> None:
    token = emulator.login()
    emulator.fault("rejected", message="17070 : not now")
    with order_socket(emulator, token) as told:
        buy(emulator, token)
        eventually(lambda: heard(told) == [("orders", 5)])


@pytest.mark.parametrize(
    ("kind", "of", "expected"),
    [
        ("drop_update", "trades", [("orders", 6), ("positions", LOT), ("orders", 2)]),
        ("duplicate_update", "trades", [ONE_FILL[0], ONE_FILL[1], ONE_FILL[1], *ONE_FILL[2:]]),
        ("reorder_update", "trades", [("orders", 6), ("positions", LOT), ("trades", "1"), ("orders", 2)]),
        ("reorder_update", "orders", [("trades", "1"), ("orders", 6), ("positions", LOT), ("orders", 2)]),
    ],
)
def test_updates_are_lost_told_twice_and_out_of_order(
    emulator: Emulator, kind: str, of: str, expected: list[tuple[str, Any]]
) -> None:
    token = emulator.login()
    emulator.fault(kind, of=of)
    with order_socket(emulator, token) as told:
        buy(emulator, token)
        eventually(lambda: heard(told)[-1:] == [("orders", 2)])
        assert heard(told) == expected


def test_the_last_update_held_back_comes_after_a_while(emulator: Emulator) -> None:
    token = emulator.login()
    emulator.fault("reorder_update", of="orders", after=1, delay_s=0.2)
    with order_socket(emulator, token) as told:
        buy(emulator, token)
        eventually(lambda: heard(told) == ONE_FILL)


def test_a_disconnect_after_the_acceptance_loses_what_would_have_been_told(emulator: Emulator) -> None:
    token = emulator.login()
    emulator.fault("disconnect_on_order", sockets=["orders"])
    with order_socket(emulator, token) as told:
        buy(emulator, token)
        eventually(lambda: len(told.of(code=1605)) == 2)
        assert heard(told) == []
        assert emulator.book()["orders"][0]["status"] == "filled"
