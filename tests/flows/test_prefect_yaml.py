"""What a real server makes of prefect.yaml: Prefect ignores keys it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client

from flows.up_deployments import _content, silent_runs
from flows.up_prefect import HEARTBEAT_S

ROOT = Path(__file__).parent.parent.parent
FLOWS = {
    "ppo_baseline_capture",
    "hrm_training",
    "parallel_validation",
    "gradual_migration",
    "full_deployment",
    "rollback",
    "migration",
    "retraining",
    "drift_check",
    "registry_sync",
    "rollback_drill",
    "sweep",
    "walk_forward",
    "rollout_pause",
    "alert",
}
URGENT = {"rollback", "rollout_pause", "alert"}
BARS = "/bars/of the desk.parquet"


def deploy(server: dict[str, str]) -> None:
    env = server | {"PYTHONPATH": str(ROOT), "PREFECT_LOGGING_LEVEL": "ERROR", "DESK_DATA": BARS}
    done = subprocess.run(
        [sys.executable, "-m", "flows.up_deployments"], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def api(prefect_server: dict[str, str]):
    """The server's API after a deployment of everything."""
    deploy(prefect_server)
    user, password = prefect_server["PREFECT_API_AUTH_STRING"].split(":", 1)
    url = prefect_server["PREFECT_API_URL"]
    with httpx.Client(base_url=url, auth=(user, password), trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def deployments(api: httpx.Client) -> dict[str, dict[str, Any]]:
    """By the name of the flow."""
    flows = {flow["id"]: flow["name"] for flow in api.post("/flows/filter", json={}).json()}
    return {flows[one["flow_id"]]: one for one in api.post("/deployments/filter", json={}).json()}


@pytest.fixture(scope="module")
def automations(api: httpx.Client) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in api.post("/automations/filter", json={}).json()}


def test_every_flow_is_deployed_from_the_checkout(deployments):
    assert set(deployments) == FLOWS
    for name, deployment in deployments.items():
        file, function = deployment["entrypoint"].split(":")
        assert function == name
        assert (ROOT / file).is_file()
        assert deployment["work_pool_name"] == "hrm"
        assert deployment["enforce_parameter_schema"] is True
        step = deployment["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]
        assert Path(step["directory"]).samefile(ROOT)


def test_what_cannot_wait_is_urgent_and_unlimited(api, deployments):
    for name, deployment in deployments.items():
        limit = deployment["global_concurrency_limit"]
        if name in URGENT:
            assert deployment["work_queue_name"] == "critical"
            assert limit is None
        else:
            assert deployment["work_queue_name"] == "default"
            assert limit["limit"] == 1
            wanted = "ENQUEUE" if name == "retraining" else "CANCEL_NEW"  # bars that arrive meanwhile are not lost
            assert deployment["concurrency_options"]["collision_strategy"] == wanted
    assert api.get("/work_pools/hrm/queues/critical").json()["priority"] == 1


def test_retraining_and_the_drill_run_in_india_while_markets_are_closed(deployments):
    crons = {
        "retraining": {"30 16 * * 1-5", "0 7 * * 6"},
        "rollback_drill": {"0 10 * * 0"},
        "drift_check": {"0 16 * * 1-5"},
        "registry_sync": {"*/10 * * * *"},
    }
    for name, wanted in crons.items():
        schedules = deployments[name]["schedules"]
        assert {one["schedule"]["cron"] for one in schedules} == wanted
        assert all(one["active"] and one["schedule"]["timezone"] == "Asia/Kolkata" for one in schedules)
    assert all(not one["schedules"] for name, one in deployments.items() if name not in crons)


def test_schedules_look_at_what_the_desk_trades(deployments, automations):
    for name in ("retraining", "drift_check"):
        looked_at = deployments[name]["parameters"]
        assert (looked_at["data"], looked_at["symbol"]) == (BARS, "")
    (arrived,) = automations["hrm-data-arrived-to-retraining"]["actions"]
    assert arrived["parameters"]["symbol"] is None  # what arrived, whatever is usually fetched


def test_a_deployed_promotion_asks_a_person(deployments):
    asking = {name for name, one in deployments.items() if one["parameters"].get("approval") is True}
    assert asking == {"migration", "full_deployment"}


@pytest.mark.parametrize(
    ("name", "flow", "match", "expect", "parameters"),
    [
        (
            "hrm-slo-breach-to-rollback",
            "rollback",
            {"prefect.resource.id": "hrm.serving.*"},
            {"hrm.serving.slo-breach"},
            {"reason": "event.payload.reason", "event_id": "event.id | string", "version": "event.payload.version"},
        ),
        (
            "hrm-drift-to-pause",
            "rollout_pause",
            {"prefect.resource.id": "hrm.data.*"},
            {"hrm.data.drift"},
            {"reason": "event.payload.reason", "event_id": "event.id | string"},
        ),
        (
            "hrm-data-arrived-to-retraining",
            "retraining",
            {"prefect.resource.id": "hrm.data.*"},
            {"hrm.data.arrived"},
            {"data": "event.payload.file"},
        ),
        (
            "hrm-action-failed-to-alert",
            "alert",
            {
                "prefect.resource.id": "prefect.automation.*",
                "prefect.resource.name": ["hrm-*-to-rollback", "hrm-*-to-pause", "hrm-*-to-retraining"],
            },
            {"prefect.automation.action.failed"},
            {"title": "event.resource.name", "text": "event.payload.reason", "event_id": "event.id | string"},
        ),
        (
            "hrm-run-failed-to-alert",
            "alert",
            {"prefect.resource.id": "prefect.flow-run.*"},
            {"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
            {"title": "event.resource.name", "event_id": "event.id | string"},
        ),
    ],
)
def test_an_event_starts_its_flow_at_once(automations, deployments, name, flow, match, expect, parameters):
    automation = automations[name]
    trigger = automation["trigger"]
    assert automation["enabled"]
    assert (trigger["posture"], trigger["threshold"], trigger["within"]) == ("Reactive", 1, 0)
    assert trigger["match"] == match
    assert set(trigger["expect"]) == expect
    assert trigger["for_each"] == ["prefect.resource.id"]
    (action,) = automation["actions"]
    assert action["deployment_id"] == deployments[flow]["id"]
    assert {key: value for key, value in parameters.items() if value not in str(action["parameters"][key])} == {}


def test_an_alert_of_failed_runs_is_not_about_alerts(automations, deployments):
    related = automations["hrm-run-failed-to-alert"]["trigger"]["match_related"]
    assert related == {"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.hrm"}
    assert {name for name, one in deployments.items() if "hrm" not in one["tags"]} == {"alert"}


def test_a_run_that_stopped_saying_that_it_lives_is_crashed(automations):
    automation = automations["hrm-silent-run-to-crashed"]
    trigger = automation["trigger"]
    assert (trigger["posture"], trigger["after"]) == ("Proactive", ["prefect.flow-run.heartbeat"])
    assert {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed"} < set(trigger["expect"])
    assert trigger["within"] > 2 * HEARTBEAT_S
    (action,) = automation["actions"]
    assert (action["type"], action["state"]) == ("change-flow-run-state", "CRASHED")


def test_deploying_again_leaves_the_automation_of_silent_runs_alone(automations):
    with get_client(sync_client=True) as client:
        (found,) = client.read_automations_by_name("hrm-silent-run-to-crashed")
    assert _content(found) == _content(silent_runs())


def test_deploying_again_resumes_nothing_that_was_paused(api, deployments, prefect_server):
    """And pauses nothing else: two deployments have a schedule of the same name."""
    place = f"/deployments/{deployments['retraining']['id']}"
    weekly = next(one for one in deployments["retraining"]["schedules"] if one["slug"] == "weekly")
    api.patch(f"{place}/schedules/{weekly['id']}", json={"active": False}).raise_for_status()
    deploy(prefect_server)
    found = {one["name"]: one["schedules"] for one in api.post("/deployments/filter", json={}).json()}
    assert {one["slug"]: one["active"] for one in found["retraining"]} == {"after-the-close": True, "weekly": False}
    assert [one["active"] for one in found["rollback-drill"]] == [True]
