"""What an automation starts besides the rollback: a pause where data drift, and people who are told."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from core.errors import ConfigError
from core.settings import load_settings
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.alert import alert
from flows.drill_models import publish_policy
from flows.processes import free_port
from flows.rollback import roll_back
from flows.rollout_pause import rollout_pause
from flows.service_process import service_process


def test_drift_pauses_a_rollout_once_and_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(tmp_path)})
    for model in ("ppo/v1", "hrm/v1"):
        publish_policy(tmp_path / "models", model)
    plan = Plan.model_validate({"steps": [{"setWeight": 50}, {"pause": {}}]})
    store = RolloutStore(tmp_path / "rollout.db", settings.rollout)
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1", plan=plan))
    with service_process(settings) as service:
        monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
        monkeypatch.setenv("HRM_SERVING__PORT", str(httpx.URL(service.url).port))
        first, second = rollout_pause.fn("signal drifted", "event-1"), rollout_pause.fn("signal drifted", "event-1")
    state, last = store.read(), store.events(0)[-1]
    store.close()
    assert (first["changed"], second["changed"], state.paused) == (True, False, True)
    assert (state.champion, state.challenger, state.latched) == ("ppo/v1", "hrm/v1", False)
    assert first["version"] == second["version"] == last.version
    assert "signal drifted (event event-1)" in last.reason


def test_a_rollback_that_waited_for_a_worker_leaves_the_next_rollout_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(
        preset="compact", environ={"HRM_PATHS__STATE_DIR": str(tmp_path), "HRM_ROLLOUT__COOL_DOWN_S": "0"}
    )
    for model in ("ppo/v1", "hrm/v1", "hrm/v2"):
        publish_policy(tmp_path / "models", model)
    store = RolloutStore(tmp_path / "rollout.db", settings.rollout)
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v1"))
    breach = store.apply(Change(Command.ROLLBACK, time.time(), "error_rate_exceeded"))
    store.apply(Change(Command.START, time.time(), champion="ppo/v1", challenger="hrm/v2"))
    with service_process(settings) as service:
        monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
        monkeypatch.setenv("HRM_SERVING__PORT", str(httpx.URL(service.url).port))
        late = roll_back.fn("error_rate_exceeded", event_id="event-1", version=breach.version)
        untouched = store.read()
        meant = roll_back.fn("error_rate_exceeded", event_id="event-2", version=untouched.version)
        again = roll_back.fn("error_rate_exceeded", event_id="event-2", version=untouched.version)
    store.close()
    assert late["superseded"] and (untouched.challenger, untouched.latched) == ("hrm/v2", False)
    assert (meant["superseded"], meant["latched"], meant["champion"]) == (False, True, "ppo/v1")
    assert again["version"] == meant["version"]


def test_without_a_service_the_run_fails_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    monkeypatch.setenv("HRM_SERVING__PORT", str(free_port()))
    with pytest.raises(ConfigError, match="nothing was paused; start it with `hrm serve`"):
        rollout_pause.fn("drift")


def test_an_alert_without_anybody_to_tell_is_a_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    assert alert.fn("an automation failed", "no such deployment") == []
    said = capsys.readouterr()
    assert "no such deployment" in said.out + said.err
