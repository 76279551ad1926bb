"""A person's hands on the command line: stop, resume, look. Without a service, and whatever anybody typed before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Said

from core.settings import load_settings
from flows.trade_screen import status_screen
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.market import day_of
from trading.ownership import Owner
from trading.status import status, today
from trading.switch import FILE, KILL, engage, read

OWNER = str(Owner("champion", "hrm/v1"))
NIGHT_NS = 24 * 3600 * 10**9


Trade = Callable[..., dict[str, Any]]


@pytest.fixture
def trade(hrm: Callable[..., Said]) -> Trade:
    """`hrm trade ... --json`: what it says, and how it ended."""

    def run(state: Path, *arguments: str) -> dict[str, Any]:
        answer = hrm("trade", *arguments, "--json", state=state)
        return answer.json | {"exit_code": answer.code}

    return run


def test_a_kill_needs_no_service_and_a_resume_says_what_it_lifted(
    tmp_path: Path, trade: Trade, hrm: Callable[..., Said]
) -> None:
    killed = trade(tmp_path, "kill", "--reason", "prices of [/yesterday]")
    assert (killed["exit_code"], killed["state"], killed["state_dir"]) == (0, "halted", str(tmp_path))
    stands = read(tmp_path)
    assert (stands.state, stands.reason) == ("halted", "prices of [/yesterday]")
    assert "(hrm trade)" in stands.by
    shown = hrm("trade", "status", state=tmp_path)
    assert (shown.code, "HALTED" in shown.out, "[/yesterday]" in shown.out) == (0, True, True)
    resumed = trade(tmp_path, "resume", "--reason", "fixed")
    assert (resumed["exit_code"], resumed["state"], resumed["lifted"]["reason"]) == (0, "active", stands.reason)
    assert read(tmp_path).state == "active"


def test_a_kill_that_closes_never_weakens_a_halt_and_says_what_would(tmp_path: Path, trade: Trade) -> None:
    closing = trade(tmp_path, "kill", "--flatten")
    assert (closing["state"], closing["flatten"]) == ("reducing", True)
    (tmp_path / KILL).touch()
    refused = trade(tmp_path, "kill", "--flatten")
    assert (refused["exit_code"], refused["error"]["code"]) == (2, "halted")
    assert "resume --flatten" in refused["error"]["message"]
    assert read(tmp_path).state == "halted"
    resumed = trade(tmp_path, "resume", "--flatten", "--reason", "close it")
    assert (resumed["state"], resumed["flatten"], resumed["lifted"]["by"]) == ("reducing", True, KILL)


def test_a_table_shows_what_anybody_typed_as_it_is(tmp_path: Path, hrm: Callable[..., Said]) -> None:
    answer = hrm("trade", "kill", "--reason", "see [/red] and [bold]", state=tmp_path)
    assert answer.code == 0, answer.err
    assert "see [/red] and [bold]" in answer.out


def test_where_nothing_trades_a_kill_does_not_pretend_to_stop_it(tmp_path: Path, trade: Trade) -> None:
    for command in (("kill",), ("resume", "--reason", "x"), ("status",)):
        answer = trade(tmp_path / "mistyped", *command)
        assert (answer["exit_code"], answer["error"]["code"]) == (2, "no_state")
    assert not (tmp_path / "mistyped").exists()


def test_a_resume_without_a_reason_is_refused(tmp_path: Path, trade: Trade) -> None:
    engage(tmp_path, "halted", "asha", "")
    assert trade(tmp_path, "resume")["error"]["code"] == "usage"
    assert trade(tmp_path, "resume", "--reason", " ")["error"]["code"] == "reason_missing"
    assert read(tmp_path).state == "halted"


@pytest.fixture
def traded(tmp_path: Path) -> Path:
    """Two ledgers: yesterday's position with today's profit on it and an open order; one that is no ledger."""
    settings = load_settings(preset="compact", environ={})
    ledger, now = Ledger(tmp_path / "live-paper.db"), time.time_ns()
    gateway = OrderGateway(ledger, settings.trading)
    for number, (units, price, at_ns) in enumerate(((130.0, 100.0, now - NIGHT_NS), (-65.0, 103.0, now))):
        gateway.submit(Order(str(number), "NIFTY", units, OWNER, epoch=1, at_ns=at_ns, bar_ns=at_ns))
        gateway.fill(str(number), price, 10.0, at_ns)
    gateway.submit(Order("open", "NIFTY", -65.0, OWNER, 1, now, now, instrument="NSE:X", limit_price=99.5))
    ledger.close()
    (tmp_path / "live.db").write_bytes(b"no database at all" * 100)
    return tmp_path


def test_the_status_tells_positions_open_orders_and_what_today_earned(traded: Path) -> None:
    found = status(traded, today())
    account = found["ledgers"]["live-paper.db"]
    assert account["today"] == {"realised_rupees": 65.0 * 3.0 - 10.0, "costs_rupees": 10.0, "fills": 1}
    assert [(row["symbol"], row["units"], row["average_price"]) for row in account["positions"]] == [
        ("NIFTY", 65.0, 100.0)
    ]
    assert [(row["order_id"], row["open_units"], row["limit_price"]) for row in account["open_orders"]] == [
        ("open", -65.0, 99.5)
    ]
    assert account["positions"][0]["open_rupees"] is None, "no price is on record"
    assert "not usable" in found["ledgers"]["live.db"]["problem"]
    assert set(found["ledgers"]) == {"live-paper.db", "live.db"}
    assert found["switch"]["state"] == "active"


def test_open_profit_is_at_the_last_prices_that_the_desk_was_told(traded: Path) -> None:
    from trading.events import EventLog, clock_body

    ledger = Ledger(traded / "live-paper.db")
    log = EventLog(ledger)
    for price in (90.0, 104.0):
        log.append("clock", clock_body({"NIFTY": (price, 1_700_000_000 * 10**9)}, None), at_ns=1)
    ledger.close()
    (row,) = status(traded, today())["ledgers"]["live-paper.db"]["positions"]
    assert (row["open_rupees"], row["price"], row["priced_at"]) == (260.0, 104.0, "2023-11-14T22:13:20+00:00")


def test_the_command_tells_the_same_as_json_and_on_a_screen(
    traded: Path, trade: Trade, hrm: Callable[..., Said]
) -> None:
    found = trade(traded, "status")
    assert found.pop("exit_code") == 0
    assert set(found) == {"switch", "day", "ledgers"}
    json.dumps(found, allow_nan=False)
    shown = hrm("trade", "status", state=traded, COLUMNS="200").out
    for said in ("ACTIVE", "+185.00 rupees realised", "NSE:X", "not acknowledged", "no price", "not usable"):
        assert said in shown


def test_the_screen_takes_a_status_of_nothing(tmp_path: Path) -> None:
    assert status_screen(status(tmp_path, day_of(0))) is not None
    (tmp_path / FILE).write_text("{")
    assert status(tmp_path, day_of(0))["switch"]["since"] is None
