"""What a rollback leaves to do in Prefect once it is on record: scheduled retraining rests, the registry follows.

Neither is waited for by anybody who trades, and whatever Prefect refuses is a line of the log: the rollback stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.responses import DeploymentResponse

RETRAINING, REGISTRY = "retraining", "registry_sync"  # flows
WITHIN_S = 10.0  # of one request

log = structlog.get_logger()


def pause_retraining() -> list[str]:
    """Pause what starts retraining by the clock, until a person resumes it; in words, with the commands for that.

    Bars that arrive, and people, still start one: it offers its model, and a rollout waits for the cool-down. Doing it
    again changes nothing. Raises nothing.
    """
    try:
        with _deployments(RETRAINING) as (client, found):
            commands = [command for one in found for command in _paused(client, one)]
    except Exception as error:  # whatever Prefect says: the rollback is in force, and on record
        log.warning("retraining_not_paused", why=f"{type(error).__name__}: {error}")
        return [f"Scheduled retraining was not paused: {type(error).__name__}. Do it by hand, in Prefect's UI."]
    if not commands:
        log.warning("retraining_not_paused", why="no deployment of it has a schedule")
        return ["No scheduled retraining is deployed: nothing was paused."]
    log.warning("retraining_paused", resume=commands)
    return ["Scheduled retraining is paused. Once it is clear why this happened:", *(f"`{each}`" for each in commands)]


def _paused(client: SyncPrefectClient, deployment: DeploymentResponse) -> Iterator[str]:
    """How each schedule is resumed."""
    for schedule in deployment.schedules:
        if schedule.active:
            client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        yield f"prefect deployment schedule resume {RETRAINING}/{deployment.name} {schedule.id}"


def follow_in_registry(version: int) -> None:
    """Let the aliases follow now, in a run of its own: MLflow may take minutes, and is no part of a rollback.

    Once for each `version` of the rollout's log. Raises nothing: the next scheduled run follows, too.
    """
    try:
        with _deployments(REGISTRY) as (client, found):
            for one in found:
                client.create_flow_run_from_deployment(one.id, idempotency_key=f"rollback-{one.id}-{version}")
        problem = "" if found else "it is not deployed"
    except Exception as error:  # as above
        problem = f"{type(error).__name__}: {error}"
    if problem:
        log.warning("registry_sync_not_started", why=problem, effect="aliases follow with its next run")


@contextmanager
def _deployments(flow: str) -> Iterator[tuple[SyncPrefectClient, list[DeploymentResponse]]]:
    with get_client(httpx_settings={"timeout": WITHIN_S}, sync_client=True) as client:
        yield client, client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
