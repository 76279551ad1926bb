"""`hrm rollout judge`: a person's question to the database of a service that need not run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from core.errors import ConfigError
from core.settings import load_settings
from delivery.analysis import Measurement, MeasurementPhase
from delivery.plan import Plan
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows import rollout_commands, rollout_judge

BEGAN = 1_759_298_400.0  # Wednesday, 1 October 2025, half past eleven in India
STEPS = [{"analysis": {"templates": [{"name": "gate"}]}}, {"setWeight": 10}, {"pause": {}}]
METRIC = {"name": "p95_ms", "provider": {"service": "p95_ms"}, "failureCondition": "result > 100"}


def plan(**fields: Any) -> dict[str, Any]:
    return {"steps": STEPS, "analysisTemplates": {"gate": {"metrics": [METRIC | fields]}}}


@pytest.fixture
def hrm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(rollout_commands.app, ["judge", *arguments], catch_exceptions=False)

    return run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A rollout that passed its gate at 75 ms and was aborted, and one that was only started."""
    store = RolloutStore(
        tmp_path / "rollout.db", load_settings(environ={}).rollout.model_copy(update={"cool_down_s": 0})
    )
    started = Change(Command.START, BEGAN, champion="ppo/v1", challenger="hrm/v1", plan=Plan.model_validate(plan()))
    store.apply(started)
    measured = Measurement(BEGAN + 1, MeasurementPhase.SUCCESSFUL, 75.0, "75: not result > 100", 50, 0)
    store.record_measurement(1, "stage 0, gate 0", "p95_ms", measured)
    for command in (Command.ADVANCE, Command.ABORT):
        store.apply(Change(command, BEGAN + 2))
    store.apply(Change(Command.START, BEGAN + 1000, challenger="hrm/v2", plan=Plan.model_validate(plan())))
    store.close()
    return tmp_path / "rollout.db"


def written(folder: Path, content: dict[str, Any]) -> str:
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


def last_object(result: Result) -> dict[str, Any]:
    return dict(json.loads(result.stdout.strip().splitlines()[-1]))


def test_another_plan_is_judged_on_what_was_measured_and_the_first_change_is_named(
    hrm: Callable[..., Result], state: Path, tmp_path: Path
) -> None:
    other = written(tmp_path, plan(failureCondition="result > 70"))
    found = last_object(hrm("--attempt", "1", "--plan", other, "--json"))
    assert (found["attempt"], found["same_plan"]) == (1, False)
    (metric,) = found["metrics"]
    assert (metric["run"], metric["was"], metric["now"]) == ("stage 0, gate 0", "successful", "failed")
    assert found["difference"]["at"] == BEGAN + 1
    assert found["difference"]["now"].startswith("rollback: ")
    shown = hrm("--attempt", "1", "--plan", other).stdout
    for part in ("attempt 1", "p95_ms", "successful", "failed", "rollback: stage 0, gate 0", "It was: advance"):
        assert part in shown, part


def test_without_a_plan_it_is_the_attempts_own_and_without_an_attempt_the_latest(
    hrm: Callable[..., Result], state: Path
) -> None:
    found = last_object(hrm("--attempt", "1", "--json"))
    assert (found["same_plan"], found["difference"]) == (True, None)
    assert "would have done the same" in hrm("--attempt", "1").stdout
    assert last_object(hrm("--json"))["attempt"] == 4


def test_a_plan_in_market_time_is_judged_by_the_sessions_that_there_were(
    hrm: Callable[..., Result], state: Path, tmp_path: Path
) -> None:
    file = Path(written(tmp_path, plan() | {"market": {}}))
    market = rollout_judge.plan_then(file, BEGAN).market
    assert market is not None
    assert market.sessions[0].day.isoformat() == "2025-10-01"
    assert last_object(hrm("--attempt", "1", "--plan", str(file), "--json"))["difference"] is None


def test_nothing_is_written_and_nothing_is_made(hrm: Callable[..., Result], state: Path, tmp_path: Path) -> None:
    before = content(state)
    hrm("--attempt", "1")
    assert content(state) == before
    state.unlink()
    with pytest.raises(ConfigError, match=r"rollout\.db: no such file"):
        hrm()
    assert not state.exists()


def content(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


def test_a_database_of_another_release_is_not_migrated_but_refused(hrm: Callable[..., Result], state: Path) -> None:
    with closing(sqlite3.connect(state)) as connection, connection:
        connection.execute("UPDATE rollout_alembic_version SET version_num = '0005'")
    with pytest.raises(ConfigError, match="of release 0005, not"):
        hrm()


def test_what_is_no_attempt_or_no_rollout_at_all_is_said(
    hrm: Callable[..., Result], state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no rollout began at version 2"):
        hrm("--attempt", "2")
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(tmp_path / "other"))
    RolloutStore(tmp_path / "other" / "rollout.db", load_settings(environ={}).rollout).close()
    with pytest.raises(ConfigError, match="no rollout was ever started"):
        hrm()
