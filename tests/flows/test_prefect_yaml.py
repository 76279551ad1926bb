"""What `prefect deploy --all` makes of prefect.yaml on a real server: Prefect ignores keys it does not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

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
}


@pytest.fixture(scope="module")
def api(prefect_server: dict[str, str]):
    """The server's API after a deployment of everything."""
    env = prefect_server | {"HRM_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    for arguments in (
        ["work-pool", "create", "hrm", "--type", "process"],
        ["work-queue", "create", "critical", "--pool", "hrm", "--priority", "1"],
        ["--no-prompt", "deploy", "--all"],
    ):
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    user, password = env["PREFECT_API_AUTH_STRING"].split(":", 1)
    with httpx.Client(base_url=env["PREFECT_API_URL"], auth=(user, password), trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def deployments(api: httpx.Client) -> dict[str, dict[str, Any]]:
    """By the name of the flow."""
    flows = {flow["id"]: flow["name"] for flow in api.post("/flows/filter", json={}).json()}
    return {flows[one["flow_id"]]: one for one in api.post("/deployments/filter", json={}).json()}


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


def test_only_the_rollback_is_urgent_and_unlimited(deployments):
    for name, deployment in deployments.items():
        limit = deployment["global_concurrency_limit"]
        if name == "rollback":
            assert deployment["work_queue_name"] == "critical"
            assert limit is None
        else:
            assert deployment["work_queue_name"] == "default"
            assert limit["limit"] == 1
            assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_retraining_runs_on_saturdays_in_india(deployments):
    (schedule,) = deployments["retraining"]["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["cron"] == "0 7 * * 6"
    assert schedule["schedule"]["timezone"] == "Asia/Kolkata"
    assert all(not one["schedules"] for name, one in deployments.items() if name != "retraining")


def test_a_breach_of_an_slo_starts_the_rollback(api, deployments):
    (automation,) = api.post("/automations/filter", json={}).json()
    trigger = automation["trigger"]
    assert automation["enabled"]
    assert trigger["posture"] == "Reactive"
    assert trigger["expect"] == ["hrm.serving.slo-breach"]
    assert trigger["match"] == {"prefect.resource.id": "hrm.serving.*"}
    assert trigger["for_each"] == ["prefect.resource.id"]
    (action,) = automation["actions"]
    assert action["deployment_id"] == deployments["rollback"]["id"]
    assert action["parameters"]["reason"] == {"template": "{{ event.payload.reason }}", "__prefect_kind": "jinja"} or (
        action["parameters"]["reason"] == "{{ event.payload.reason }}"
    )
    assert "event.id | string" in str(action["parameters"]["event_id"])
