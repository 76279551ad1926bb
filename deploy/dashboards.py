"""The Grafana dashboards, made of what /metrics of service and backend export: one row of panels per question.

Plain JSON of Grafana's dashboard schema 39, for its file provisioning; it needs a source named `prometheus`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

WIDTH, HEIGHT, COLUMNS = 8, 8, 3
SOURCE = {"type": "prometheus", "uid": "prometheus"}


class Panel(NamedTuple):
    title: str
    unit: str  # Grafana's name of it
    queries: tuple[tuple[str, str], ...]  # (expression, legend)


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    buckets = f"sum by (le, model, version, role) (rate({metric}_bucket[5m]))"
    return tuple(
        (f"histogram_quantile({q}, {buckets})", f"p{round(100 * q)} {{{{model}}}}/{{{{version}}}} {{{{role}}}}")
        for q in (0.5, 0.95, 0.99)
    )


def _rate(metric: str, *by: str) -> tuple[tuple[str, str], ...]:
    legend = " ".join(f"{{{{{label}}}}}" for label in by) or "all"
    return ((f"sum by ({', '.join(by)}) (rate({metric}[5m]))" if by else f"sum(rate({metric}[5m]))", legend),)


SERVICE = (
    Panel("Decisions", "reqps", _rate("hrm_inference_requests_total", "model", "version", "role", "outcome")),
    Panel("A run's own time", "s", _quantiles("hrm_inference_duration_seconds")),
    Panel("Waiting", "s", _quantiles("hrm_inference_queue_seconds")),
    Panel("Runs without an answer", "reqps", _rate("hrm_inference_errors_total", "model", "version", "code")),
    Panel("Waiting and thinking", "short", (("sum by (instance) (hrm_inference_pending_requests)", "{{instance}}"),)),
    Panel("Segments of reasoning", "short", _quantiles("hrm_act_segments")),
    Panel(
        "Rows in one run",
        "short",
        (("sum(rate(hrm_inference_batch_rows_sum[5m])) / sum(rate(hrm_inference_batch_rows_count[5m]))", "mean"),),
    ),
    Panel("Refused as too late", "reqps", _rate("hrm_inference_shed_total", "model", "version")),
    Panel("Cut short by a deadline", "reqps", _rate("hrm_inference_deadline_total", "model", "version")),
    Panel("Refused at the door", "reqps", _rate("hrm_http_refused_total", "code")),
    Panel("Memory", "decbytes", (("process_resident_memory_bytes", "{{instance}} {{pid}}"),)),
    Panel("Rung of the ladder", "bool", (("max by (instance, rung) (hrm_ladder_rung)", "{{instance}} {{rung}}"),)),
    Panel("Decisions on record", "reqps", _rate("hrm_decision_records_total", "outcome")),
    Panel("Alert levels passed", "bool", (("max by (alert) (hrm_alert_active)", "{{alert}}"),)),
    Panel(
        "Error budget burnt, 16 min of market time",
        "percentunit",
        (
            (
                "sum by (objective) (sum_over_time(hrm:slo_bad:increase1m[16m:1m])) / "
                "sum by (objective) (sum_over_time(hrm:slo_events:increase1m[16m:1m]))",
                "{{objective}}",
            ),
        ),
    ),
)
ROLLOUT = (
    Panel("Symbols of the challenger", "percentunit", (("max(hrm_rollout_weight_ratio)", "weight"),)),
    Panel("Phase", "bool", (("max by (phase) (hrm_rollout_phase)", "{{phase}}"),)),
    Panel("Epoch", "short", (("max by (instance) (hrm_rollout_epoch)", "{{instance}}"),)),
    Panel("Age of the state", "s", (("max by (instance) (hrm_rollout_state_age_seconds)", "{{instance}}"),)),
    Panel("Rollbacks", "short", (("sum by (trigger) (hrm_rollback_total)", "{{trigger}}"),)),
    Panel(
        "From a rollback to the disk",
        "s",
        (("histogram_quantile(0.99, sum by (le) (rate(hrm_rollback_propagation_seconds_bucket[1h])))", "p99"),),
    ),
    Panel("Earned since it began", "percentunit", (("max by (arm) (hrm_equity_ratio)", "{{arm}}"),)),
    Panel("Drawdown", "percentunit", (("max by (arm) (hrm_drawdown_ratio)", "{{arm}}"),)),
    Panel("Lost today", "percentunit", (("max by (arm) (hrm_daily_loss_ratio)", "{{arm}}"),)),
    Panel("Measurements", "reqps", _rate("hrm_analysis_measurement_total", "metric", "phase")),
    Panel("Looks of the controller", "reqps", _rate("hrm_controller_looks_total")),
    Panel("Paused", "bool", (("max(hrm_rollout_paused)", "waits for a person"),)),
    Panel("Shadow decisions that differ", "reqps", _rate("hrm_shadow_disagreement_total")),
    Panel("Shadow decisions that came too late", "reqps", _rate("hrm_shadow_missed_total")),
)
TRADING = (
    Panel("Switch", "bool", (("max by (state) (hrm_trading_switch)", "{{state}}"),)),
    Panel("Live process", "bool", (("max by (ledger) (hrm_live_running)", "{{ledger}}"),)),
    Panel("Symbols held", "short", (("max by (ledger) (hrm_live_positions)", "{{ledger}}"),)),
    Panel("Openings blocked", "bool", (("max by (ledger, why) (hrm_live_blocked)", "{{ledger}} {{why}}"),)),
    Panel(
        "Since the desk last wrote",
        "s",
        (("time() - max by (ledger) (hrm_live_written_timestamp_seconds)", "{{ledger}}"),),
    ),
    Panel("Features that drifted", "short", (("max(hrm_drift_features)", "features"),)),
    Panel("Since drift was looked for", "s", (("time() - max(hrm_drift_checked_timestamp_seconds)", "age"),)),
    Panel("Files that can be read", "bool", (("min by (source) (hrm_desk_readable)", "{{source}}"),)),
    Panel("Rollbacks that Prefect does not know of", "short", (("max(hrm_outbox_pending)", "waiting"),)),
)
DASHBOARDS = {
    "service": ("HRM inference service", SERVICE),
    "rollout": ("HRM rollout", ROLLOUT),
    "trading": ("HRM trading", TRADING),
}


def dashboard(name: str) -> dict[str, Any]:
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"hrm-{name}",
        "title": title,
        "tags": ["hrm"],
        "schemaVersion": 39,
        "timezone": "Asia/Kolkata",
        "refresh": "10s",
        "time": {"from": "now-6h", "to": "now"},
        "editable": False,
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(panel.queries)
        ],
    }
