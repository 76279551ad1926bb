"""The emulated REST API as the broker's real SDK sees it, and what its faults look like from there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fyers_sdk import client, eventually, point_at

from tests.fyers_emulator.process import CLIENT_ID, SECRET, Emulator, EmulatorError, running
from trading.calendar import KOLKATA

INDEX = "NSE:NIFTY50-INDEX"
FUTURE = "NSE:NIFTY26NOVFUT"
NINE_THIRTY = datetime(2026, 11, 20, 9, 30, tzinfo=KOLKATA).timestamp()  # a Friday
LOT = 65
TAG = "HRMABCDEFGH"


@pytest.fixture(scope="module")
def one() -> Iterator[Emulator]:
    with running() as emulator:
        yield emulator


@pytest.fixture
def emulator(one: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """On a Friday at half past nine, with NIFTY at 26,000."""
    point_at(one, monkeypatch)
    one.reset()
    one.clock(now=NINE_THIRTY, speed=0.0)
    one.ticks({INDEX: 26_000.0})
    return one


@pytest.fixture
def fyers(emulator: Emulator) -> Iterator[Any]:
    with client(emulator.login()) as made:
        yield made


def order(**changes: Any) -> dict[str, Any]:
    usual = {"symbol": FUTURE, "qty": LOT, "type": 1, "side": 1, "productType": "INTRADAY", "limitPrice": 26_010.0}
    rest = {"stopPrice": 0, "validity": "DAY", "disclosedQty": 0, "offlineOrder": False, "orderTag": TAG}
    return usual | rest | changes


def placed(fyers: Any, **changes: Any) -> dict[str, Any]:
    return dict(fyers.place_order(data=order(**changes)))  # the SDK's error answers are one shared object


def tags(emulator: Emulator) -> list[str]:
    return [each["tag"] for each in emulator.book()["orders"]]


# login


def test_the_sdk_logs_in_by_redirect_and_code(emulator: Emulator) -> None:
    from fyers_apiv3.fyersModel import SessionModel

    back = f"{emulator.url}/emulator/redirected"
    session = SessionModel(CLIENT_ID, back, "code", state="s1", secret_key=SECRET, grant_type="authorization_code")
    sent = httpx.get(session.generate_authcode()).headers["location"]
    query = parse_qs(urlsplit(sent).query)
    assert sent.startswith(back)
    assert query["state"] == ["s1"]
    session.set_token(query["auth_code"][0])
    answer = session.generate_token()
    with client(answer["access_token"]) as fyers:
        assert fyers.get_profile()["s"] == "ok"
        assert session.generate_token()["code"] == -437  # a code is used once
        assert fyers.logout()["s"] == "ok"
        assert fyers.get_profile()["code"] == -15
    session.secret_key = "another"
    assert session.generate_token()["code"] == -371


@pytest.mark.parametrize(
    ("authorization", "code"),
    [(None, -16), ("nonsense", -16), (f"{CLIENT_ID}:e30.e30.x", -15), ("OTHER-100:x", -352), ("expired", -8)],
)
def test_every_call_needs_a_token_that_lives(emulator: Emulator, authorization: str | None, code: int) -> None:
    expired = f"{CLIENT_ID}:{emulator.login(expires_in_s=-10)}"
    sent = {} if authorization is None else {"Authorization": expired if authorization == "expired" else authorization}
    for method, path in [
        ("GET", "/api/v3/profile"),
        ("GET", "/api/v3/orders"),
        ("POST", "/api/v3/orders/sync"),
        ("DELETE", "/api/v3/positions"),
        ("GET", "/data/history"),
        ("GET", "/data/marketStatus"),
    ]:
        answer = httpx.request(method, emulator.url + path, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (401, code), path


# orders


def test_a_marketable_order_fills_at_the_last_price_and_is_in_every_book(fyers: Any) -> None:
    answer = placed(fyers)
    assert (answer["s"], answer["code"], answer["id"]) == ("ok", 1101, "26112000000001")
    (booked,) = fyers.orderbook()["orderBook"]
    assert (booked["status"], booked["filledQty"], booked["tradedPrice"]) == (2, LOT, 26_000.0)
    assert booked["orderTag"] == f"1:{TAG}"
    assert booked["orderDateTime"] == "20-Nov-2026 09:30:00"
    (trade,) = fyers.tradebook()["tradeBook"]
    assert (trade["orderNumber"], trade["tradedQty"], trade["orderTag"]) == (answer["id"], LOT, f"1:{TAG}")
    positions = fyers.positions()
    assert positions["netPositions"][0]["id"] == f"{FUTURE}-INTRADAY"
    assert (positions["netPositions"][0]["netQty"], positions["overall"]["count_open"]) == (LOT, 1)
    funds = {row["title"]: row["equityAmount"] for row in fyers.funds()["fund_limit"]}
    assert funds["Utilized Amount"] == pytest.approx(LOT * 26_000.0 * 0.15)
    assert fyers.get_orders({"id": answer["id"]})["orderBook"] == [booked]


def test_a_limit_away_from_the_market_waits_for_its_price(emulator: Emulator, fyers: Any) -> None:
    first = placed(fyers, limitPrice=25_990.0)["id"]
    assert fyers.orderbook()["orderBook"][0]["status"] == 6
    assert emulator.ticks({INDEX: 25_995.0})["filled"] == 0
    assert emulator.ticks({INDEX: 25_985.0})["filled"] == 1
    assert fyers.tradebook()["tradeBook"][0]["tradePrice"] == 25_985.0
    assert fyers.cancel_order(data={"id": first})["code"] == -52


def test_an_order_is_changed_and_cancelled(emulator: Emulator, fyers: Any) -> None:
    first, second = (placed(fyers, limitPrice=25_000.0)["id"] for _ in range(2))
    assert fyers.modify_order(data={"id": first, "type": 1, "limitPrice": 26_005.0})["code"] == 1102
    assert fyers.cancel_order(data={"id": second})["code"] == 1103
    assert [each["status"] for each in emulator.book()["orders"]] == ["filled", "cancelled"]
    assert fyers.cancel_order(data={"id": "1"})["code"] == -51


def test_positions_are_closed_one_by_one_and_all_together(emulator: Emulator, fyers: Any) -> None:
    placed(fyers)
    assert fyers.exit_positions(data={"id": ["NSE:OTHER-INTRADAY"]})["code"] == -53
    assert fyers.exit_positions(data={"id": [f"{FUTURE}-INTRADAY"]})["s"] == "ok"
    assert emulator.book()["positions"][0]["units"] == 0
    assert fyers.exit_positions(data={})["code"] == -352


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"symbol": "NSE:NOWHERE-EQ"}, -300),
        ({"symbol": INDEX}, -99),
        ({"qty": LOT - 1}, -50),
        ({"qty": 0}, -50),
        ({"qty": 30 * LOT}, -50),  # above the freeze quantity
        ({"limitPrice": 26_000.03}, -50),
        ({"limitPrice": 0}, -50),
        ({"limitPrice": float("nan")}, -50),
        ({"side": 2}, -50),
        ({"type": 9}, -50),
        ({"orderTag": "no spaces"}, -50),
        ({"orderTag": "x" * 31}, -50),
        ({"validity": "GTC"}, -50),
    ],
)
def test_what_is_no_order_is_refused_and_not_in_the_book(
    emulator: Emulator, fyers: Any, changes: dict[str, Any], code: int
) -> None:
    assert placed(fyers, **changes)["code"] == code
    assert emulator.book()["orders"] == []


def test_without_margin_an_order_is_accepted_and_then_rejected(emulator: Emulator, fyers: Any) -> None:
    placed(fyers)
    emulator.fault("exhausted_funds")
    assert placed(fyers)["code"] == 1101
    rejected = fyers.orderbook()["orderBook"][1]
    assert rejected["status"] == 5
    assert rejected["message"].startswith("RED:Margin Shortfall")
    assert placed(fyers, side=-1, limitPrice=25_990.0)["s"] == "ok"  # closing needs none
    assert emulator.book()["positions"][0]["units"] == 0


def test_a_tag_that_was_there_before_is_accepted_again(emulator: Emulator, fyers: Any) -> None:
    placed(fyers), placed(fyers)
    assert tags(emulator) == [TAG, TAG]


def test_rules_fill_later_and_in_parts(emulator: Emulator, fyers: Any) -> None:
    emulator.rules(fill="next_tick", units_per_fill=LOT)
    placed(fyers, qty=2 * LOT)
    assert fyers.tradebook()["tradeBook"] == []
    emulator.ticks({INDEX: 26_001.0})
    assert fyers.orderbook()["orderBook"][0]["filledQty"] == LOT
    emulator.ticks({INDEX: 26_002.0})
    assert [trade["tradePrice"] for trade in fyers.tradebook()["tradeBook"]] == [26_001.0, 26_002.0]
    assert fyers.orderbook()["orderBook"][0]["tradedPrice"] == 26_001.5


def test_the_broker_squares_off_and_takes_no_intraday_order_after(emulator: Emulator, fyers: Any) -> None:
    emulator.rules(square_off="15:15")
    placed(fyers)
    waiting = placed(fyers, limitPrice=25_000.0)["id"]
    emulator.ticks({INDEX: 26_000.0}, at=NINE_THIRTY + 6 * 3600)
    book = emulator.book()
    assert book["positions"][0]["units"] == 0
    assert next(each for each in book["orders"] if each["id"] == waiting)["status"] == "cancelled"
    placed(fyers)
    assert emulator.book()["orders"][-1]["status"] == "rejected"


def test_a_trade_made_by_hand_has_no_tag_of_ours(emulator: Emulator, fyers: Any) -> None:
    emulator.post("manual-trade", {"symbol": FUTURE, "units": -LOT})
    assert fyers.tradebook()["tradeBook"][0]["orderTag"] == "2:Untagged"
    assert fyers.positions()["netPositions"][0]["netQty"] == -LOT


# data


def test_history_is_what_was_loaded_and_what_was_traded(emulator: Emulator, fyers: Any) -> None:
    nine_fifteen = int(NINE_THIRTY) - 900
    emulator.history(INDEX, [[nine_fifteen + 60 * i, 10.0 + i, 20.0 + i, 5.0 + i, 11.0 + i, 1] for i in range(5)])
    emulator.ticks({INDEX: 26_100.0}, at=NINE_THIRTY + 61)
    asked = {"symbol": INDEX, "resolution": "5", "date_format": "1", "cont_flag": "1"}
    day = {"range_from": "2026-11-20", "range_to": "2026-11-20"}
    assert fyers.history(data=asked | day)["candles"] == [
        [nine_fifteen, 10.0, 24.0, 5.0, 15.0, 5],
        [int(NINE_THIRTY), 26_000.0, 26_100.0, 26_000.0, 26_100.0, 0],
    ]
    seconds = {"date_format": "0", "range_from": str(nine_fifteen), "range_to": str(nine_fifteen + 599)}
    assert len(fyers.history(data=asked | seconds)["candles"]) == 1
    assert fyers.history(data=asked | {"range_from": "2026-11-01", "range_to": "2026-11-02"})["s"] == "no_data"
    assert fyers.history(data=asked | {"range_from": "2026-01-01", "range_to": "2026-11-02"})["code"] == -50
    assert fyers.history(data=asked | day | {"symbol": "NSE:NOWHERE-EQ"})["code"] == -300


def test_quotes_depth_and_market_status(emulator: Emulator, fyers: Any) -> None:
    known, unknown = fyers.quotes(data={"symbols": f"{FUTURE},NSE:NOWHERE-EQ"})["d"]
    assert (known["n"], known["v"]["lp"]) == (FUTURE, 26_000.0)
    assert unknown["s"] == "error"
    assert fyers.quotes(data={"symbols": ",".join(["NSE:A-EQ"] * 51)})["code"] == -50
    assert fyers.depth(data={"symbol": FUTURE, "ohlcv_flag": "1"})["d"][FUTURE]["ltt"] == int(NINE_THIRTY)
    emulator.post("market/status", {"status": "CLOSED", "segment": 11})
    statuses = {row["segment"]: row["status"] for row in fyers.market_status()["marketStatus"][:2]}
    assert statuses == {10: "OPEN", 11: "CLOSED"}
    placed(fyers)
    assert emulator.book()["orders"][0]["status"] == "rejected"


# faults, as the SDK sees them


def test_a_lost_acknowledgement_leaves_an_order_that_nobody_confirmed(emulator: Emulator, fyers: Any) -> None:
    emulator.fault("lost_ack")
    assert placed(fyers)["code"] == -99
    assert tags(emulator) == [TAG]
    assert placed(fyers, orderTag="NEXT")["code"] == 1101


@pytest.mark.parametrize("kind", ["lost_ack", "hang"])
def test_a_call_that_hangs_is_given_up_by_its_timeout(emulator: Emulator, kind: str) -> None:
    emulator.fault(kind, hang_s=30.0)
    with client(emulator.login(), timeout_s=0.3) as fyers:
        assert placed(fyers)["code"] == -99
    assert tags(emulator) == ([TAG] if kind == "lost_ack" else [])
    emulator.heal()


def test_an_order_that_was_given_up_arrives_all_the_same(emulator: Emulator) -> None:
    emulator.fault("delayed_accept", delay_s=0.6)
    with client(emulator.login(), timeout_s=0.2) as fyers:
        assert placed(fyers)["code"] == -99
    assert tags(emulator) == []
    eventually(lambda: tags(emulator) == [TAG])


@pytest.mark.parametrize("done", [True, False])
def test_a_gateway_that_fails_says_nothing_about_the_order(emulator: Emulator, fyers: Any, done: bool) -> None:
    emulator.fault("bad_gateway", done=done)
    assert placed(fyers)["code"] == 502
    assert tags(emulator) == ([TAG] if done else [])


def test_a_rate_limit_blocks_every_call_for_a_while(emulator: Emulator, fyers: Any) -> None:
    emulator.fault("rate_limited", route="GET /api/v3/funds", block_s=0.4)
    assert fyers.funds()["code"] == -429
    answer = httpx.get(f"{emulator.url}/api/v3/orders")
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) >= 1
    eventually(lambda: fyers.funds()["s"] == "ok")


def test_the_api_counts_calls_when_it_is_told_to(emulator: Emulator, fyers: Any) -> None:
    emulator.rules(rate_limits=True)
    assert {fyers.funds()["code"] for _ in range(30)} == {200, -429}


def test_orders_are_refused_unconfirmed_and_unauthorised_on_demand(emulator: Emulator, fyers: Any) -> None:
    emulator.fault("refused", message="RED:RULE:{no}")
    emulator.fault("unauthorized")
    emulator.fault("no_ack")
    answers = [placed(fyers, orderTag=f"T{i}") for i in range(3)]
    assert [answer["code"] for answer in answers] == [-99, -15, 201]
    assert answers[0]["message"] == "RED:RULE:{no}"
    assert tags(emulator) == ["T2"]


def test_only_the_closing_order_is_rejected(emulator: Emulator, fyers: Any) -> None:
    emulator.fault("rejected", closing=True, message="17070 : not now")
    placed(fyers)
    placed(fyers, side=-1, limitPrice=25_990.0)
    book = emulator.book()
    assert [each["status"] for each in book["orders"]] == ["filled", "rejected"]
    assert book["orders"][1]["message"] == "17070 : not now"
    assert book["positions"][0]["units"] == LOT


def test_a_part_is_filled_and_the_rest_cancelled(emulator: Emulator, fyers: Any) -> None:
    emulator.fault("partial_cancel", ratio=0.5)
    placed(fyers, qty=3 * LOT)
    (ended,) = emulator.book()["orders"]
    assert (ended["status"], ended["filled"]) == ("cancelled", LOT)


def test_tokens_expire_for_everyone_at_once(emulator: Emulator, fyers: Any) -> None:
    emulator.fault("token_expiry")
    assert fyers.funds()["code"] == -8
    with client(emulator.login()) as again:
        assert again.funds()["s"] == "ok"


def test_a_night_empties_the_books_and_starts_ids_anew(emulator: Emulator, fyers: Any) -> None:
    placed(fyers)
    placed(fyers, limitPrice=25_000.0)
    emulator.fault("nightly_reset")
    assert fyers.funds()["code"] == -8
    with client(emulator.login()) as again:
        assert again.orderbook()["orderBook"] == again.positions()["netPositions"] == []
        emulator.ticks({INDEX: 26_100.0})
        assert placed(again, limitPrice=26_110.0)["id"] == "26112300000001"  # a Monday
        assert again.tradebook()["tradeBook"][0]["tradeNumber"] == "1"
    friday = emulator.book("2026-11-20")
    assert [each["status"] for each in friday["orders"]] == ["filled", "cancelled", "filled"]  # the last: squared off
    assert friday["positions"][0]["units"] == 0


def test_the_exchange_tells_a_skewed_time(emulator: Emulator) -> None:
    emulator.fault("clock_skew", skew_s=90.0)
    told = parsedate_to_datetime(httpx.get(f"{emulator.url}/emulator/clock").headers["date"])
    assert told.timestamp() == NINE_THIRTY + 90.0


def test_a_fault_strikes_by_its_seed_as_often_as_it_was_ordered(emulator: Emulator, fyers: Any) -> None:
    def struck() -> list[bool]:
        emulator.fault("refused", count=3, probability=0.5, seed=7, after=1)
        answers = [placed(fyers)["code"] == -99 for _ in range(12)]
        emulator.heal()
        return answers

    first = struck()
    assert (first[0], sum(first)) == (False, 3)
    assert struck() == first


def test_mistakes_of_a_test_are_said_at_once(emulator: Emulator) -> None:
    mistakes: list[tuple[str, dict[str, Any]]] = [
        ("faults", {"kind": "lost_ack", "counts": 2}),
        ("faults", {"kind": "unheard_of"}),
        ("faults", {"kind": "disconnect", "socket": "data"}),
        ("market/ticks", {"ticks": [{"symbol": "NSE:NOWHERE-EQ", "price": 1.0}]}),
        ("market/ticks", {"ticks": [{"symbol": INDEX, "price": -1.0}]}),
        ("clock", {"now": "soon"}),
        ("manual-trade", {"symbol": FUTURE, "units": 0}),
    ]
    for path, body in mistakes:
        with pytest.raises(EmulatorError, match="400"):
            emulator.post(path, body)


def test_a_clock_runs_as_fast_as_it_is_told(emulator: Emulator) -> None:
    emulator.clock(now=NINE_THIRTY, speed=3600.0)
    eventually(lambda: emulator.clock()["now"] > NINE_THIRTY + 600)
    emulator.clock(speed=0.0)
    stood = emulator.clock()["now"]
    time.sleep(0.01)
    assert emulator.clock()["now"] == stood
