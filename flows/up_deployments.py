"""`python -m flows.up_deployments`: everything in prefect.yaml onto the Prefect server that the environment names.

The pool, the queue of what cannot wait, the deployments with their schedules and triggers, and the one automation that
prefect.yaml has no words for: a flow run that stopped saying that it lives is crashed, so that it holds no limit and
people are told. Doing it again changes nothing: a schedule that was paused, by a person or a rollback, stays paused.
HRM_ROOT is the checkout that workers run from; DESK_DATA (a file) or DESK_SYMBOL (as Fyers names it) is what schedules
look at, the synthetic market without them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from core.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
POOL, URGENT, URGENT_PRIORITY = "hrm", "critical", 1
SILENT_FOR = timedelta(seconds=120)  # four heartbeats (flows/up_prefect.py)
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = {
    f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended")
}


def silent_runs() -> AutomationCore:
    """A run that said it lives, then neither that nor how it ended: its process is gone. It is crashed."""
    return AutomationCore(
        name="hrm-silent-run-to-crashed",
        description="A flow run whose process is gone holds no limit and is told.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={HEARTBEAT},
            expect={HEARTBEAT, *ENDED},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=SILENT_FOR,
        ),
        actions=[
            ChangeFlowRunState(
                force=False,  # what has ended meanwhile stays as it ended
                name="Crashed",
                state=StateType.CRASHED,
                message=f"no heartbeat for {SILENT_FOR.total_seconds():g} s",
            )
        ],
    )


def deploy(root: Path = ROOT) -> None:
    """All of it. Raises ConfigError with what `prefect deploy` said."""
    if not (root / "prefect.yaml").is_file():
        raise ConfigError(f"{root}: no prefect.yaml; flows are deployed from a checkout", code="no_checkout")
    with get_client(sync_client=True) as client:
        _pool(client)
        _urgent_queue(client)
        paused = {(of, schedule.slug) for of, schedule in _schedules(client) if not schedule.active}
        _deployments(root)
        for of, schedule in _schedules(client):
            if (of, schedule.slug) in paused:
                client.update_deployment_schedule(of, schedule.id, active=False)
        _automation(client, silent_runs())


def _pool(client: SyncPrefectClient) -> None:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def _urgent_queue(client: SyncPrefectClient) -> None:
    """A worker takes what lies in it before anything else."""
    try:
        queue = client.read_work_queue_by_name(URGENT, work_pool_name=POOL)
        client.update_work_queue(queue.id, priority=URGENT_PRIORITY)
    except ObjectNotFound:
        client.create_work_queue(URGENT, priority=URGENT_PRIORITY, work_pool_name=POOL)


def _deployments(root: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = {"DESK_DATA": "", "DESK_SYMBOL": ""} | os.environ | {"HRM_ROOT": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode != 0:
        raise ConfigError(f"{root / 'prefect.yaml'}: prefect deploy said: {(done.stdout + done.stderr)[-1500:]}")


def _schedules(client: SyncPrefectClient) -> list[tuple[UUID, DeploymentSchedule]]:
    """Each with the deployment that it is of."""
    return [(one.id, schedule) for one in client.read_deployments() for schedule in one.schedules]


def _automation(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Left alone where it is as wanted: a change forgets which runs it is waiting for."""
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
    elif _content(found[0]) != _content(wanted):
        client.update_automation(found[0].id, wanted)


def _content(automation: AutomationCore) -> tuple[object, ...]:
    trigger, actions = automation.trigger, automation.actions
    return automation.description, automation.enabled, trigger.model_dump(exclude={"id"}), actions


if __name__ == "__main__":
    deploy()
