"""Commands of the page on their way to the service: whose they are, what they were given for, what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from desk_stack import Desk, desk
from test_backend_app import settings_of

from backend.app import create_app
from serving import keys
from serving.scopes import Scope


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with desk(tmp_path_factory.mktemp("desk"), traded=False) as running:
        yield running


def ask(running: Desk, command: str, key: str | None = None, **sent: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or running.token}"}
    url = f"{running.url}/api/rollout/{command}"
    return httpx.post(url, headers=headers, trust_env=False, timeout=60.0, **sent)  # type: ignore[arg-type]


def test_a_command_is_carried_out_once_at_the_version_it_was_given_for(running: Desk) -> None:
    version = running.rollout()["version"]
    after = ask(running, "promote", json={"reason": "looks right", "version": version})
    assert (after.status_code, after.json()["weight"]) == (200, 5)
    late = ask(running, "promote", json={"reason": "looks right", "version": version})
    assert (late.status_code, late.json()["code"]) == (412, "precondition_failed")
    assert running.rollout()["weight"] == 5
    ask(running, "pause", json={"version": running.rollout()["version"]})
    assert running.rollout()["paused"]
    ask(running, "resume", json={"version": running.rollout()["version"]})
    assert not running.rollout()["paused"]


def test_the_services_log_names_the_caller_and_its_scopes_judge(running: Desk) -> None:
    folder = running.settings.paths.state_dir
    info, text = keys.create(folder, "asha", (Scope.ROLLOUT_READ, Scope.ROLLOUT_PROMOTE))
    version = running.rollout()["version"]
    assert ask(running, "approve", text, json={"version": version}).json()["code"] == "scope_missing"
    assert ask(running, "abort", text, json={}).json()["code"] == "scope_missing"
    assert ask(running, "pause", text, json={"version": version, "reason": "lunch"}).status_code == 200
    headers = {"Authorization": f"Bearer {running.token}"}
    events = httpx.get(f"{running.service.url}/v1/rollout/events", headers=headers, trust_env=False).json()["events"]
    assert info.id in events[-1]["actor"]
    assert events[-1]["reason"] == "lunch"
    assert text not in str(events)
    ask(running, "resume", json={"version": running.rollout()["version"]})


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"no json", b'{"version": "7"}', b'{"version": -1}', b'{"version": 1, "force": true}']
)
def test_a_command_that_does_not_say_what_it_was_given_for_is_refused(running: Desk, body: bytes) -> None:
    before = running.rollout()["version"]
    refused = ask(running, "promote", content=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "request_invalid")
    assert running.rollout()["version"] == before


@pytest.mark.parametrize(
    ("body", "next_one"),
    [
        (b"stop!", "hrm/v2"),
        (b'{"version": 0, "reason": "seen enough"}', "hrm/v3"),
        (b'{"reason": 7}', "nan/v1"),
        (b"[" * 9000, None),
    ],
)
def test_no_abort_is_refused_for_its_words_or_for_what_it_was_given_for(
    running: Desk, body: bytes, next_one: str | None
) -> None:
    aborted = ask(running, "abort", content=body)
    assert (aborted.status_code, aborted.json()["phase"]) == (200, "rolled_back")
    if next_one is not None:
        assert running.post("/v1/rollout/start", champion="ppo/v1", challenger=next_one).status_code == 200


def test_what_the_service_refuses_is_told_as_it_said_it(running: Desk) -> None:
    version = running.rollout()["version"]
    refused = ask(running, "promote", json={"version": version})
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_transition")


def test_a_command_that_nobody_answers_says_that_nothing_was_done(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    nobody = settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": 9})})
    app = create_app(nobody)
    headers = {"Authorization": f"Bearer {(tmp_path / 'api_token').read_text().strip()}"}

    async def unheard() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            return await client.post("/api/rollout/abort", headers=headers)

    answer = asyncio.run(unheard())
    assert (answer.status_code, answer.json()["code"]) == (502, "service_unavailable")
    assert "nothing was done" in answer.json()["detail"]
