"""A person says yes before a challenger becomes champion: a form in Prefect's UI, the answer in the rollout's log.

    ask ──form──> yes   promote, only if the rollout is still at the version that the form showed; else ask again
               └─> no, or nobody within the time: RolloutError `not_approved`; nothing is promoted, the run fails, the
                   rollout stays as it is under the guard, and the next run of the same migration asks again

A deployed run is suspended while it waits: it holds no worker, and a restart of anything loses nothing. A run within
another one cannot be, and waits in its process, for a shorter time.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
from prefect import pause_flow_run, suspend_flow_run
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from pydantic import Field

from core.errors import RolloutError
from flows.phases import gate_rows
from flows.run_state import Run
from flows.service import RunningService, running_service
from serving import calls
from serving.calls import ServiceError
from serving.schemas_rollout import RolloutResponse

log = structlog.get_logger()

PAUSED_S = 1800  # half of a phase's own limit
SUSPENDED_S = 7 * 24 * 3600
POLL_S = 1  # between two looks whether somebody has answered
SOMETHING = r"\S"


class Approval(RunInput):
    """The form. Its answer is checked before the run goes on; who gave it is on record as they say they are."""

    name: str = Field(pattern=SOMETHING, max_length=80, description="Who decides. Goes on record with the promotion.")
    approve: bool = Field(default=False, description="Yes: it becomes the champion. No: nothing is promoted.")
    reason: str = Field(pattern=SOMETHING, max_length=300, description="Why, in words. Goes on record.")


Ask = Callable[[RolloutResponse], Approval]


def promote_when_approved(run: Run) -> None:
    """Ask, and promote the run's challenger. Raises RolloutError `not_approved`; nothing was promoted then."""
    model = run.result("hrm_training")["model"]
    with running_service(run) as service:
        decide(service, model, lambda state: _asked(state, _question(run, model, state)))


def decide(service: RunningService, model: str, ask: Ask) -> RolloutResponse:
    """Ask until the answer was given for the state that there is; nobody is asked once the model decides.

    Nor after a rollback: there is nothing to approve any more.
    """
    while True:
        state = service.rollout()
        if state.latched or state.champion == model:
            return state
        given = ask(state)
        if not given.approve:
            refusal = f"{given.name} refused {model}: {given.reason}; nothing was promoted"
            raise RolloutError(refusal, code="not_approved")
        try:
            approved = f"approved: {given.reason}"
            return service.client.call(
                calls.command("promote", reason=approved, actor=given.name, version=state.version)
            )
        except ServiceError as error:
            if error.code != "precondition_failed":
                raise
            log.warning("approval_outdated", given_by=given.name, version=state.version, remedy="asking again")


def _asked(state: RolloutResponse, question: str) -> Approval:
    """The form's answer; its key is the version, so that a run that comes back finds the answer it was given."""
    context = FlowRunContext.get()
    deployed = context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
    form = Approval.with_initial_data(description=question)
    key = f"promotion-{state.version}"
    if deployed and context is not None and context.flow_run is not None and not context.flow_run.parent_task_run_id:
        # A heartbeat that is heard after the suspension would have the run crashed (flows/up_deployments.py).
        EventsWorker.instance().wait_until_empty()
        return suspend_flow_run(wait_for_input=form, timeout=SUSPENDED_S, key=key)
    try:
        return pause_flow_run(wait_for_input=form, timeout=PAUSED_S, poll_interval=POLL_S, key=key)
    except FlowPauseTimeout:
        raise RolloutError(
            f"nobody answered within {PAUSED_S} s; nothing was promoted; run the migration again to be asked again",
            code="not_approved",
        ) from None


def _question(run: Run, model: str, state: RolloutResponse) -> str:
    """What is asked, with what the last gate measured."""
    record = run.phase("gradual_migration")
    rows = [] if record is None else gate_rows(record)
    measured = "\n".join(f"| {row['metric']} | {row['value']} | {row['limit']} | {row['verdict']} |" for row in rows)
    return (
        f"## Shall {model} replace {state.champion}?\n\n"
        f"It decides for {state.weight} % of the symbols; version {state.version} of the rollout, run {run.id}.\n\n"
        f"| metric | value | limit | verdict |\n|---|---|---|---|\n{measured}\n"
    )
