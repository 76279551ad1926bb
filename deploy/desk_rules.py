"""Alerts about trading itself: the switch, the live desk, drift, and what watches them. Metrics: backend/metrics.py.

All of these are levels of what is durable, not events: whoever restarts, Prometheus included, finds them again.
"""

from __future__ import annotations

from typing import Any

from deploy.alerting import alert, told

# Sections of the runbook.
SWITCH = "Trading is stopped (alerts `HrmTradingHalted`, `HrmTradingReducing`)"
DESK = "The live desk is in trouble (alerts `HrmTicksStale`, `HrmDeskBlocked`, `HrmDeskGone`, `HrmDeskHangs`)"
DRIFT = "The market has changed (alert `HrmDrift`)"
UNTOLD = "Prefect is not told (alert `HrmOutboxStuck`)"
BLIND = "Trading cannot be watched (alerts `HrmBackendDown`, `HrmDeskUnreadable`)"
HANGS_AFTER_S = 30  # a live process writes an event every second
UNTOLD_FOR_S = 300  # the outbox tries again every minute at the latest
# By the calendar of the backend that says what is held: a session on a weekend is one, and a holiday is none. Where
# nobody says so, it is told at any time.
UNLESS_CLOSED = "unless on (instance) hrm_market_open == 0"


def desk() -> list[dict[str, Any]]:
    """What is wrong with trading, from the backend's /metrics and the service's outbox."""
    return [*_switch(), *_live(), *_drift(), *_told_on()]


def _switch() -> list[dict[str, Any]]:
    return [
        told(
            alert("HrmTradingHalted", 'max(hrm_trading_switch{state="halted"}) == 1', "critical"),
            "Trading is halted",
            "Nothing but cancels goes out, not even exits. `hrm trade status` says who stopped it, and why.",
            SWITCH,
        ),
        told(
            alert("HrmTradingReducing", 'max(hrm_trading_switch{state="reducing"}) == 1', "warning"),
            "Only exits go out",
            "A person or a limit of risk allows nothing to be opened. `hrm trade status` says which.",
            SWITCH,
        ),
    ]


def _live() -> list[dict[str, Any]]:
    silent_s = "time() - hrm_live_written_timestamp_seconds"
    return [
        told(
            alert("HrmTicksStale", 'hrm_live_blocked{why="feed_stale"} == 1', "critical", "15s"),
            "The live desk has no prices",
            "Neither by themselves nor asked for; {{ $labels.ledger }} opens nothing until they come.",
            DESK,
        ),
        told(
            alert("HrmDeskBlocked", 'hrm_live_blocked{why!~"feed_stale|market_closed"} == 1', "warning", "2m"),
            "The live desk opens nothing",
            "{{ $labels.ledger }}: {{ $labels.why }}. Exits go out all the same.",
            DESK,
        ),
        told(
            alert(
                "HrmDeskGone",
                f"hrm_live_positions > 0 unless on (instance, ledger) hrm_live_running == 1 {UNLESS_CLOSED}",
                "critical",
                "30s",
            ),
            "Something is held, and no live process has it",
            "{{ $value }} symbols of {{ $labels.ledger }}; nobody watches their losses or squares them off.",
            DESK,
        ),
        told(
            alert(
                "HrmDeskHangs",
                f"{silent_s} > {HANGS_AFTER_S} and on (instance, ledger) hrm_live_running == 1",
                "critical",
                "15s",
            ),
            "The live process is there and does nothing",
            "It last wrote to {{ $labels.ledger }} {{ $value | humanizeDuration }} ago; it writes every second.",
            DESK,
        ),
    ]


def _drift() -> list[dict[str, Any]]:
    return [
        told(
            alert("HrmDrift", "hrm_drift_features > 0", "warning"),
            "The latest sessions are not like those that models are trained on",
            "{{ $value }} bar features differ. A rollout under way is paused.",
            DRIFT,
        )
    ]


def _told_on() -> list[dict[str, Any]]:
    return [
        told(
            alert("HrmOutboxStuck", f"max(hrm_outbox_oldest_seconds) > {UNTOLD_FOR_S}", "warning"),
            "A rollback has not reached Prefect",
            "It waits for {{ $value | humanizeDuration }}. Traffic is safe; the flow that confirms it has not begun.",
            UNTOLD,
        ),
        told(
            alert("HrmBackendDown", 'up{job="hrm-backend"} == 0', "critical", "1m"),
            "Trading cannot be watched",
            "{{ $labels.instance }} cannot be scraped: the switch, the live desk and drift are not known.",
            BLIND,
        ),
        told(
            alert("HrmDeskUnreadable", "hrm_desk_readable == 0", "warning", "1m"),
            "A file of the desk cannot be read",
            "{{ $labels.source }} is there; what it says is not known.",
            BLIND,
        ),
    ]
