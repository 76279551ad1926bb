"""Sources of the stream: what is durable is told, once, in order, from the beginning of the watch on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from live_clients import decided
from test_backend_app import settings_of

from backend.tail import RolloutTail, ServiceTail, SwitchTail, Tail
from backend.tail_ledgers import LedgerTail
from backend.tail_records import MOST_A_LOOK, RecordTail
from core.errors import BrokerError
from core.settings import Settings
from delivery.state_database import place_of
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.drill_models import publish_policy
from serving.records import Records
from trading import switch
from trading.costs import flat_costs
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.paper import PaperBroker


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


@pytest.fixture
def records(settings: Settings) -> Iterator[Records]:
    records = Records(settings.paths.state_dir / "decisions", settings.records)
    yield records
    records.close()


def tail_of(settings: Settings) -> RecordTail:
    return RecordTail(settings, lambda: 512.0)


def test_decisions_are_told_as_they_are_recorded_and_not_those_before(settings: Settings, records: Records) -> None:
    decided(records)
    tail = tail_of(settings)
    assert list(tail.look()) == []
    wanted = [decided(records), decided(records, "BANKNIFTY")]
    told = list(tail.look())
    assert [each.data["decision_id"] for each in told if each.kind == "decision"] == wanted
    assert [each.symbol for each in told if each.kind == "hrm_metrics"] == ["NIFTY", "BANKNIFTY"]
    assert list(tail.look()) == []
    other = Records(settings.paths.state_dir / "decisions", settings.records)  # a process that begins now
    begun = decided(other)
    assert [each.data["decision_id"] for each in tail.look() if each.kind == "decision"] == [begun]
    other.close()


def test_the_metrics_are_the_seed_s_message(settings: Settings, records: Records) -> None:
    publish_policy(settings.paths.state_dir / "models", "ppo/v1")
    tail = tail_of(settings)
    list(tail.look())
    decided(records, model="ppo/v1", segments=1)
    (told,) = (each for each in tail.look() if each.kind == "hrm_metrics")
    assert told.data == {
        "hierarchical_efficiency": 1.0,  # a model of one pass
        "computation_depth": 1,
        "convergence_stability": 1.0,
        "inference_performance": {"latency_ms": 12.5, "memory_mb": 512.0, "status": "optimal"},
        "adaptive_reasoning": {"market_complexity": 0.25, "reasoning_depth": 1, "efficiency_score": 1.0},
    }


def test_what_did_not_settle_counts_and_a_model_that_is_gone_has_no_efficiency(
    settings: Settings, records: Records
) -> None:
    tail = tail_of(settings)
    list(tail.look())
    for segments in (2, 8, 2, 8):
        decided(records, segments=segments)
    told = [each.data for each in tail.look() if each.kind == "hrm_metrics"]
    assert [each["convergence_stability"] for each in told] == [1.0, 0.5, 2 / 3, 0.5]
    assert {each["hierarchical_efficiency"] for each in told} == {None}
    decided(records, model=None)  # no model answered: no metrics
    assert [each.kind for each in tail.look()] == ["decision"]


def test_a_frame_is_told_when_it_is_whole_and_a_torn_one_is_passed_over(settings: Settings, records: Records) -> None:
    tail = tail_of(settings)
    list(tail.look())
    first = decided(records)
    (file,) = (settings.paths.state_dir / "decisions").glob("*.records")
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert list(tail.look()) == []
    file.write_bytes(whole)
    assert next(iter(tail.look())).data["decision_id"] == first
    file.write_bytes(whole + whole[:50] + whole)  # one that a crash tore
    assert [each.data["decision_id"] for each in tail.look() if each.kind == "decision"] == [first]


def test_a_flood_of_decisions_is_thinned(settings: Settings, records: Records) -> None:
    tail = tail_of(settings)
    list(tail.look())
    wanted = [decided(records) for _ in range(MOST_A_LOOK + 7)]
    told = [each.data["decision_id"] for each in tail.look() if each.kind == "decision"]
    assert told == wanted[7:]


def trade(settings: Settings, ledger: Ledger, units: float, bar_ns: int) -> None:
    gateway = OrderGateway(ledger, settings.trading)
    order = Order(f"NIFTY:{bar_ns}", "NIFTY", units, "champion:ppo/v1", epoch=0, at_ns=bar_ns, bar_ns=bar_ns)
    gateway.submit(order)
    PaperBroker(gateway, flat_costs(1.0)).fill(order, 100.0, bar_ns=bar_ns)


def test_a_ledger_s_fills_and_positions_are_told_with_their_owner(settings: Settings) -> None:
    file = settings.paths.state_dir / "paper.db"
    tail = LedgerTail(file)
    assert list(tail.look()) == []
    assert not file.exists()
    ledger = Ledger(file)
    trade(settings, ledger, 4.0, 10**18)
    fill, position = tail.look()
    assert (fill.kind, fill.data["units"], fill.data["owner"]) == ("fill", 4.0, "champion:ppo/v1")
    assert (position.kind, position.data["units"], position.data["average_price"]) == ("position", 4.0, 100.0)
    assert (position.data["owner"], position.data["ledger"]) == ("champion:ppo/v1", "paper.db")
    assert list(tail.look()) == []
    late = LedgerTail(file)  # a process that begins later is told how things stand, and not how they came to be
    assert [(each.kind, each.data["units"]) for each in late.look()] == [("position", 4.0)]
    trade(settings, ledger, -4.0, 2 * 10**18)
    assert [each.kind for each in late.look()] == ["fill", "position"]
    ledger.close()


def test_a_refused_order_is_an_alert(settings: Settings) -> None:
    ledger = Ledger(settings.paths.state_dir / "paper.db")
    tail = LedgerTail(ledger.path)
    list(tail.look())
    OrderGateway(ledger, settings.trading).submit(
        Order("o1", "NIFTY", 4.0, "champion:ppo/v1", epoch=None, at_ns=1, bar_ns=1)
    )
    (alert,) = tail.look()
    assert (alert.kind, alert.data["alert"], alert.data["reason"]) == ("alert", "order_refused", "raises_exposure")
    ledger.close()


def test_a_ledger_that_was_replaced_is_read_anew_and_one_that_is_none_says_so(settings: Settings) -> None:
    file = settings.paths.state_dir / "paper.db"
    ledger = Ledger(file)
    trade(settings, ledger, 4.0, 10**18)
    tail = LedgerTail(file)
    assert len(list(tail.look())) == 1
    ledger.close()
    other = Ledger(settings.paths.state_dir / "other.db")
    trade(settings, other, 7.0, 10**18)
    other.close()
    other.path.replace(file)
    assert [each.data["units"] for each in tail.look()] == [7.0]
    file.unlink()
    assert list(tail.look()) == []
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(BrokerError, match="not usable"):
        list(tail.look())


def test_it_neither_writes_a_ledger_nor_keeps_it_open(settings: Settings) -> None:
    ledger = Ledger(settings.paths.state_dir / "paper.db")
    tail = LedgerTail(ledger.path)
    list(tail.look())
    with closing(tail._connected()) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM fills")
    trade(settings, ledger, 4.0, 10**18)
    assert len(list(tail.look())) == 2
    ledger.close()
    assert sorted(file.name for file in settings.paths.state_dir.iterdir()) == ["paper.db"]  # and no log beside it


def test_changes_of_the_rollout_are_told_and_an_abort_is_an_alert(settings: Settings) -> None:
    tail = RolloutTail(settings)
    assert list(tail.look()) == []  # no service ever ran here
    store = RolloutStore(place_of(settings), settings.rollout)
    store.apply(Change(Command.INSTALL, time.time(), champion="ppo/v1"))
    tail = RolloutTail(settings)
    (now,) = tail.look()
    assert (now.kind, now.data["phase"], now.data["champion"]) == ("rollout", "idle", "ppo/v1")
    store.apply(Change(Command.START, time.time(), actor="asha", champion="ppo/v1", challenger="hrm/v1"))
    (started,) = tail.look()
    assert (started.data["command"], started.data["actor"], started.data["phase"]) == ("start", "asha", "shadow")
    store.apply(Change(Command.ABORT, time.time(), "too hot", "ravi"))
    aborted, alert = tail.look()
    assert aborted.data["phase"] == "rolled_back"
    assert (alert.kind, alert.data["severity"], alert.data["text"]) == ("alert", "critical", "abort by ravi: too hot")
    assert list(tail.look()) == []
    store.close()


def test_the_switch_is_an_alert_while_it_is_engaged(settings: Settings) -> None:
    tail = SwitchTail(settings)
    assert [each.data["active"] for each in tail.look()] == [False]
    switch.engage(settings.paths.state_dir, "halted", "ravi", "the feed")
    (alert,) = tail.look()
    assert (alert.data["active"], alert.data["by"], alert.data["text"]) == (True, "ravi", "trading is halted: the feed")
    assert list(tail.look()) == []
    switch.release(settings.paths.state_dir, "ravi", "it is back")
    assert [each.data["active"] for each in tail.look()] == [False]


def test_a_source_that_cannot_be_read_says_so_and_the_others_go_on(settings: Settings) -> None:
    tail = Tail(settings)
    tail._look()
    (settings.paths.state_dir / "live.db").write_bytes(b"no database at all" * 100)
    switch.engage(settings.paths.state_dir, "halted", "ravi", "the feed")
    told = tail._look()
    assert [each.data["alert"] for each in told] == ["switch"]
    assert "live.db" in tail.problems
    (settings.paths.state_dir / "live.db").unlink()
    tail._look()
    assert tail.problems == {}


def test_memory_and_alerts_of_the_service_are_told_when_they_change(settings: Settings) -> None:
    tail = ServiceTail(settings)
    assert [each.data["alert"] for each in tail._told(None)] == ["service_unreachable"]
    assert list(tail._told(None)) == []
    told = list(tail._told((812.0, {"degraded": True, "unrecorded": False})))
    assert [(each.data["alert"], each.data["active"]) for each in told] == [
        ("service_unreachable", False),
        ("degraded", True),
    ]
    assert tail.memory_mb() == 812.0
