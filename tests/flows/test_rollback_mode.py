"""The record of a rollback says what the plan says of positions, not what is usual."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from core.settings import load_settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.drill_models import publish_policy
from flows.rollback import _confirmed
from flows.service import RunningService
from flows.service_process import service_process
from serving.client import ServiceClient


@pytest.mark.parametrize(
    ("handover", "mode"),
    [
        ({"default": "reduce_only"}, "reduce_only"),
        ({"default": "freeze", "triggers": {"manual": "flatten"}, "symbols": {"A": "adopt"}}, "flatten"),
        ({}, "adopt"),
    ],
)
def test_the_mode_on_record_is_the_plans(tmp_path: Path, handover: dict[str, Any], mode: str) -> None:
    settings = load_settings(preset="compact", environ={})
    paths = settings.paths.model_copy(update={"state_dir": tmp_path})
    serving = settings.serving.model_copy(update={"host": "127.0.0.1"})
    settings = settings.model_copy(update={"paths": paths, "serving": serving})
    for version in ("ppo/v1", "hrm/v1"):
        publish_policy(tmp_path / "models", version)
    plan = Plan.model_validate({"steps": [{"setWeight": 50}, {"pause": {}}], "handover": handover})
    store = RolloutStore(tmp_path / "rollout.db", settings.rollout)
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1", plan=plan))
    store.close()
    with service_process(settings) as process, ServiceClient(process.url, process.token) as client:
        record = _confirmed(RunningService(client), "a test", None)
    assert (record["mode"], record["trigger"], record["champion"]) == (mode, "manual", "ppo/v1")
