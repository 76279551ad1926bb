"""Gates stop a migration: which exit code, which phases ran, when the incumbent is brought back."""

from __future__ import annotations

from typing import Any

import pytest
from made_up_runs import new_run, phase_results, rollout_log, settings_in

from core.errors import DataError
from flows import migration
from flows.migration import PHASES, ExitCode, migrate, result_of, run_migration
from flows.phases import complete


@pytest.fixture
def rollbacks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reasons of the rollbacks asked for. The rollback itself is tested on a real service."""
    asked: list[str] = []
    monkeypatch.setattr(
        migration, "write_report", lambda run, outcome: None
    )  # seconds each; tests/flows/test_report.py
    monkeypatch.setattr(migration, "rollback", lambda reason, run_dir: asked.append(reason))
    return asked


def migrated(run, **changed: dict[str, Any]):
    """Migrate with phases that return made-up results, some of them changed."""
    ran: list[str] = []

    def phase_of(name: str):
        def phase(run_dir: str) -> None:
            ran.append(name)
            complete(run_dir, name, lambda run: phase_results()[name] | changed.get(name, {}))

        return phase

    return migrate(run, {name: phase_of(name) for name in PHASES}), ran


def metrics_of(phase: str, **changes: float | None) -> dict[str, Any]:
    return {"metrics": phase_results()[phase]["metrics"] | changes}


def test_all_gates_passed_is_a_migration(tmp_path, rollbacks):
    run = new_run(tmp_path)
    outcome, ran = migrated(run)
    assert (outcome.outcome, outcome.exit_code, ran) == ("migrated", ExitCode.MIGRATED, list(PHASES))
    assert rollbacks == []


def test_a_hrm_that_is_not_better_stops_before_any_service_is_touched(tmp_path, rollbacks):
    run = new_run(tmp_path)
    outcome, ran = migrated(run, hrm_training=metrics_of("hrm_training", advantage_ci95_low=-0.2))
    assert outcome.exit_code == ExitCode.STOPPED
    assert outcome.stopped_at == "hrm_training"
    assert "advantage_ci95_low is -0.2" in outcome.reason
    assert ran == ["ppo_baseline_capture", "hrm_training"]
    assert rollbacks == []


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_no_data_is_inconclusive_and_stops(tmp_path, rollbacks, missing):
    run = new_run(tmp_path)
    outcome, _ = migrated(run, parallel_validation=metrics_of("parallel_validation", rss_gb=missing))
    assert outcome.exit_code == ExitCode.INCONCLUSIVE
    assert "rss_gb is no data" in outcome.reason
    assert rollbacks == [f"parallel_validation: {outcome.reason}"]


@pytest.mark.parametrize("phase", ["parallel_validation", "gradual_migration", "full_deployment"])
def test_a_stop_while_the_service_has_the_challenger_rolls_back(tmp_path, rollbacks, phase):
    name = next(iter(phase_results()[phase]["metrics"]))
    limit = {"parallel_validation": "advantage_ci95_low", "full_deployment": "champion_is_hrm"}.get(phase, name)
    bad = -1.0 if limit != "challenger_error_ratio" else 1.0
    outcome, _ = migrated(new_run(tmp_path), **{phase: metrics_of(phase, **{limit: bad})})
    assert outcome.exit_code == ExitCode.STOPPED
    assert len(rollbacks) == 1


def test_a_rollback_by_the_guard_has_its_own_exit_code_even_if_the_numbers_look_good(tmp_path, rollbacks):
    by_guard = {"rolled_back_by": "latency_violation", "events": rollout_log(rolled_back=True)}
    run = new_run(tmp_path)
    outcome, ran = migrated(run, gradual_migration=by_guard)
    assert (outcome.outcome, outcome.exit_code) == ("rolled_back", ExitCode.ROLLED_BACK)
    assert "latency_violation" in outcome.reason
    assert ran[-1] == "gradual_migration"


def test_a_run_ends_only_when_its_report_is_written(tmp_path, monkeypatch):
    def full_disk(run, outcome):
        raise OSError(28, "no space left")

    run = new_run(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(migration, "write_report", full_disk)
        with pytest.raises(OSError, match="no space"):
            migrated(run)
    assert run.outcome is None
    assert new_run(tmp_path).folder == run.folder, "the same command continues it"
    migrated(run)
    assert run.outcome is not None
    assert (run.folder / "report.html").exists()


def test_bad_bars_are_refused_before_anything_starts_and_leave_no_run(tmp_path):
    file = tmp_path / "bars.csv"
    file.write_text("timestamp,open,high,low,close,volume\n2024-01-01T09:15:00+05:30,1,2,0.5,nan,10\n")
    with pytest.raises(DataError, match=r"bars\.csv"):
        run_migration(settings_in(tmp_path / "state"), file)
    assert list((tmp_path / "state" / "runs").iterdir()) == []
    assert not (tmp_path / "state" / "prefect").exists()


def test_the_result_has_the_keys_that_are_promised(tmp_path, rollbacks):
    run = new_run(tmp_path)
    migrated(run)
    result = result_of(run, 12.0).to_dict()
    assert {"outcome", "stopped_at", "reason", "phases", "hrm", "ppo", "report", "wall_s"} <= set(result)
    assert result["hrm"] == {"score": 0.75, "ci95_low": 0.73, "ci95_high": 0.77, "p99_ms": 0.4, "model_mb": 0.3}
