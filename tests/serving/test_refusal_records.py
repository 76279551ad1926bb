"""A command that is refused is on record: by whom, which, why and how often, and nobody waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError
from test_decisions import serve, until

from core.settings import Settings
from delivery.refusals import Refusal, RefusalLog
from delivery.transitions import Command
from flows.service_process import ServiceProcess
from serving.keys import create
from serving.refusals import WAITING_MAX, Refusals, command_of
from serving.scopes import Scope
from serving.service import Service


def told(process: ServiceProcess, actor: str, code: str) -> list[dict[str, Any]]:
    """Those of an actor and a code, once there is one."""
    headers = {"Authorization": f"Bearer {process.token}"}
    deadline = time.monotonic() + 60
    while True:
        found = httpx.get(f"{process.url}/v1/rollout/refusals", headers=headers, trust_env=False, timeout=60).json()
        mine = [one for one in found["refusals"] if (one["actor"], one["code"]) == (actor, code)]
        if mine:
            return mine
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_command_that_cannot_be_is_on_record(running: ServiceProcess, http: httpx.Client) -> None:
    version = http.get("/v1/rollout").json()["version"]
    assert http.post("/v1/rollout/promote", json={"reason": "now"}).status_code == 409
    found = told(running, "local", "invalid_transition")[-1]
    assert (found["command"], found["version"], found["times"]) == ("promote", version, 1)
    assert "cannot promote" in found["reason"]
    assert http.get("/v1/rollout/refusals", params={"after": found["seq"]}).status_code == 200
    assert http.get("/v1/rollout/refusals", params={"after": -1}).status_code == 422


def test_a_version_that_is_not_the_current_one_is_on_record(running: ServiceProcess, http: httpx.Client) -> None:
    refused = http.post("/v1/rollout/pause", headers={"If-Match": '"999999"'})
    assert refused.status_code == 412
    assert told(running, "local", "precondition_failed")[-1]["command"] == "pause"


def test_who_may_not_and_who_is_unknown_are_on_record(running: ServiceProcess, http: httpx.Client) -> None:
    key, secret = create(running.log.parent, "reader", (Scope.ROLLOUT_READ,))
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as stranger:
        reader = {"Authorization": f"Bearer {secret}"}
        deadline = time.monotonic() + 60
        while (answer := stranger.post("/v1/rollout/abort", headers=reader)).status_code == 401:
            assert time.monotonic() < deadline, "the key is not known yet"
            time.sleep(0.1)
        assert answer.status_code == 403
        assert stranger.post("/v1/rollout/start", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert stranger.get("/v1/rollout").status_code == 401  # no command
    unknown = told(running, "unknown", "unauthorized")
    assert {one["command"] for one in unknown} <= {"abort", "start"}
    assert "127.0.0.1" in unknown[-1]["reason"]
    assert told(running, f"key:{key.id}", "scope_missing")[-1]["command"] == "abort"


@pytest.mark.parametrize(
    ("method", "path", "command"),
    [
        ("POST", "/v1/rollout/abort", Command.ABORT),
        ("GET", "/v1/rollout/abort", None),
        ("POST", "/v1/rollout/", None),
        ("POST", "/v1/rollout/events", None),
        ("POST", "/v1/decisions", None),
        ("POST", "abort", None),
    ],
)
def test_commands_are_known_by_method_and_path(method: str, path: str, command: Command | None) -> None:
    assert command_of({"method": method, "path": path}) is command


def test_the_same_refusal_is_a_row_a_moment_with_its_count(settings: Settings) -> None:
    async def story(service: Service) -> None:
        for _ in range(50):
            service.refusals.at_the_door(Command.ABORT, "unauthorized", "no", {})
            await asyncio.sleep(0.001)
        rows: list[Refusal] = []

        def all_written() -> bool:
            rows[:] = service.refusals.read(0)
            return sum(row.times for row in rows) == 50

        await until(all_written)
        assert len(rows) <= 3
        assert {(row.actor, row.command) for row in rows} == {("unknown", "abort")}

    serve(settings, story)


def test_the_last_ones_are_written_at_the_end(settings: Settings, tmp_path: Path) -> None:
    async def story(service: Service) -> None:
        for command in (Command.ABORT, Command.START, Command.PAUSE):
            service.refusals.at_the_door(command, "scope_missing", "no", {})
            await asyncio.sleep(0.05)

    serve(settings, story)
    with closing(sqlite3.connect(settings.paths.state_dir / "rollout.db")) as connection:
        assert connection.execute("SELECT count(*) FROM refusal").fetchone() == (3,)


class Stuck(RefusalLog):
    """Of a database that refuses until it is mended."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.store.engine)
        self.broken = True

    def append(self, refused: Any) -> None:
        if self.broken:
            raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        super().append(refused)


def test_while_the_database_refuses_so_many_are_kept_and_no_more(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.refusals.PAUSE_S", 0.05)

    async def story(service: Service) -> None:
        stuck = Stuck(service)
        refusals = Refusals(stuck, lambda: service.live, service.spawn)
        for n in range(3 * WAITING_MAX):
            refusals.at_the_door(Command.ABORT, f"c{n}", "no", {})
        await asyncio.sleep(0.2)
        stuck.broken = False
        await until(lambda: len(stuck.read()) == WAITING_MAX)
        assert [row.code for row in stuck.read()] == [f"c{n}" for n in range(WAITING_MAX)]

    serve(settings, story)
