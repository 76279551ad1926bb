"""A real Prefect server that can be absent, and a service whose guard has a reason to roll back."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import prefect

from flows.control_plane import PRIVATE
from flows.drill_models import FAULT_LEVEL
from flows.processes import child, free_port, wait_until_healthy
from flows.service_process import ServiceProcess

LIMIT_S = 60.0


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@dataclass(frozen=True)
class Prefect:
    """A Prefect server that has its address and password before it runs."""

    home: Path
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: f"hrm:{secrets.token_urlsafe(16)}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environ(self) -> dict[str, str]:
        return {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.password}

    @property
    def posts(self) -> int:
        """Requests with events that the server accepted, by its own access log."""
        return (self.home / "log").read_text().count('"POST /api/events HTTP/1.1" 204')

    @contextmanager
    def running(self) -> Iterator[None]:
        folder = str(Path(prefect.__file__).parent)
        application = ["--app-dir", folder, "--factory", "prefect.server.api.server:create_app", "--lifespan", "on"]
        command = [sys.executable, "-m", "uvicorn", *application, "--host", "127.0.0.1", "--port", str(self.port)]
        env = PRIVATE | {
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_API_AUTH_STRING": self.password,
            "PREFECT_SERVER_LOGGING_LEVEL": "INFO",  # for the access log
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "1",  # seen at once, not after five seconds
        }
        with child("the Prefect server", command, log=self.home / "log", env=env) as server:
            wait_until_healthy(server, self._healthy, 120)
            yield

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def events(self) -> list[dict[str, Any]]:
        """What the server knows about us, oldest first."""
        user, password = self.password.split(":")
        body = {"filter": {"event": {"prefix": ["hrm.serving."]}, "order": "ASC"}}
        answer = httpx.post(f"{self.url}/events/filter", json=body, auth=(user, password), trust_env=False)
        events: list[dict[str, Any]] = answer.raise_for_status().json()["events"]
        return events


def call(service: ServiceProcess, path: str, **body: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {service.token}"}
    answer = httpx.post(service.url + path, json=body, headers=headers, trust_env=False, timeout=60)
    result: dict[str, Any] = answer.raise_for_status().json()
    return result


def decide(service: ServiceProcess, level: float) -> dict[str, Any]:
    account = {"features": [0.0, 0.0], "position": 0}
    accounts = {"champion": account, "challenger": account}
    return call(service, "/v1/decisions", symbol="A", bars=[[level] * 2] * 4, complexity=0.1, accounts=accounts)


def let_the_guard_roll_back(service: ServiceProcess) -> dict[str, Any]:
    call(service, "/v1/rollout/start", champion="ppo/v1", challenger="nan/v1")
    headers = {"Authorization": f"Bearer {service.token}"}

    def latched() -> bool:
        decide(service, FAULT_LEVEL + 1)
        return bool(state()["latched"] and state()["durable"])

    def state() -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{service.url}/v1/rollout", headers=headers, trust_env=False).json()
        return answer

    until(latched)
    return state()
