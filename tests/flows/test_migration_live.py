"""The whole migration on tiny data: real training, real service, real Prefect server; killed once on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_migration import TINY, tiny_settings

from core.errors import ConfigError
from core.gates import Verdict
from core.manifest import ModelManifest, publish
from flows.migration import PHASES, ExitCode, migration, run_migration
from flows.rollback import rollback
from flows.run_state import Run, inputs_of, load_run, migration_lock, open_run
from flows.service_process import service_process

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DEADLINE_S = 240
SESSION_BARS = 75  # of the market that is traded on paper


def start(state_dir: Path, env: dict[str, str], log: Path) -> subprocess.Popen[str]:
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "tiny_migration.py"), str(state_dir)]
    with log.open("a") as stderr:
        return subprocess.Popen(command, env=env | path, stdout=subprocess.PIPE, stderr=stderr, text=True)


def phase_files(state_dir: Path) -> dict[str, int]:
    """Finished phases and when their records were written."""
    return {file.stem: file.stat().st_mtime_ns for file in state_dir.glob("runs/*/phases/*.json")}


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("migration")


@pytest.fixture(scope="module")
def interrupted(state_dir: Path) -> subprocess.CompletedProcess[str]:
    """`hrm migrate` with a Prefect server of its own, after Ctrl-C at a terminal while its service was running."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    # A shell that runs the tests in the background makes them ignore SIGINT, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [Path(sys.executable).parent / "hrm", "migrate", "--json"],
        env=env | TINY | {"HRM_PATHS__STATE_DIR": str(state_dir), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while not any("listening" in _read(file) for file in state_dir.glob("runs/*/logs/service.log")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_ctrl_c_ends_everything_and_says_so(interrupted, state_dir):
    assert interrupted.returncode == 130, interrupted.stderr
    assert json.loads(interrupted.stdout.splitlines()[-1])["error"]["code"] == "interrupted"
    assert "Traceback" not in interrupted.stderr
    assert running_in(state_dir) == []
    assert not list(state_dir.glob("runs/*/phases/parallel_validation.json"))
    with migration_lock(state_dir):
        pass


@pytest.fixture(scope="module")
def migrated(interrupted, state_dir: Path, prefect_server: dict[str, str]) -> dict[str, Any]:
    """The result of that migration, started again, killed hard during its rollout, and started once more."""
    log = state_dir / "stderr.log"
    process = start(state_dir, prefect_server, log)
    deadline = time.monotonic() + DEADLINE_S
    while not list(state_dir.glob("runs/*/steps/gradual_migration-1.json")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = phase_files(state_dir)
    process = start(state_dir, prefect_server, log)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, log.read_text()
    return json.loads(output.splitlines()[-1]) | {"finished_before_the_kill": before}


def test_a_killed_migration_continues_and_ends_with_the_hrm_in_charge(migrated, state_dir):
    assert migrated["outcome"] == "migrated"
    assert migrated["exit_code"] == ExitCode.MIGRATED
    assert set(migrated["phases"]) == set(PHASES)
    assert Path(migrated["report"]).exists()
    assert {"score", "ci95_low", "ci95_high", "p99_ms", "model_mb"} <= set(migrated["hrm"])


def test_phases_finished_before_the_kill_were_not_repeated(migrated, state_dir):
    before = migrated["finished_before_the_kill"]
    assert {"ppo_baseline_capture", "hrm_training", "parallel_validation"} <= set(before)
    after = phase_files(state_dir)
    assert {name: after[name] for name in before} == before


def test_the_rollout_went_through_every_step_and_the_new_champion_decided_everything(migrated, state_dir):
    run = load_run(Path(migrated["report"]).parent)
    steps = run.result("gradual_migration")["steps"]
    assert [step["weight"] for step in steps] == list(run.settings.rollout.steps)
    assert steps[-1]["metrics"]["challenger_decisions"] == steps[-1]["metrics"]["decisions"]
    assert run.result("full_deployment")["metrics"]["champion_is_hrm"] == 1.0
    assert run.result("full_deployment")["metrics"]["healthy_checks"] == 5
    assert run.result("parallel_validation")["metrics"]["lost_decisions"] == 0


def test_nothing_keeps_running(migrated, state_dir):
    assert running_in(state_dir) == []


def running_in(state_dir: Path) -> list[str]:
    """Other processes with the folder in their environment."""
    return [
        file.parent.name
        for file in Path("/proc").glob("[0-9]*/environ")
        if int(file.parent.name) != os.getpid() and str(state_dir) in _read(file)
    ]


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def incumbent_of(run: Run) -> str:
    model: str = run.result("ppo_baseline_capture")["model"]
    return model


def test_another_migration_does_not_demote_the_hrm_that_took_over(migrated, state_dir):
    hrm = load_run(Path(migrated["report"]).parent).result("hrm_training")["model"]
    runs = sorted(state_dir.glob("runs/*"))
    with service_process(tiny_settings(state_dir)) as service:  # begins where the migration's own service ended
        there = tiny_settings(state_dir, HRM_SERVING__PORT=service.url.rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"{hrm} decides here.*another --state-dir"):
            run_migration(there)
    assert sorted(state_dir.glob("runs/*")) == runs


def with_new_challenger(run: Run, **changes: str) -> Run:
    """A new run with other settings, trained and validated already: a new version of the same challenger."""
    again = open_run(inputs_of(tiny_settings(run.settings.paths.state_dir, **changes), None, run.inputs.seed))
    for phase in ("ppo_baseline_capture", "hrm_training", "parallel_validation"):
        record = run.phase(phase)
        assert record is not None
        if phase == "hrm_training":
            model = published_again(run.models, record.result["model"], again.id)
            record = record.model_copy(update={"result": record.result | {"model": model}})
        again.record(record)
    return again


def published_again(store: Path, model_id: str, version: str) -> str:
    folder = store / model_id
    fields = ModelManifest.model_validate_json((folder / "manifest.json").read_bytes()).model_dump(exclude={"files"})
    files = {name: (folder / name).read_bytes() for name in ("model.onnx", "golden.npz")}
    manifest = publish(store, files, **fields | {"version": version})
    return f"{manifest.name}/{manifest.version}"


def test_a_gate_that_says_no_during_the_rollout_brings_the_ppo_back(migrated, state_dir, prefect_server):
    first = load_run(Path(migrated["report"]).parent)
    assert rollback(reason="a test", run_dir=str(first.folder))["champion"] == incumbent_of(first)
    impossible = "[{metric: challenger_p99_ms, max: 0.000001, why: nobody is that fast}]"
    changes = {"HRM_GATES__GRADUAL_MIGRATION": impossible, "HRM_ROLLOUT__COOL_DOWN_S": "0"}
    run = with_new_challenger(first, **changes)
    outcome = migration(run_dir=str(run.folder))
    assert outcome["exit_code"] == ExitCode.STOPPED
    assert outcome["stopped_at"] == "gradual_migration"
    assert "nobody is that fast" in outcome["reason"]
    steps = run.result("gradual_migration")["steps"]
    assert [step["verdict"] for step in steps] == [Verdict.FAIL]
    undone = run.step("rollback")
    assert undone is not None
    assert undone["latched"] and undone["weight"] == 0
    assert undone["champion"] == incumbent_of(first)
    again = rollback(reason="once more", run_dir=str(run.folder))
    assert again["version"] == undone["version"], "a second rollback changes nothing"


def test_paper_trading_acts_in_the_sessions_asked_for_and_once(migrated, state_dir):
    with service_process(tiny_settings(state_dir)) as service:
        first, again = (trade(state_dir, service.url) for _ in range(2))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert json.loads(first.stdout.splitlines()[-1])["decisions"] == 2 * (SESSION_BARS - 1)
    assert json.loads(again.stdout.splitlines()[-1])["decisions"] == 0
    assert "nothing new to trade" in again.stderr


def trade(state_dir: Path, url: str) -> subprocess.CompletedProcess[str]:
    port = url.rsplit(":", 1)[1]
    bars = {"HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": str(SESSION_BARS)}  # the warm-up must fill the window
    env = os.environ | TINY | {"HRM_PATHS__STATE_DIR": str(state_dir), "HRM_SERVING__PORT": port} | bars
    command = [Path(sys.executable).parent / "hrm", "trade", "--sessions", "2", "--json"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
