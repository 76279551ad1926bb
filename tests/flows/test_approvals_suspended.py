"""A deployed promotion that waits for a person is no process: with a real Prefect server, worker and service.

The server is deployed to as `hrm up` does it, so that its automations watch, too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_migration import tiny_settings

from core.gates import Verdict
from core.settings import Settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.processes import Child, child, free_port, wait_until_healthy
from flows.run_state import PhaseRecord, Run, inputs_of, open_run
from flows.service import RunningService
from flows.service_process import service_process
from flows.trading_day_models import publish_day_policy
from flows.up_deployments import POOL, SILENT_FOR
from flows.up_prefect import WORKER, Control, clean_environment, control_of
from serving import calls
from serving.client import ServiceClient
from trading.features import schema

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parent.parent.parent
CHAMPION, WITHDRAWN, CHALLENGER = "ppo/v1", "hrm/withdrawn", "hrm/v1"
LIMIT_S = 240
PLAN = Plan.model_validate({"steps": [{"setWeight": 100}, {"pause": {}}]})
YES = {"name": "Asha", "approve": True, "reason": "better on every gate"}
NO = {"name": "Ravi", "approve": False, "reason": "expiry day"}
GATE = "[{metric: champion_is_hrm, min: 1, why: a test}]"
SERVER = ("-m", "uvicorn", "--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--host")


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@dataclass(frozen=True)
class Prefect:
    """The server, and workers that come and go."""

    control: Control
    env: dict[str, str]
    log: Path

    def worker(self) -> AbstractContextManager[Child]:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        return child("the worker", [*command, "--name", WORKER], log=self.log, env=self.env)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        answer = self.control.ask(method, path, **body)
        assert answer.is_success, answer.text
        return answer.json()

    @property
    def deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "/deployments/name/full_deployment/full-deployment")
        return found

    def asked(self, run: Run) -> str:
        """The id of a flow run that promotes, once it waits for a person and its process is gone."""
        place, parameters = f"/deployments/{self.deployment['id']}/create_flow_run", {"run_dir": str(run.folder)}
        begun: str = self.ask("POST", place, parameters=parameters)["id"]
        until(lambda: _works(begun))
        until(lambda: self.state(begun) == "Suspended")
        until(lambda: not _works(begun))
        return begun

    def state(self, flow_run: str) -> str:
        name: str = self.ask("GET", f"/flow_runs/{flow_run}")["state"]["name"]
        return name

    def answer(self, flow_run: str, form: dict[str, Any]) -> str:
        """ACCEPT, REJECT (the form is not filled in) or ABORT (nobody is asked any more)."""
        status: str = self.ask("POST", f"/flow_runs/{flow_run}/resume", run_input=form)["status"]
        return status


def _works(flow_run: str) -> bool:
    """Whether a process carries it out."""
    return any(_flow_run_of(process) == flow_run for process in psutil.process_iter())


def _flow_run_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID")
    except psutil.Error:  # it has just ended, or is somebody else's
        return None


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of a service that runs, whose champion is CHAMPION."""
    changes = {"HRM_GATES__FULL_DEPLOYMENT": GATE, "HRM_ROLLOUT__COOL_DOWN_S": "0"}
    settings = tiny_settings(tmp_path_factory.mktemp("approvals"), **changes)
    state_dir = settings.paths.state_dir
    for model in (CHAMPION, WITHDRAWN, CHALLENGER):
        publish_day_policy(state_dir / "models", model, schema(settings.observation), span=32)
    with closing(RolloutStore(state_dir / "rollout.db", settings.rollout)) as store:
        store.apply(Change(Command.INSTALL, time.time(), champion=CHAMPION))
    with service_process(settings) as service:
        port = int(service.url.rpartition(":")[2])
        yield settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": port})})


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[RunningService]:
    url = f"http://{settings.serving.host}:{settings.serving.port}"
    with ServiceClient(url, settings.paths.state_dir / "api_token") as client:
        yield RunningService(client)


@pytest.fixture(scope="module")
def prefect(settings: Settings) -> Iterator[Prefect]:
    state_dir = settings.paths.state_dir
    control, env = control_of(state_dir, free_port()), clean_environment(state_dir, settings.serving.port)
    command = [sys.executable, *SERVER, "127.0.0.1", "--port", str(control.port)]
    log, there = state_dir / "prefect.log", env | control.server_environment()
    with child("the Prefect server", command, log=log, env=there) as server:
        wait_until_healthy(server, control.is_up, LIMIT_S)
        deploying = [sys.executable, "-m", "flows.up_deployments"]
        done = subprocess.run(
            deploying, env=env | control.client_environment(), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield Prefect(control, env | control.worker_environment(), state_dir / "worker.log")


def run_at_its_last_step(settings: Settings, service: RunningService, model: str) -> Run:
    """Of a migration whose challenger has all the traffic, and is to be promoted."""
    run = open_run(inputs_of(settings, None, seed=len(model)))
    for phase, trained in (("ppo_baseline_capture", CHAMPION), ("hrm_training", model)):
        result = {"model": trained, "metrics": {}}
        run.record(PhaseRecord(phase=phase, verdict=Verdict.PASS, reason="", checks=(), result=result, seconds=1.0))
    service.client.call(calls.start(CHAMPION, model, plan=PLAN))
    until(lambda: service.rollout().phase == "canary")  # by the controller: nothing is asked of the shadow
    return run


def test_a_yes_for_a_model_that_was_taken_back_meanwhile_promotes_nothing(
    settings: Settings, service: RunningService, prefect: Prefect
) -> None:
    run = run_at_its_last_step(settings, service, WITHDRAWN)
    with prefect.worker():
        asked = prefect.asked(run)
        service.roll_back("while somebody thinks")
        assert prefect.answer(asked, YES) == "ACCEPT"
        until(lambda: prefect.state(asked) == "Completed")
    state, record = service.rollout(), run.phase("full_deployment")
    assert (state.champion, state.latched) == (CHAMPION, True)
    assert record is not None and record.verdict is Verdict.FAIL and "rolled back" in record.reason


def test_a_no_fails_the_run_and_a_yes_to_the_next_one_outlives_the_worker_and_is_taken_once(
    settings: Settings, service: RunningService, prefect: Prefect
) -> None:
    run = run_at_its_last_step(settings, service, CHALLENGER)
    with prefect.worker() as worker:
        refused = prefect.asked(run)
        before = service.rollout()
        assert prefect.answer(refused, NO) == "ACCEPT"
        until(lambda: prefect.state(refused) == "Failed")
        assert service.rollout().version == before.version
        asked, since = prefect.asked(run), time.monotonic()
        worker.process.kill()
    while time.monotonic() - since < 1.2 * SILENT_FOR.total_seconds():  # whoever is silent so long would be crashed
        assert prefect.state(asked) == "Suspended"
        time.sleep(2)
    assert prefect.deployment["global_concurrency_limit"]["active_slots"] == 0
    assert prefect.answer(asked, {"approve": True}) == "REJECT"  # neither who nor why
    assert service.rollout().version == before.version
    assert prefect.answer(asked, YES) == "ACCEPT"
    assert prefect.answer(asked, NO) == "ABORT"
    with prefect.worker():
        until(lambda: prefect.state(asked) == "Completed")
    assert prefect.answer(asked, YES) == "ABORT"
    promotions = [event for event in service.events() if event["command"] == "promote"]
    assert service.rollout().champion == CHALLENGER
    assert YES["name"] in promotions[-1]["reason"] and YES["reason"] in promotions[-1]["reason"]
    record = run.phase("full_deployment")
    assert record is not None and record.verdict is Verdict.PASS
