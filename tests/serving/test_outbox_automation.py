"""The whole chain, as deployed: guard, outbox, Prefect's automation, a worker, the rollback flow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from live_prefect import Prefect, let_the_guard_roll_back, until
from tiny_models import publish_all, settings_in

from flows.processes import child
from flows.service_process import ServiceProcess, service_process

ROOT = Path(__file__).parent.parent.parent
PREFECT = (sys.executable, "-m", "prefect", "--no-prompt")


@pytest.mark.slow
def test_a_rollback_by_the_guard_starts_the_deployed_flow_which_confirms_it(tmp_path: Path) -> None:
    server, folder = Prefect(tmp_path / "prefect"), tmp_path / "service"
    publish_all(folder / "models")
    settings = settings_in(folder)
    with (
        server.running(),
        service_process(settings, champion="ppo/v1", environ=server.environ) as service,
    ):
        env = worker_environment(server, folder, service)
        for arguments in (
            ["work-pool", "create", "hrm", "--type", "process"],
            ["work-queue", "create", "critical", "--pool", "hrm", "--priority", "1"],
            ["deploy", "--name", "rollback"],
        ):
            subprocess.run([*PREFECT, *arguments], env=env, cwd=ROOT, check=True, capture_output=True)
        worker = [*PREFECT, "worker", "start", "--pool", "hrm", "--type", "process", "--name", "test"]
        with child("the worker", worker, log=tmp_path / "worker.log", env=env):
            state = let_the_guard_roll_back(service)
            record = folder / "rollbacks" / f"{state['version']}.json"
            until(record.exists, 120)
            until(lambda: completed_runs(server) == 1)
            (event,) = server.events()
    confirmed = json.loads(record.read_text())
    assert confirmed["event_id"] == event["id"]
    assert (confirmed["reason"], confirmed["champion"], confirmed["weight"]) == ("error_rate_exceeded", "ppo/v1", 0)


def worker_environment(server: Prefect, folder: Path, service: ServiceProcess) -> dict[str, str]:
    return server.environ | {
        "PATH": os.environ["PATH"],
        "PREFECT_HOME": str(server.home),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HRM_ROOT": str(ROOT),
        "HRM_PATHS__STATE_DIR": str(folder),
        "HRM_SERVING__PORT": str(httpx.URL(service.url).port),
    }


def completed_runs(server: Prefect) -> int:
    user, password = server.password.split(":")
    body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    answer = httpx.post(f"{server.url}/flow_runs/filter", json=body, auth=(user, password), trust_env=False)
    return len(answer.raise_for_status().json())
