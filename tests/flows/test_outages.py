"""The whole desk as `hrm up` starts it, with parts taken away: nothing is lost, and the rollback needs none of them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.settings import load_settings
from flows.processes import free_port
from flows.service import RunningService
from flows.trading_day_models import publish_day_policy
from flows.up_model import RULE
from flows.up_prefect import Control, control_of
from flows.up_record import Record, read_record
from serving.client import ServiceClient
from serving.local_token import read_or_create_token
from trading.features import schema

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parent.parent.parent
CHALLENGER = "challenger/v1"
LOCKED_S = 30


@dataclass(frozen=True)
class Desk:
    state_dir: Path
    ports: dict[str, int]

    def hrm(self, command: str, *options: str) -> dict[str, Any]:
        """The answer of `hrm COMMAND`, which must succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "cli", "--state-dir", str(self.state_dir), command, *options, "--json"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("HRM_", "PREFECT_"))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def up(self) -> dict[str, Any]:
        return self.hrm("up", *(word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))))

    @property
    def record(self) -> Record:
        found = read_record(self.state_dir)
        assert found is not None
        return found

    @property
    def control(self) -> Control:
        return control_of(self.state_dir, self.ports["prefect"])

    def kill(self, name: str) -> None:
        part = self.record.part(name)
        assert part is not None
        psutil.Process(part.pid).kill()
        until(lambda: part.leader is None)

    def running(self) -> set[str]:
        return {part["part"] for part in self.hrm("ps")["parts"] if part["state"] == "running"}

    def completed(self, flow: str) -> int:
        wanted = {"flows": {"name": {"any_": [flow]}}, "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
        return len(self.control.ask("POST", "/flow_runs/filter", **wanted).json())

    def breaches(self) -> list[dict[str, Any]]:
        wanted = {"filter": {"event": {"prefix": ["hrm.serving."]}}}
        found: list[dict[str, Any]] = self.control.ask("POST", "/events/filter", **wanted).json()["events"]
        return found


def until(condition: Callable[[], bool], limit_s: float = 180) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    started = Desk(tmp_path_factory.mktemp("desk"), {name: free_port() for name in ("prefect", "service", "backend")})
    try:
        started.up()
        yield started
    finally:
        started.hrm("down")


@pytest.fixture(scope="module")
def service(desk: Desk) -> Iterator[RunningService]:
    settings = load_settings(environ={})
    publish_day_policy(desk.state_dir / "models", CHALLENGER, schema(settings.observation), span=32)
    url = f"http://127.0.0.1:{desk.ports['service']}"
    with ServiceClient(url, read_or_create_token(desk.state_dir)) as client:
        yield RunningService(client)


def test_everything_runs_and_a_second_time_nothing_is_started(desk: Desk) -> None:
    before = desk.record
    assert desk.running() == {"prefect", "service", "backend", "worker", "trade"}
    desk.up()
    assert desk.record == before


def test_a_rollback_needs_no_control_plane_which_hears_of_it_later_and_once(
    desk: Desk, service: RunningService
) -> None:
    service.start(RULE, CHALLENGER, "a test")
    desk.kill("prefect")
    desk.kill("worker")
    state = service.roll_back("while nobody listens")
    assert (state.latched, state.durable, state.champion, state.weight) == (True, True, RULE, 0)
    desk.up()
    confirmed = desk.state_dir / "rollbacks" / f"{state.version}.json"
    until(confirmed.exists)
    until(lambda: desk.completed("rollback") == 1)
    (event,) = desk.breaches()
    assert json.loads(confirmed.read_text())["event_id"] == event["id"]


def test_with_prefect_s_database_locked_events_wait_and_arrive(desk: Desk) -> None:
    event = {
        "event": "hrm.data.drift",
        "occurred": "2026-01-01T00:00:00Z",
        "id": "00000000-0000-4000-8000-000000000001",
        "resource": {"prefect.resource.id": "hrm.data.locked"},
        "payload": {"reason": "a test"},
    }
    with closing(sqlite3.connect(desk.control.home / "prefect.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        locked_at = time.monotonic()
        answer = subprocess.run(
            [sys.executable, "-c", POST, desk.control.url, json.dumps([event])],
            input=desk.control.auth,
            text=True,
            check=True,
            capture_output=True,
        )
        time.sleep(max(0.0, LOCKED_S - (time.monotonic() - locked_at)))  # the length of the outage is what is tried
        other.execute("ROLLBACK")
    assert answer.stdout.strip() == "204"
    until(lambda: desk.completed("rollout_pause") >= 1)


POST = """
import json, sys, httpx
auth = tuple(sys.stdin.read().split(":", 1))
print(httpx.post(sys.argv[1] + "/events", json=json.loads(sys.argv[2]), auth=auth, timeout=60).status_code)
"""


def test_what_was_started_is_gone_afterwards_and_comes_again(desk: Desk) -> None:
    marks = {desk.record.mark_of(part.name) for part in desk.record.parts}
    leaders = [part.leader for part in desk.record.parts]
    desk.hrm("down")
    assert not any(leader is not None and leader.is_running() for leader in leaders)
    assert not {process.pid for process in psutil.process_iter() if mark_of(process) in marks}
    assert desk.hrm("ps")["parts"] == []
    desk.up()
    assert desk.running() == {"prefect", "service", "backend", "worker", "trade"}


def mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("DESK_UP_MARK")
    except psutil.Error:
        return None
