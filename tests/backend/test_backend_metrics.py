"""What Prometheus is told about trading: from real ledgers, locks, switches and records, as they change."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from test_backend_app import backend, settings_of

from backend.metrics import GAUGES, Desk
from trading import drift_record, switch
from trading.calendar import KOLKATA
from trading.costs import flat_costs
from trading.events import EventLog, clock_body
from trading.features import BAR_FEATURES
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.paper import PaperBroker

LIVE = "live-paper.db"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / LIVE)
    yield ledger
    ledger.close()


def told(state_dir: Path) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(Desk(state_dir))
    return registry


def states(state_dir: Path) -> dict[str, float | None]:
    registry = told(state_dir)
    return {state: registry.get_sample_value("hrm_trading_switch", {"state": state}) for state in switch.STRICTER}


def test_of_an_empty_state_directory_only_the_switch_is_told(tmp_path: Path) -> None:
    found = [sample.name for family in told(tmp_path).collect() for sample in family.samples]
    assert set(found) == {"hrm_trading_switch", "hrm_desk_readable", "hrm_market_open"}
    assert list(tmp_path.iterdir()) == []


def test_the_switch_is_told_as_it_stands(tmp_path: Path) -> None:
    assert states(tmp_path) == {"active": 1.0, "reducing": 0.0, "halted": 0.0}
    switch.engage(tmp_path, "reducing", "asha", "the feed")
    assert states(tmp_path) == {"active": 0.0, "reducing": 1.0, "halted": 0.0}
    (tmp_path / switch.KILL).touch()
    assert states(tmp_path) == {"active": 0.0, "reducing": 0.0, "halted": 1.0}
    switch.release(tmp_path, "asha", "it is back")
    assert states(tmp_path) == {"active": 1.0, "reducing": 0.0, "halted": 0.0}


def test_a_desk_that_runs_tells_what_blocks_it_and_one_that_ended_does_not(tmp_path: Path, ledger: Ledger) -> None:
    log = EventLog(ledger)
    log.append("clock", clock_body({}, "feed_stale"), at_ns=1)
    running = {"ledger": LIVE}
    stale = running | {"why": "feed_stale"}
    with (tmp_path / LIVE).with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert told(tmp_path).get_sample_value("hrm_live_running", running) == 1.0
        assert told(tmp_path).get_sample_value("hrm_live_blocked", stale) == 1.0
        log.append("clock", clock_body({}, None), at_ns=2)
        assert told(tmp_path).get_sample_value("hrm_live_blocked", stale) is None
        log.append("clock", clock_body({}, "feed_stale"), at_ns=3)
    assert told(tmp_path).get_sample_value("hrm_live_running", running) == 0.0
    assert told(tmp_path).get_sample_value("hrm_live_blocked", stale) is None


def test_what_is_held_is_counted_by_symbols(tmp_path: Path, ledger: Ledger) -> None:
    gateway = OrderGateway(ledger, settings_of(tmp_path).trading)
    for number, units in enumerate((50.0, -50.0)):
        order = Order(f"NIFTY:{number}", "NIFTY", units, "champion:ppo/v1", epoch=0, at_ns=number, bar_ns=number)
        gateway.submit(order)
        PaperBroker(gateway, flat_costs(1.0)).fill(order, 24_000.0, bar_ns=number)
        held = told(tmp_path).get_sample_value("hrm_live_positions", {"ledger": LIVE})
        assert held == float(number == 0)


def test_a_ledger_that_grows_was_just_written(tmp_path: Path, ledger: Ledger) -> None:
    EventLog(ledger).append("clock", clock_body({}, None), at_ns=1)
    written = told(tmp_path).get_sample_value("hrm_live_written_timestamp_seconds", {"ledger": LIVE})
    newest = max(file.stat().st_mtime for file in tmp_path.iterdir() if file.name in (LIVE, f"{LIVE}-wal"))
    assert written == newest


def test_drift_is_told_as_the_newest_check_found_it(tmp_path: Path) -> None:
    drift_record.keep(tmp_path, "fail", {"range_z": 0.31, "signal": 0.4, "progress": 0.0}, ("range_z", "signal"))
    registry = told(tmp_path)
    assert registry.get_sample_value("hrm_drift_features") == 2.0
    assert registry.get_sample_value("hrm_feature_psi", {"feature": "range_z"}) == 0.31
    assert registry.get_sample_value("hrm_feature_psi", {"feature": "progress"}) == 0.0
    drift_record.keep(tmp_path, "pass", {"signal": 0.01}, ())
    assert told(tmp_path).get_sample_value("hrm_drift_features") == 0.0
    assert told(tmp_path).get_sample_value("hrm_feature_psi", {"feature": "range_z"}) is None


def test_only_features_of_the_observation_have_a_series(tmp_path: Path) -> None:
    """Labels of a metric are bounded, whatever a file says."""
    drift_record.keep(tmp_path, "pass", dict.fromkeys((*BAR_FEATURES, "made_up"), 0.1), ())
    found = [sample for family in told(tmp_path).collect() for sample in family.samples]
    assert [one.labels["feature"] for one in found if one.name == "hrm_feature_psi"] == list(BAR_FEATURES)


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-02-01 11:00", 1.0),  # a Sunday on which the budget was read
        ("2026-02-08 11:00", 0.0),  # any other Sunday
        ("2026-08-04 15:35", 1.0),  # derivatives close ten minutes later than shares
        ("2026-08-04 15:40", 0.0),
        ("2026-01-26 11:00", 0.0),  # a Monday, and a holiday
    ],
)
def test_the_market_is_open_by_the_exchange_s_calendar(tmp_path: Path, moment: str, is_open: float) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=KOLKATA).timestamp()
    registry = CollectorRegistry()
    registry.register(Desk(tmp_path, lambda: at))
    assert registry.get_sample_value("hrm_market_open") == is_open


@pytest.mark.parametrize("source", [LIVE, drift_record.FILE])
def test_what_cannot_be_read_is_told_and_hides_nothing_else(tmp_path: Path, source: str) -> None:
    (tmp_path / source).write_bytes(b"no such thing" * 400)
    registry = told(tmp_path)
    assert registry.get_sample_value("hrm_desk_readable", {"source": source}) == 0.0
    assert registry.get_sample_value("hrm_desk_readable", {"source": "live.db"}) == 1.0
    assert states(tmp_path)["active"] == 1.0


def test_prometheus_finds_all_of_it_without_a_key_on_loopback_alone(tmp_path: Path) -> None:
    with backend(tmp_path) as (_, listening):
        answer = httpx.get(f"http://127.0.0.1:{listening['port']}/metrics", trust_env=False, timeout=30.0)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    for name in GAUGES:
        assert f"# TYPE {name} gauge" in answer.text
    assert 'hrm_trading_switch{state="active"} 1.0' in answer.text
