"""Alerts about rollouts and trading, by Prometheus' own judgement of series that were made up for each."""

import re
from pathlib import Path

import pytest
import yaml
from test_monitoring import ROOT, alerts, fired, promtool

LIVE = 'instance="b",ledger="live.db"'
RUNNING = f"hrm_live_running{{{LIVE}}}"
WRITTEN = f"hrm_live_written_timestamp_seconds{{{LIVE}}}"
ROLLED_BACK = 'hrm_rollout_phase{phase="rolled_back"}'
LOOKS = "hrm_controller_looks_total"


@promtool
@pytest.mark.parametrize(
    ("alert", "series"),
    [
        ("HrmRolloutPaused", {"hrm_rollout_paused": "1x20"}),
        ("HrmTradingHalted", {'hrm_trading_switch{state="halted"}': "1x20"}),
        ("HrmTradingReducing", {'hrm_trading_switch{state="reducing"}': "1x20"}),
        ("HrmTicksStale", {'hrm_live_blocked{ledger="live.db",why="feed_stale"}': "1x20"}),
        ("HrmDeskBlocked", {'hrm_live_blocked{ledger="live.db",why="clock_skew"}': "1x20"}),
        ("HrmDrift", {"hrm_drift_features": "2x20"}),
        ("HrmOutboxStuck", {"hrm_outbox_oldest_seconds": "0+60x20"}),
        ("HrmBackendDown", {'up{job="hrm-backend",instance="b"}': "0x20"}),
        ("HrmDeskUnreadable", {'hrm_desk_readable{source="live.db"}': "0x20"}),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    assert fired(tmp_path, series, alert, {"8m": 1}) == ""


@promtool
@pytest.mark.parametrize(
    ("alert", "series"),
    [
        ("HrmRolloutPaused", {"hrm_rollout_paused": "0x20"}),
        ("HrmTradingHalted", {'hrm_trading_switch{state="halted"}': "0x20"}),
        ("HrmTradingReducing", {'hrm_trading_switch{state="halted"}': "1x20"}),
        ("HrmTicksStale", {'hrm_live_blocked{ledger="live.db",why="market_closed"}': "1x20"}),
        ("HrmDeskBlocked", {'hrm_live_blocked{ledger="live.db",why="market_closed"}': "1x20"}),
        ("HrmDrift", {"hrm_drift_features": "0x20"}),
        ("HrmOutboxStuck", {"hrm_outbox_oldest_seconds": "60x20"}),
        ("HrmDeskUnreadable", {'hrm_desk_readable{source="live.db"}': "1x20"}),
    ],
)
def test_what_is_in_order_is_not_told(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    assert fired(tmp_path, series, alert, {"8m": 0}) == ""


@promtool
@pytest.mark.parametrize(
    ("opens", "closes", "expected"),
    [
        (225, 625, {"3h40m": 0, "3h50m": 1, "10h10m": 1, "10h30m": 0}),  # a Thursday: derivatives close at 15:40
        (3105, 3480, {"51h40m": 0, "51h50m": 1, "58h5m": 0}),  # a session on a Saturday
        (4000, 4001, {"5h": 0, "29h": 0}),  # Thursday and Friday are holidays
    ],
)
def test_a_desk_that_ended_with_something_held_is_told_while_the_market_is_open(
    tmp_path: Path, opens: int, closes: int, expected: dict[str, int]
) -> None:
    """Three machines: one holds and is gone, one holds and runs, one is gone and holds nothing. Minutes of the test."""
    series: dict[str, str] = {}
    for instance, (held, running) in {"gone": (2, 0), "runs": (2, 1), "flat": (0, 0)}.items():
        labels = f'{{instance="{instance}",ledger="live.db"}}'
        series |= {f"hrm_live_positions{labels}": f"{held}x4100", f"hrm_live_running{labels}": f"{running}x4100"}
        market = f"0x{opens - 1} 1x{closes - opens - 1} 0x{4100 - closes}"
        series[f'hrm_market_open{{instance="{instance}"}}'] = market
    assert fired(tmp_path, series, "HrmDeskGone", expected) == ""


@promtool
def test_a_backend_that_does_not_say_whether_the_market_is_open_silences_nobody(tmp_path: Path) -> None:
    assert fired(tmp_path, {f"hrm_live_positions{{{LIVE}}}": "2x20", RUNNING: "0x20"}, "HrmDeskGone", {"8m": 1}) == ""


@promtool
def test_a_desk_that_is_there_and_does_not_write_is_told(tmp_path: Path) -> None:
    """The clock of promtool begins at 0: what was written at 0 is as old as the test."""
    hangs = {WRITTEN: "0x20", RUNNING: "1x20"}
    assert fired(tmp_path, hangs, "HrmDeskHangs", {"8m": 1}) == ""
    assert fired(tmp_path, hangs | {WRITTEN: "0+60x20"}, "HrmDeskHangs", {"8m": 0}) == ""
    assert fired(tmp_path, hangs | {RUNNING: "0x20"}, "HrmDeskHangs", {"8m": 0}) == ""


@promtool
def test_a_rollback_that_nobody_counted_is_told_once_the_service_is_back(tmp_path: Path) -> None:
    """It ended with the rollback: no counter has it, the state does."""
    back = {ROLLED_BACK: "0x10 _x6 1x40"}
    assert fired(tmp_path, back, "HrmRollback", {"10m": 0, "19m": 1, "40m": 0}) == ""


@promtool
def test_a_rollback_that_was_counted_is_one_alert_from_its_begin_to_its_end(tmp_path: Path) -> None:
    counted = {ROLLED_BACK: "0x10 1x40", 'hrm_rollback_total{trigger="manual"}': "_x11 1x39"}
    times = {f"{minute}m": 1 for minute in range(12, 20)}
    assert fired(tmp_path, counted, "HrmRollback", times | {"40m": 0}) == ""


@promtool
@pytest.mark.parametrize("phase", ["shadow", "canary"])
def test_a_rollout_that_no_controller_looks_at_is_told(tmp_path: Path, phase: str) -> None:
    alone = {f'hrm_rollout_phase{{phase="{phase}"}}': "1x40", LOOKS: "7x40"}
    assert fired(tmp_path, alone, "HrmControllerSilent", {"30m": 1}) == ""


@promtool
def test_a_rollout_that_measures_nothing_and_is_looked_at_is_in_order(tmp_path: Path) -> None:
    """Two replicas, one of which holds the lease; the plan has no analyses, and waits for a person."""
    a, b = (f'{LOOKS}{{instance="{name}"}}' for name in "ab")
    looked_at = {'hrm_rollout_phase{phase="canary"}': "1x40", a: "0x40", b: "0+60x40"}
    assert fired(tmp_path, looked_at, "HrmControllerSilent", {"30m": 0}) == ""


def test_no_alert_silences_anything_but_its_own_milder_kind() -> None:
    """Alertmanager takes labels that neither alert has for equal: from severity to severity it would mute all."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alertmanager.yml").read_text())
    names = {alert["alert"] for alert in alerts()}
    for rule in config["inhibit_rules"]:
        for matchers in (rule["source_matchers"], rule["target_matchers"]):
            (matcher,) = matchers
            pattern = re.fullmatch(r'alertname=~?"(.+)"', matcher)
            assert pattern is not None, matcher
            assert any(re.fullmatch(pattern[1], name) for name in names), matcher
