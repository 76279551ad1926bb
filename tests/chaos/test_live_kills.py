"""`hrm bench live` in small: a dozen killed desks, and a judge that finds what it is there to find."""

from __future__ import annotations

import copy
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import live
from benchmarks.live_books import all_orders, judged, live_twice
from benchmarks.live_crashes import AROUND, EVENTS, FAULTS, POINTS, kills
from benchmarks.live_decisions import decision
from benchmarks.live_kills import run
from core.errors import ConfigError
from core.settings import load_settings
from trading.broker import Trade, tag_of
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.market import day_of

ROOT = Path(__file__).resolve().parents[2]
AT_NS = 1_795_000_000 * 10**9
DAY = day_of(AT_NS)
FUTURE = "NSE:NIFTY26NOVFUT"


def test_desks_that_are_killed_send_nothing_twice_and_lose_nothing() -> None:
    found = run(12, seed=1)
    assert found["kills"] >= 10  # a login that is over ends a desk before it can be killed
    assert found["wrong"] == []
    assert (found["duplicate_orders"], found["lost_fills"], found["ledger_mismatches"]) == (0, 0, 0)
    assert found["seen"]["orders"] > 0


@pytest.mark.slow
def test_desks_that_are_killed_at_every_point_send_nothing_twice_and_lose_nothing() -> None:
    found = run(6 * len(POINTS), seed=2)
    assert found["wrong"] == []
    assert set(found["at_points"]) == {*POINTS, "instant"}


def test_every_point_in_the_code_is_one_at_which_desks_are_killed() -> None:
    sources = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "trading").rglob("*.py")}
    inside = {point for text in sources.values() for point in re.findall(r'crash_at\("(\w+)"\)', text)}
    told = set(re.findall(r'_tell(?:\(|, )"(\w+)"', sources["live.py"]))
    assert told == set(EVENTS)
    assert set(POINTS) == inside | {f"{around}:{kind}" for around in AROUND for kind in told}
    assert re.findall(r'crash_at\(f"(\w+):\{kind\}"\)', sources["live.py"]) == list(AROUND)


def test_a_plan_has_every_point_every_fault_and_instants() -> None:
    planned = list(kills(2 * len(POINTS), random.Random(0)))
    assert sorted(kill.point for kill in planned if kill.point) == sorted(POINTS)
    assert sum(kill.point is None for kill in planned) == len(POINTS)
    planned = list(kills(20 * len(POINTS), random.Random(0)))
    drawn = [fault for kill in planned for fault in kill.faults]
    assert all(fault in drawn for fault in FAULTS)
    assert planned == list(kills(20 * len(POINTS), random.Random(0)))


@pytest.mark.parametrize(("where", "passed"), [("b", 1), ("b#3", 5), ("a#2", 2), ("b#4", 6), ("c", 6)])
def test_a_process_dies_at_a_point_when_it_is_there_for_the_nth_time(where: str, passed: int) -> None:
    code = "from delivery.crash import crash_at\nfor at in 'ababab':\n    crash_at(at); print(at, flush=True)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"HRM_CRASH_AT": where}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert len(done.stdout.split()) == passed
    assert done.returncode == (0 if passed == 6 else -signal.SIGKILL)


def test_a_part_or_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="losses: unknown; choose from kills"):
        live.run(kills=1, only="losses")
    with pytest.raises(ConfigError, match="is there already"):
        live.run(kills=1, only="kills", keep=tmp_path)


@pytest.mark.parametrize("held", [-1, 0, 1])
def test_the_same_question_has_the_same_answer(held: int) -> None:
    requests = [{"request_id": f"SYNA:{n}", "accounts": {"champion": {"position": held}}} for n in range(50)]
    answers = [decision(request, 65) for request in requests]
    assert answers == [decision(request, 65) for request in requests]
    assert len({answer["action"] for answer in answers}) == 3
    assert {answer["quantity"] % 65 for answer in answers} == {0.0}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Two orders of 65: one is filled, the other was rejected; and a trade by hand."""
    ledger = Ledger(tmp_path / "live.db")
    gateway = OrderGateway(ledger, load_settings(environ={}).trading)
    for name in ("first", "second"):
        gateway.submit(
            Order(name, "NIFTY", 65.0, "champion:ppo/v1", 1, AT_NS, AT_NS, instrument=FUTURE, limit_price=24_100.0)
        )
    gateway.acknowledge("first", "11")
    gateway.book_trade("first", Trade("1", "11", tag_of("first"), FUTURE, 65, 24_000.0, AT_NS), 10.0)
    gateway.reject("second", "not enough funds")
    gateway.foreign(Trade("2", "12", "", FUTURE, 65, 24_000.0, AT_NS), "NIFTY", adopt=False)
    yield ledger
    ledger.close()


@pytest.fixture
def book() -> dict[str, Any]:
    """The same, as the exchange has it."""
    trade = {"number": "1", "order_id": "11", "tag": tag_of("first"), "symbol": FUTURE, "units": 65, "price": 24_000.0}
    order = {"id": "11", "tag": tag_of("first"), "symbol": FUTURE, "units": 65, "filled": 65, "status": "filled"}
    return {
        "orders": [order, order | {"id": "12", "tag": ""}],
        "trades": [trade, trade | {"number": "2", "order_id": "12", "tag": ""}],
        "positions": [{"symbol": FUTURE, "units": 130}],
    }


def test_what_both_have_is_clean(ledger: Ledger, book: dict[str, Any]) -> None:
    assert judged(ledger, book, DAY).clean


def test_a_second_order_with_a_tag_is_a_duplicate(ledger: Ledger, book: dict[str, Any]) -> None:
    book["orders"].append(book["orders"][0] | {"id": "13", "filled": 0, "status": "cancelled"})
    assert judged(ledger, book, DAY).duplicate_orders == [f"2 orders with the tag {tag_of('first')}"]


def test_two_slices_of_an_intent_may_not_be_open_at_once(ledger: Ledger, book: dict[str, Any]) -> None:
    gateway = OrderGateway(ledger, load_settings(environ={}).trading)
    gateway.submit(Order("first/2", "NIFTY", 65.0, "champion:ppo/v1", 1, AT_NS, AT_NS, instrument=FUTURE))
    book["orders"] = [
        book["orders"][0] | {"id": str(at), "tag": tag_of(name), "status": "open"}
        for at, name in enumerate(("first", "second", "first/2"))
    ]
    assert live_twice(all_orders(ledger), book) == ["2 open orders of first"]


def test_a_trade_that_the_ledger_lacks_is_lost(ledger: Ledger, book: dict[str, Any]) -> None:
    book["trades"].append(book["trades"][0] | {"number": "3"})
    assert len(judged(ledger, book, DAY).lost_fills) == 1
    book["trades"].append(book["trades"][0] | {"number": "4", "tag": tag_of("third")})  # of no order that it knows
    book["trades"].append(book["trades"][1] | {"number": "5"})  # by hand
    assert len(judged(ledger, book, DAY).lost_fills) == 3


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("trades", {"price": 24_000.05}, "booked, and not there"),
        ("orders", {"filled": 0}, "0 units are filled there, 65.0 here"),
        ("orders", {"status": "open"}, "open there, and filled here"),
        ("orders", {"id": "99"}, "the exchange has no order 11"),
        ("orders", {"tag": tag_of("third")}, "does not know"),
        ("positions", {"units": 65}, "65 held there, 130.0 here"),
    ],
)
def test_what_is_otherwise_at_the_exchange_is_told(
    ledger: Ledger, book: dict[str, Any], table: str, change: dict[str, Any], what: str
) -> None:
    other = copy.deepcopy(book)
    other[table][0] |= change
    assert any(what in text for text in judged(ledger, other, DAY).ledger_mismatches)


def test_an_order_that_has_not_ended_is_told(ledger: Ledger, book: dict[str, Any]) -> None:
    gateway = OrderGateway(ledger, load_settings(environ={}).trading)
    gateway.submit(Order("third", "NIFTY", 65.0, "champion:ppo/v1", 1, AT_NS, AT_NS, instrument=FUTURE))
    assert judged(ledger, book, DAY).ledger_mismatches == ["third is open here, and [] there"]
