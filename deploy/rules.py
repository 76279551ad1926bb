"""The Prometheus rules, made of config/settings.yaml: every limit has its one home there (docs/adr/0038-monitoring.md).

Burn rates are those of the SRE workbook, in market time. A desk has 375 minutes a session, so a day of the workbook is
a session and an hour of it 375/24 minutes. What is burnt is counted minute by minute while the market is open
(`hrm:slo_bad:increase1m`); nights, holidays and rehearsals after the close neither burn nor dilute.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from core.settings import Settings
from deploy.alerting import alert, told
from deploy.desk_rules import desk

SESSION_MINUTES = 375
DAY_MINUTES = 24 * 60
# Sections of the runbook, which the tests look for.
SLOW = "Slow answers (warning above 50 ms, rollback above 100 ms)"
UNANSWERED = "Decisions without a model"
MEMORY = "Memory (warning 3.0 GB, mitigation 3.5 GB, limit 4.0 GB)"
MISBEHAVES = "The challenger misbehaves"
DEPTH = "The depth of computation changes"
DEGRADED = "The service is degraded (alert `degraded`)"
UNRECORDED = "Decisions are not recorded (alert `unrecorded`)"
STATE = "The rollout's state cannot be read or written (log `rollout_state_unreadable`, `rollback_not_durable`)"
STUCK = "A rollout does not go on"
DOWN = "The service does not start"
# 09:15 to 15:30 in India, which has no daylight saving time, is 03:45 to 10:00 UTC.
# A holiday is a day without requests.
MINUTE_OF_DAY = "(hour() * 60 + minute())"
WEEKDAY = "(day_of_week() >= bool 1) * (day_of_week() <= bool 5)"
OPEN = f"({MINUTE_OF_DAY} >= bool 225) * ({MINUTE_OF_DAY} < bool 600) * {WEEKDAY}"
IS_OPEN = "and on() hrm:market_open == 1"
MIN_EVENTS = 30  # in the long window: fewer say nothing of a ratio
# Burn rate, long and short window in minutes of the workbook, severity.
BURNS: tuple[tuple[float, int, int, str], ...] = (
    (14.4, 60, 5, "critical"),
    (6.0, 360, 30, "critical"),
    (1.0, 3 * DAY_MINUTES, 360, "warning"),
)
Severity = Literal["critical", "warning"]


def document(settings: Settings) -> dict[str, Any]:
    """The rule file: groups of recording rules and of alerts."""
    groups = {
        "hrm-market-time": _recorded(settings),
        "hrm-burn-rate": _burn_rates(settings),
        "hrm-levels": _levels(settings),
        "hrm-rollout": _rollout(settings),
        "hrm-desk": desk(),
        "hrm-up": _up(),
    }
    return {"groups": [{"name": name, "interval": "15s", "rules": rules} for name, rules in groups.items()]}


def market_window(minutes: int) -> str:
    """A window of the workbook in market time, at least two evaluations of a minute; days stay days.

    Five days of the calendar hold three sessions whatever the weekday; minutes outside sessions count nothing.
    """
    if minutes > DAY_MINUTES:
        return f"{minutes // DAY_MINUTES + 2}d"
    return f"{max(2, math.ceil(minutes * SESSION_MINUTES / DAY_MINUTES))}m"


def _recorded(settings: Settings) -> list[dict[str, Any]]:
    """Good and bad events of the last minute, by objective, while the market is open. Sampled each minute."""
    slow = f'hrm_inference_duration_seconds_bucket{{le="{_seconds(settings.alerts.latency_ms)}"}}'
    asked = "sum(increase(hrm_inference_requests_total[1m]))"
    unanswered = 'sum(increase(hrm_inference_requests_total{outcome="fallback"}[1m]))'
    runs = "sum(increase(hrm_inference_duration_seconds_count[1m]))"
    return [
        {"record": "hrm:market_open", "expr": OPEN},
        _minute("hrm:slo_events:increase1m", "answered", asked),
        _minute("hrm:slo_bad:increase1m", "answered", f"({unanswered} or on() vector(0))"),
        _minute("hrm:slo_events:increase1m", "in_time", runs),
        _minute("hrm:slo_bad:increase1m", "in_time", f"({runs} - sum(increase({slow}[1m])))"),
    ]


def _minute(record: str, objective: str, expression: str) -> dict[str, Any]:
    return {"record": record, "expr": f"({expression}) {IS_OPEN}", "labels": {"objective": objective}}


def _burn_rates(settings: Settings) -> list[dict[str, Any]]:
    """Of two objectives: 1 - alerts.error_ratio of the decisions are a model's; 95 % of the runs are in time."""
    budgets = {"answered": settings.alerts.error_ratio, "in_time": 0.05}
    return [_burn(objective, budget, *burn) for objective, budget in budgets.items() for burn in BURNS]


def _burn(objective: str, budget: float, rate: float, long: int, short: int, severity: str) -> dict[str, Any]:
    windows = [market_window(long), market_window(short)]
    limit = min(rate * budget, 0.99)  # 14.4 times 5 % is 72 %; a ratio above 1 would never be reached
    spent = " and ".join(f"{_ratio(objective, window)} > {limit:.6g}" for window in windows)
    enough = (
        f'sum(sum_over_time(hrm:slo_events:increase1m{{objective="{objective}"}}[{windows[0]}:1m])) >= {MIN_EVENTS}'
    )
    name = "Unanswered" if objective == "answered" else "Slow"
    burning = alert(f"Hrm{name}Burn{rate:g}x".replace(".", "_"), f"{spent} and {enough} {IS_OPEN}", severity)
    return told(
        burning,
        f"The error budget '{objective}' burns {rate:g} times too fast",
        f"{{{{ $value | humanizePercentage }}}} over {windows[0]} of market time are bad; {limit:.2%} are the limit.",
        SLOW if objective == "in_time" else UNANSWERED,
    )


def _ratio(objective: str, window: str) -> str:
    bad, events = (f'hrm:slo_{name}:increase1m{{objective="{objective}"}}' for name in ("bad", "events"))
    return f"sum(sum_over_time({bad}[{window}:1m])) / (sum(sum_over_time({events}[{window}:1m])) > 0)"


def _levels(settings: Settings) -> list[dict[str, Any]]:
    """The seed's critical and warning alerts (10.1.2)."""
    triggers, alerts = settings.triggers, settings.alerts
    return [
        *(
            told(
                alert(f"HrmLatency{severity.title()}", f"{P95} > {_seconds(limit)}", severity, "1m"),
                f"One run in twenty takes more than {limit:g} ms",
                "p95 of {{ $labels.model }}/{{ $labels.version }} is {{ $value | humanizeDuration }}.",
                SLOW,
            )
            for severity, limit in (("critical", triggers.latency_ms), ("warning", alerts.latency_ms))
        ),
        *(
            told(
                alert(f"HrmMemory{name}", f"process_resident_memory_bytes > {limit * 1e9:.0f}", severity, "1m"),
                f"A worker uses more than {limit:g} GB",
                "Worker {{ $labels.pid }} of {{ $labels.instance }} uses {{ $value | humanize }}B.",
                MEMORY,
            )
            for name, severity, limit in (
                ("Critical", "critical", triggers.memory_gb),
                ("Mitigation", "warning", alerts.memory_mitigation_gb),
                ("Warning", "warning", alerts.memory_warning_gb),
            )
        ),
        *(
            told(
                alert(f"HrmErrors{severity.title()}", f"{ERRORS} > {limit:g}", severity, "1m"),
                f"More than {limit:.0%} of a model's runs fail",
                "{{ $value | humanizePercentage }} of the runs of {{ $labels.model }}/{{ $labels.version }} failed.",
                UNANSWERED,
            )
            for severity, limit in (("critical", triggers.error_ratio), ("warning", alerts.error_ratio))
        ),
        told(
            alert("HrmPerformanceDrop", 'max(hrm_alert_active{alert="performance_drop"}) == 1', "critical", "1m"),
            f"The challenger earns {alerts.performance_drop:.0%} less than the champion",
            "Its mean return lies that far below the champion's on the same bars.",
            MISBEHAVES,
        ),
        told(
            alert(
                "HrmDepthUnstable",
                f"{DEPTH_NOW} > 1.5 * {DEPTH_BEFORE} or {DEPTH_NOW} < {DEPTH_BEFORE} / 1.5",
                "warning",
                "5m",
            ),
            "The depth of computation is not what it was",
            "{{ $labels.model }}/{{ $labels.version }} thinks {{ $value | humanize }} segments.",
            DEPTH,
        ),
        *(
            told(
                alert(f"Hrm{name.title()}", f'max(hrm_alert_active{{alert="{name}"}}) == 1', "warning", "1m"),
                summary,
                "See /health of the service.",
                section,
            )
            for name, summary, section in (
                (
                    "degraded",
                    "The service decides on a lower rung of its ladder",
                    DEGRADED,
                ),
                ("unrecorded", "Decisions go out unrecorded", UNRECORDED),
            )
        ),
    ]


def _rollout(settings: Settings) -> list[dict[str, Any]]:
    age_s = max(settings.triggers.window_s, 5.0)
    return [
        told(
            alert("HrmRollback", f"sum by (trigger) ({FRESH_ROLLBACKS}) > 0 or on() ({TAKEN_BACK})", "critical"),
            "A challenger was taken back",
            "Trigger: {{ with $labels.trigger }}{{ . }}{{ else }}see the rollout{{ end }}. The champion decides; "
            "nothing is retried by itself.",
            MISBEHAVES,
        ),
        told(
            alert("HrmStateOld", f"max by (instance) (hrm_rollout_state_age_seconds) > {age_s:g}", "critical"),
            "A worker does not see the rollout's state",
            "Last read {{ $value | humanizeDuration }} ago on {{ $labels.instance }}; it gives no challenger traffic.",
            STATE,
        ),
        told(
            alert("HrmControllerSilent", f"{UNDER_WAY} unless on() {LOOKED} > 0", "critical", "5m"),
            "A rollout is under way and nobody looks after it",
            "No controller of any replica has looked at it for ten minutes: no analysis would take it back.",
            STUCK,
        ),
        told(
            alert("HrmRolloutPaused", "max(hrm_rollout_paused) == 1", "warning", "1m"),
            "A rollout waits for a person",
            "It is paused; what decides now goes on deciding. `hrm rollout status` says by whom, and why.",
            STUCK,
        ),
        told(
            alert("HrmEpochsDiffer", "max(hrm_rollout_epoch) != min(hrm_rollout_epoch)", "critical", "30s"),
            "Replicas do not agree about who decides",
            "A change of the rollout has not reached every replica for half a minute.",
            STATE,
        ),
    ]


def _up() -> list[dict[str, Any]]:
    return [
        told(
            alert("HrmServiceDown", 'up{job="hrm-serving"} == 0', "critical", "30s"),
            "A replica of the service does not answer",
            "{{ $labels.instance }} cannot be scraped; trading falls to HOLD where no other replica answers.",
            DOWN,
        ),
        told(
            alert("HrmNobodyServes", 'absent(up{job="hrm-serving"} == 1)', "critical", "30s"),
            "No replica of the service answers",
            "Every decision is HOLD until one does.",
            DOWN,
        ),
    ]


P95 = "histogram_quantile(0.95, sum by (le, model, version, role) (rate(hrm_inference_duration_seconds_bucket[5m])))"
ERRORS = (
    "sum by (model, version, role) (rate(hrm_inference_errors_total[5m])) / "
    "(sum by (model, version, role) (rate(hrm_inference_duration_seconds_count[5m])) > 0)"
)
_DEPTH = (
    "(sum by (model, version) (rate(hrm_act_segments_sum[{0}])) / "
    "(sum by (model, version) (rate(hrm_act_segments_count[{0}])) > 0))"
)
DEPTH_NOW, DEPTH_BEFORE = _DEPTH.format("15m"), _DEPTH.format("1d")
# A counter that begins at 1 has no increase: what was not there ten minutes ago counts whole.
FRESH_ROLLBACKS = "increase(hrm_rollback_total[10m]) > 0 or (hrm_rollback_total unless hrm_rollback_total offset 10m)"
# The same from the state, which is durable: a service that ended with its rollback tells it when it is back. Over
# sooner, so that what was counted is not told a second time.
ROLLED_BACK = 'max(hrm_rollout_phase{{phase="rolled_back"}}{0}) == 1'
TAKEN_BACK = f"{ROLLED_BACK.format('')} unless on() {ROLLED_BACK.format(' offset 9m')}"
UNDER_WAY = 'max(hrm_rollout_phase{phase=~"shadow|canary"}) == 1'
LOOKED = "sum(increase(hrm_controller_looks_total[5m]))"


def _seconds(ms: float) -> str:
    return f"{ms / 1e3:g}"
