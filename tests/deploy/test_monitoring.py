"""Rules and dashboards: as generated, accepted by Prometheus' own checker, and of metrics that the service has."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from backend import metrics
from core.settings import load_settings
from deploy.__main__ import SETTINGS, files
from deploy.alerting import anchor
from deploy.dashboards import DASHBOARDS, dashboard
from deploy.rules import document, market_window
from serving.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
amtool = pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")


def rules() -> list[dict[str, Any]]:
    return [rule for group in document(load_settings(SETTINGS, environ={}))["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def exported() -> dict[str, set[str]]:
    """Labels by name of every sample that the service and the backend can export, with what Prometheus adds."""
    known: dict[str, set[str]] = {"up": {"instance", "job"}}
    collectors = Telemetry().registry._names_to_collectors.values()
    for metric in (found for found in collectors if isinstance(found, Counter | Gauge | Histogram)):
        labels, name = set(metric._labelnames) | {"instance", "job"}, metric._name
        if isinstance(metric, Histogram):
            known |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
        else:
            known[f"{name}_total" if isinstance(metric, Counter) else name] = labels
    known["process_resident_memory_bytes"] |= {"pid"}
    known |= {name: {*labels, "instance", "job"} for name, (_, labels) in metrics.GAUGES.items()}
    recorded = {rule["record"]: set(rule.get("labels", {})) for rule in rules() if "record" in rule}
    return known | recorded


def expressions() -> list[str]:
    panels = [panel for name in DASHBOARDS for panel in dashboard(name)["panels"]]
    return [rule["expr"] for rule in rules()] + [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("place", files(), ids=lambda place: place.name)
def test_what_is_committed_is_what_the_settings_make(place: Path) -> None:
    assert place.read_text(encoding="utf-8") == files()[place], "run: python -m deploy"


def test_every_alert_says_how_bad_what_and_where_to_read() -> None:
    headings = {anchor(line[3:]) for line in (ROOT / "docs/runbook.md").read_text().splitlines() if line[:3] == "## "}
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["summary"] and alert["annotations"]["description"]
        assert alert["annotations"]["runbook_url"].partition("#")[2] in headings, alert["alert"]
    assert len({alert["alert"] for alert in alerts()}) == len(alerts())


def test_whoever_looks_for_an_alert_by_its_name_finds_it_in_the_runbook() -> None:
    text = (ROOT / "docs/runbook.md").read_text()
    for name in {re.sub("Burn.*", "Burn...", alert["alert"]) for alert in alerts()}:
        assert f"`{name}`" in text, name


def test_every_metric_and_label_that_is_asked_for_is_exported() -> None:
    known = exported()
    for expression in expressions():
        names = re.findall(r"\b(hrm[_:][a-z0-9_:]+|process_[a-z_]+|up)\b", re.sub(r'"[^"]*"', "", expression))
        assert names or "day_of_week" in expression
        for name in names:
            assert name in known, f"{name} in {expression}"
        asked = set(re.findall(r"([a-z_]+)\s*[=!]~?\s*\"", expression))
        for by in re.findall(r"(?:by|on) ?\(([^)]*)\)", expression):
            asked |= {label.strip() for label in by.split(",") if label.strip()}
        assert asked <= set().union(*(known[name] for name in names)), expression


def test_limits_in_seconds_are_bounds_of_the_histogram() -> None:
    bounds = {f"{bound:g}" for bound in Telemetry().duration._upper_bounds}
    for expression in expressions():
        for bound in re.findall(r'le="([^"]*)"', expression):
            assert bound in bounds, f"no bucket ends at {bound} s: the alert would never be judged"


def test_a_limit_that_changes_in_the_settings_changes_the_rules() -> None:
    changed = load_settings(SETTINGS, environ={"HRM_TRIGGERS__MEMORY_GB": "6"})
    assert "6000000000" in json.dumps(document(changed))
    assert "6000000000" not in json.dumps(rules())


def test_windows_are_market_time() -> None:
    assert [market_window(minutes) for minutes in (60, 5, 360, 30, 3 * 1440)] == ["16m", "2m", "94m", "8m", "5d"]


def test_no_panel_lacks_a_unit_or_a_data_source_and_none_covers_another() -> None:
    for name in DASHBOARDS:
        panels = dashboard(name)["panels"]
        assert all(panel["fieldConfig"]["defaults"]["unit"] and panel["datasource"] for panel in panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
        assert len({panel["id"] for panel in panels}) == len(panels)


@promtool
def test_prometheus_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, capture_output=True)


@amtool
def test_alertmanager_takes_its_configuration(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "prometheus" / "alertmanager.yml").read_text()
    config = tmp_path / "alertmanager.yml"  # `url_file` is newer than Debian's amtool: there an address stands for it
    config.write_text(text.replace("url_file: /run/secrets/alert_webhook_url", "url: https://example.com/hook"))
    subprocess.run(["amtool", "check-config", str(config)], check=True, capture_output=True)
    assert "follow_redirects: false" in text


def fired(tmp_path: Path, series: dict[str, str], alert: str, expected: dict[str, int]) -> str:
    """What promtool says against so many firing at each time; its clock begins at the epoch, a Thursday, 00:00 UTC."""
    return all_fired(tmp_path, series, {alert: expected})


def all_fired(tmp_path: Path, series: dict[str, str], expected: dict[str, dict[str, int]]) -> str:
    """The same of several alerts; only what they need of the rules is judged."""
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": count}],
            }
            for alert, counts in expected.items()
            for at, count in counts.items()
        ],
    }
    place, needed = tmp_path / "case.yml", tmp_path / "rules.yml"
    groups = yaml.safe_load(RULES.read_text())["groups"]
    for group in groups:
        group["rules"] = [rule for rule in group["rules"] if "record" in rule or rule["alert"] in expected]
    needed.write_text(yaml.safe_dump({"groups": [group for group in groups if group["rules"]]}))
    place.write_text(yaml.safe_dump({"rule_files": [str(needed)], "evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(["promtool", "test", "rules", str(place)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr or done.stdout


ARM = 'model="hrm",version="1",role="champion"'
DURATION = "hrm_inference_duration_seconds"
BAD = {
    f'hrm_inference_requests_total{{{ARM},outcome="ok"}}': "0+80x700",
    f'hrm_inference_requests_total{{{ARM},outcome="fallback"}}': "0+20x700",
}


def runs(within_50_ms: int, within_100_ms: int, minutes: int = 700) -> dict[str, str]:
    """A hundred runs a minute, so many of them as fast as that."""
    by_bound = {"0.05": within_50_ms, "0.1": within_100_ms, "0.25": 100, "+Inf": 100}
    buckets = {f'{DURATION}_bucket{{{ARM},le="{bound}"}}': f"0+{n}x{minutes}" for bound, n in by_bound.items()}
    return buckets | {f"{DURATION}_count{{{ARM}}}": f"0+100x{minutes}"}


def failing(percent: int) -> dict[str, str]:
    return runs(100, 100) | {f"hrm_inference_errors_total{{{ARM}}}": f"0+{percent}x700"}


def thinking(segments: int, after: int) -> dict[str, str]:
    """So many segments a decision for 23 hours, then so many."""
    sums = f"0+{100 * segments}x1380 {138_000 * segments + 100 * after}+{100 * after}x60"
    return {f"hrm_act_segments_sum{{{ARM}}}": sums, f"hrm_act_segments_count{{{ARM}}}": "0+100x1441"}


def burning(**counts: dict[str, int]) -> dict[str, dict[str, int]]:
    """Of both budgets; a name stands for how many times too fast."""
    budgets = ("HrmUnansweredBurn", "HrmSlowBurn")
    return {f"{budget}{speed[1:]}": at for speed, at in counts.items() for budget in budgets}


@promtool
def test_a_burning_budget_is_told_in_market_time_and_not_at_night(tmp_path: Path) -> None:
    times = {"3h": 0, "5h": 1, "10h10m": 0}
    assert all_fired(tmp_path, BAD | runs(20, 90), burning(_14_4x=times, _6x=times, _1x=times)) == ""


@promtool
def test_a_budget_that_burns_slower_is_told_as_that(tmp_path: Path) -> None:
    some = {name: values.replace("+20", "+2") for name, values in BAD.items()} | runs(80, 90)
    assert all_fired(tmp_path, some, burning(_14_4x={"5h": 0}, _6x={"5h": 0}, _1x={"5h": 1})) == ""


@promtool
def test_few_requests_say_nothing(tmp_path: Path) -> None:
    few = {name: values.replace("+80", "+0.5").replace("+20", "+0.5") for name, values in BAD.items()}
    assert fired(tmp_path, few, "HrmUnansweredBurn14_4x", {"5h": 0}) == ""


@promtool
@pytest.mark.parametrize(
    ("alert", "series"),
    [
        ("HrmLatencyCritical", runs(90, 94)),
        ("HrmLatencyWarning", runs(94, 100)),
        ("HrmMemoryCritical", {'process_resident_memory_bytes{pid="0"}': "4.1e9x20"}),
        ("HrmMemoryMitigation", {'process_resident_memory_bytes{pid="0"}': "3.6e9x20"}),
        ("HrmMemoryWarning", {'process_resident_memory_bytes{pid="0"}': "3.1e9x20"}),
        ("HrmErrorsCritical", failing(6)),
        ("HrmErrorsWarning", failing(2)),
        ("HrmPerformanceDrop", {'hrm_alert_active{alert="performance_drop"}': "1x20"}),
        ("HrmUnrecorded", {'hrm_alert_active{alert="unrecorded"}': "1x20"}),
        ("HrmRollback", {'hrm_rollback_total{trigger="manual"}': "_x5 1x20"}),
        ("HrmStateOld", {'hrm_rollout_state_age_seconds{instance="a"}': "60x20"}),
        ("HrmServiceDown", {'up{job="hrm-serving",instance="a"}': "0x20"}),
        ("HrmNobodyServes", {'up{job="hrm-serving",instance="a"}': "0x20"}),
        ("HrmDegraded", {'hrm_alert_active{alert="degraded"}': "1x20"}),
        ("HrmEpochsDiffer", {'hrm_rollout_epoch{instance="a"}': "3x20", 'hrm_rollout_epoch{instance="b"}': "2x20"}),
    ],
)
def test_a_level_that_is_passed_is_told(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    assert fired(tmp_path, series, alert, {"8m": 1}) == ""


@promtool
@pytest.mark.parametrize(
    ("alert", "series"),
    [
        ("HrmLatencyCritical", runs(94, 100)),
        ("HrmLatencyWarning", runs(96, 100)),
        ("HrmMemoryCritical", {'process_resident_memory_bytes{pid="0"}': "3.9e9x20"}),
        ("HrmMemoryMitigation", {'process_resident_memory_bytes{pid="0"}': "3.4e9x20"}),
        ("HrmMemoryWarning", {'process_resident_memory_bytes{pid="0"}': "2.9e9x20"}),
        ("HrmErrorsCritical", failing(4)),
        ("HrmErrorsWarning", failing(0)),
        ("HrmPerformanceDrop", {'hrm_alert_active{alert="degraded"}': "1x20"}),
        ("HrmUnrecorded", {'hrm_alert_active{alert="unrecorded"}': "0x20"}),
    ],
)
def test_a_level_that_is_kept_is_not_told(tmp_path: Path, alert: str, series: dict[str, str]) -> None:
    assert fired(tmp_path, series, alert, {"8m": 0}) == ""


@promtool
@pytest.mark.parametrize(("before", "after", "count"), [(2, 4, 1), (4, 2, 1), (4, 5, 0)])
def test_a_depth_that_is_not_what_it_was_is_told(tmp_path: Path, before: int, after: int, count: int) -> None:
    assert fired(tmp_path, thinking(before, after), "HrmDepthUnstable", {"23h40m": count}) == ""


def test_every_alert_is_seen_firing_by_a_test() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parent.glob("test_*alerts.py"))
    text += Path(__file__).read_text(encoding="utf-8")
    for name in {re.sub("Burn.*", "Burn", alert["alert"]) for alert in alerts()}:
        assert name in text, name
