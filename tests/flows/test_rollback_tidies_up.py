"""What the deployed rollback flow leaves behind: positions on record, retraining that rests, a registry that follows.

Against a real Prefect server, a real service whose rollback is over already, and ledgers with positions in them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from core.settings import Settings, load_settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, RolloutState
from flows import rollback_tidying
from flows.drill_models import publish_policy
from flows.processes import free_port
from flows.rollback import rollback
from flows.rollback_tidying import follow_in_registry, pause_retraining
from flows.service_process import service_process
from trading.costs import flat_costs
from trading.gateway import OrderGateway
from trading.ledger import Ledger, Order
from trading.ownership import Handover, Owner
from trading.paper import PaperBroker

TAKEN, OLD = "challenger:hrm/v1", "champion:ppo/v1"
HANDOVER = {"default": "adopt", "triggers": {"drawdown_exceeded": "reduce_only"}, "symbols": {"BANKNIFTY": "freeze"}}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    for model in ("ppo/v1", "hrm/v1"):
        publish_policy(tmp_path / "models", model)
    return load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})


@pytest.fixture
def prefect(prefect_server: dict[str, str]) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def deployments(prefect: SyncPrefectClient) -> Iterator[dict[str, Any]]:
    """Ids by flow, of deployments that no worker runs."""
    made = {}
    for flow, crons in {"retraining": ("30 16 * * 1-5", "0 7 * * 6"), "registry_sync": ()}.items():
        schedules = [DeploymentScheduleCreate(schedule=CronSchedule(cron=cron), active=True) for cron in crons]
        made[flow] = prefect.create_deployment(prefect.create_flow_from_name(flow), "of-a-test", schedules=schedules)
    yield made
    for each in made.values():
        prefect.delete_deployment(each)


def taken_back(settings: Settings) -> RolloutState:
    """A challenger with half of the symbols, rolled back by its drawdown, as a service does it by itself."""
    store = RolloutStore(settings.paths.state_dir / "rollout.db", settings.rollout)
    plan = Plan.model_validate({"steps": [{"setWeight": 50}, {"pause": {}}], "handover": HANDOVER})
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1", plan=plan))
    store.apply(Change(Command.PROMOTE, time.time()))
    state = store.apply(Change(Command.ROLLBACK, time.time(), "it loses", trigger="drawdown_exceeded"))
    store.close()
    return state


def hold(ledger: Ledger, settings: Settings, units: dict[tuple[str, str], int]) -> OrderGateway:
    """So many units, by symbol and owner."""
    gateway = OrderGateway(ledger, settings.trading)
    for (symbol, owner), count in units.items():
        order = Order(f"{symbol}:1", symbol, float(count), owner, epoch=0, at_ns=1, bar_ns=1)
        gateway.submit(order)
        PaperBroker(gateway, flat_costs(1.0)).fill(order, 100.0, bar_ns=1)
    return gateway


def rolled_back(settings: Settings, state: RolloutState, monkeypatch: pytest.MonkeyPatch, times: int) -> dict[str, Any]:
    """The flow, so many times, as the automation starts it."""
    with service_process(settings) as service:
        monkeypatch.setenv("HRM_SERVING__PORT", str(httpx.URL(service.url).port))
        for _ in range(times):
            rollback("it loses", event_id="event-1", version=state.version)
    kept = settings.paths.state_dir / "rollbacks" / f"{state.version}.json"
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def said(prefect: SyncPrefectClient) -> str:
    """By the newest artifact."""
    wanted = {"artifacts": {"key": {"any_": ["rollback"]}}, "sort": "CREATED_DESC", "limit": 1}
    (found,) = prefect._client.post("/artifacts/filter", json=wanted).json()
    return str(found["data"])


def test_positions_of_the_model_that_was_taken_back_are_on_record_whoever_has_them_by_now(
    settings: Settings, prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = taken_back(settings)
    live, paper = (Ledger(settings.paths.state_dir / name) for name in ("live.db", "paper.db"))
    gateway = hold(live, settings, {("NIFTY", TAKEN): 65, ("BANKNIFTY", TAKEN): -30, ("SENSEX", OLD): 20})
    hold(paper, settings, {("NIFTY", TAKEN): 2})
    gateway.hand_over(Handover("NIFTY", Owner.parse(OLD), "reduce_only", epoch=state.epoch, at_ns=2))
    live.close()
    paper.close()
    (settings.paths.state_dir / "live-paper.db").write_bytes(b"no ledger" * 1000)
    record = rolled_back(settings, state, monkeypatch, times=1)
    assert record["trigger"] == "drawdown_exceeded"
    names = ("symbol", "position", "mode", "owner", "ledger")
    assert [tuple(row[name] for name in names) for row in record["handover"]] == [
        ("BANKNIFTY", -30, "freeze", TAKEN, "live.db"),  # waits for the next decision about it
        ("NIFTY", 65, "reduce_only", OLD, "live.db"),
        ("NIFTY", 2, "reduce_only", TAKEN, "paper.db"),
    ]
    (problem,) = record["unread"]
    assert problem.startswith("live-paper.db: ")
    text = said(prefect)
    assert f"| NIFTY | +65 | reduce_only | live.db | {OLD} |\n| NIFTY | +2 |" in text
    assert problem in text


def test_retraining_rests_until_a_person_resumes_it_and_the_registry_follows_once(
    settings: Settings,
    prefect_server: dict[str, str],
    prefect: SyncPrefectClient,
    deployments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = taken_back(settings)
    rolled_back(settings, state, monkeypatch, times=2)
    schedules = prefect.read_deployment(deployments["retraining"]).schedules
    assert [one.active for one in schedules] == [False, False]
    commands = [line.strip("`") for line in said(prefect).splitlines() if "retraining/of-a-test" in line]
    assert len(commands) == 2
    for command in commands:
        subprocess.run([sys.executable, "-m", *command.split()], env=prefect_server, check=True, capture_output=True)
    assert [one.active for one in prefect.read_deployment(deployments["retraining"]).schedules] == [True, True]
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployments["registry_sync"]]))
    assert len(prefect.read_flow_runs(flow_run_filter=wanted)) == 1


def test_where_nothing_is_deployed_that_is_said_and_nothing_fails(
    prefect: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rollback_tidying, "RETRAINING", "no_such_flow")
    monkeypatch.setattr(rollback_tidying, "REGISTRY", "no_such_flow")
    assert pause_retraining() == ["No scheduled retraining is deployed: nothing was paused."]
    follow_in_registry(7)
    told = capsys.readouterr().out
    assert "retraining_not_paused" in told and "registry_sync_not_started" in told


def test_a_prefect_that_does_not_answer_is_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        (text,) = pause_retraining()
        follow_in_registry(7)
    assert text.startswith("Scheduled retraining was not paused: ConnectError.")
    told = capsys.readouterr().out
    assert "retraining_not_paused" in told and "registry_sync_not_started" in told
