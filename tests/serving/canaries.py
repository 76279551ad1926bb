"""A service process that finds a canary, with any plan, in its state; and plain requests to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tiny_models import publish_all, settings_in

from core.settings import Settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.service_process import ServiceProcess, service_process

SALT = "hrm-rollout"


def settings_of(folder: Path, **changes: dict[str, object]) -> Settings:
    return settings_in(folder, rollout={"cool_down_s": 0.0, "salt": SALT}, **changes)


def start_canary(plan: Plan, folder: Path) -> None:
    """ppo/v1 and hrm/v1, promoted once."""
    publish_all(folder / "models")
    store = RolloutStore(folder / "rollout.db", settings_of(folder).rollout)
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1", plan=plan))
    store.apply(Change(Command.PROMOTE, time.time()))
    store.close()


@contextmanager
def canary_of(plan: Plan, folder: Path, **changes: dict[str, object]) -> Iterator[ServiceProcess]:
    start_canary(plan, folder)
    with service_process(settings_of(folder, **changes)) as process:
        yield process


def post(process: ServiceProcess, path: str, body: dict[str, Any]) -> Any:
    """The answer, over a connection of its own."""
    response = httpx.post(process.url + path, json=body, headers=_headers(process), trust_env=False, timeout=60)
    response.raise_for_status()
    return response.json()


def rollout_of(process: ServiceProcess) -> dict[str, Any]:
    response = httpx.get(f"{process.url}/v1/rollout", headers=_headers(process), trust_env=False, timeout=60)
    return dict(response.json())


def _headers(process: ServiceProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {process.token}"}
