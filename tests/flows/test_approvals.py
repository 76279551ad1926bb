"""A promotion that a person approves: for the state they saw, on record, and nothing without a yes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flow_runs import resume_flow_run
from pydantic import ValidationError

from core.errors import RolloutError
from core.settings import load_settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows import approvals
from flows.approvals import Approval, decide
from flows.drill_models import publish_policy
from flows.service import RunningService
from flows.service_process import service_process
from serving import calls
from serving.client import ServiceClient
from serving.schemas_rollout import RolloutResponse

CHAMPION, CHALLENGER = "ppo/v1", "hrm/v1"
YES = Approval(name="Asha", approve=True, reason="better on every gate")
NO = Approval(name="Asha", approve=False, reason="expiry day")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    """A service whose challenger waits for its promotion at full weight."""
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})
    for model in (CHAMPION, CHALLENGER):
        publish_policy(tmp_path / "models", model)
    plan = Plan.model_validate({"steps": [{"setWeight": 100}, {"pause": {}}]})
    store = RolloutStore(tmp_path / "rollout.db", settings.rollout)
    store.apply(Change(Command.START, time.time(), champion=CHAMPION, challenger=CHALLENGER, plan=plan))
    store.apply(Change(Command.PROMOTE, time.time()))
    store.close()
    with service_process(settings) as process, ServiceClient(process.url, process.token) as client:
        yield RunningService(client)


def test_a_yes_promotes_and_is_on_record_with_who_gave_it(service: RunningService) -> None:
    asked: list[int] = []

    def ask(state: RolloutResponse) -> Approval:
        asked.append(state.version)
        return YES

    assert decide(service, CHALLENGER, ask).champion == CHALLENGER
    last = service.events()[-1]
    assert last["command"] == "promote"
    assert YES.reason in last["reason"]
    assert YES.name in last["reason"] + last["actor"]
    assert decide(service, CHALLENGER, ask).champion == CHALLENGER  # a run that comes back asks nobody
    assert len(asked) == 1


def test_a_no_promotes_nothing(service: RunningService) -> None:
    before = service.rollout().version
    with pytest.raises(RolloutError, match="Asha refused hrm/v1: expiry day; nothing was promoted") as refused:
        decide(service, CHALLENGER, lambda _: NO)
    assert refused.value.code == "not_approved"
    assert service.rollout().version == before


def test_a_yes_to_a_state_that_has_changed_is_asked_for_again(service: RunningService) -> None:
    asked: list[int] = []

    def ask(state: RolloutResponse) -> Approval:
        asked.append(state.version)
        if len(asked) == 1:  # somebody acts while the form is open
            for command in ("pause", "resume"):
                service.client.call(calls.command(command))  # type: ignore[arg-type]  # both are commands
        return YES

    assert decide(service, CHALLENGER, ask).champion == CHALLENGER
    assert asked == [asked[0], asked[0] + 2]


def test_a_rollback_while_the_form_is_open_leaves_nothing_to_approve(service: RunningService) -> None:
    def ask(_: RolloutResponse) -> Approval:
        service.roll_back("while somebody thinks")
        return YES

    assert decide(service, CHALLENGER, ask).champion == CHAMPION
    assert service.rollout().latched


@pytest.mark.parametrize("changes", [{"name": " "}, {"reason": ""}, {"name": "x" * 81}])
def test_a_form_says_who_and_why(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Approval.model_validate(YES.model_dump() | changes)


@flow(name="asking", persist_result=False)
def asking(version: int) -> dict[str, Any]:
    return approvals._asked(RolloutResponse.model_construct(version=version), "## Shall it?").model_dump()


def paused_run(limit_s: float = 60) -> Any:
    deadline = time.monotonic() + limit_s
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
        while time.monotonic() < deadline:
            runs = client.read_flow_runs(flow_run_filter=wanted)
            if runs:
                return runs[0].id
            time.sleep(0.1)
    raise AssertionError("nobody was asked")


def test_the_form_is_answered_in_prefect(prefect_server: dict[str, str]) -> None:
    refused: list[bool] = []

    def answer() -> None:
        run = paused_run()
        for form in ({"approve": True}, YES.model_dump()):  # the first says neither who nor why
            try:
                resume_flow_run(run, run_input=form)
                refused.append(False)
            except (RuntimeError, PrefectHTTPStatusError):
                refused.append(True)

    person = threading.Thread(target=copy_context().run, args=(answer,))  # the settings are of the context
    person.start()
    answered = asking(version=7)
    person.join(60)
    assert answered == YES.model_dump()
    assert refused == [True, False]


def test_without_an_answer_nothing_is_approved(prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "PAUSED_S", 1)
    with pytest.raises(RolloutError, match="nobody answered within 1 s; nothing was promoted"):
        asking(version=8)
