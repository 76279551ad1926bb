"""Folds on a task runner: real trainings, tiny; once each, the same wherever they run, gone on with after a kill."""

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
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from tiny_migration import TINY, tiny_settings
from tracking_store import make_store

from core.errors import ConfigError, DataError
from core.gates import Verdict
from core.settings import Settings
from flows import runners, walk_forward_gate
from flows.retraining import retrain
from flows.run_state import Run, inputs_of, load_run, only_one
from flows.tracking import trials
from flows.walk_forward import described, fold_run, folds_of, judged, open_walk, played, rows, walk_forward
from trading.files import to_frame, write_bars
from trading.synthetic import simulate

FOLDS = 2
DEADLINE_S = 400
pytestmark = pytest.mark.timeout(2 * DEADLINE_S)
SHORT = {
    "HRM_SYNTHETIC_MARKET__BARS_PER_SESSION": "20",
    "HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "512",
    "HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "2",
    "HRM_TRAINING_PARAMS__HRM__VALIDATION_FREQUENCY": "1",
}


def short(state_dir: Path, **changes: str) -> Settings:
    return tiny_settings(state_dir, **SHORT, **changes)


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walked")
    path = simulate(short(folder).synthetic_market, sessions=110, seed=5)
    write_bars(to_frame(path.bars), folder / "bars.parquet")
    return folder / "bars.parquet"


@pytest.fixture(scope="module")
def walked(prefect_server: dict[str, str], tmp_path_factory: pytest.TempPathFactory, bars: Path) -> Run:
    """A walk of two folds in threads, at its end."""
    state_dir = tmp_path_factory.mktemp("threads")
    make_store(state_dir)
    return walk(state_dir, bars)


def walk(state_dir: Path, bars: Path) -> Run:
    run = open_walk(short(state_dir), bars, folds=FOLDS, seed=0)
    walk_forward(str(bars), folds=FOLDS, run_dir=str(run.folder))
    return run


def result(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "result.json").read_text())
    return found


def records(run: Run) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in sorted(run.folder.glob("fold-*/steps/*.json"))}


def test_all_folds_are_pooled_and_every_look_is_counted(walked: Run) -> None:
    found = result(walked)
    tested = sum(len(fold.test.sessions) for fold in folds_of(walked.folder, FOLDS))
    assert (found["folds"], found["test_sessions"]) == (FOLDS, tested)
    assert found["hold"]["return_pct"] == 0.0
    for name in ("hrm", "ppo", "buy_and_hold"):
        one = found[name]
        assert one["ci95_low"] <= one["return_pct"] <= one["ci95_high"]
        assert one["return_pct"] == pytest.approx(sum(one["return_pct_by_fold"]))
        assert 0.0 <= one["deflated_sharpe"] <= 1.0
    assert found["hrm"]["trials"] == 2 * FOLDS  # two validations each
    assert found["trials_on_record"] == found["hrm"]["trials"] + found["ppo"]["trials"]
    assert trials(walked.settings.paths.state_dir, folds_of(walked.folder, FOLDS)[0].digest).complete
    difference = found["hrm"]["return_pct"] - found["ppo"]["return_pct"]
    assert found["hrm_minus_ppo"]["return_pct"] == pytest.approx(difference)
    assert found["hrm_for_ppo"]["verdict"] in ("promote", "keep", "undecided")


def test_folds_follow_each_other_and_a_person_can_read_them(walked: Run) -> None:
    table = rows(played(walked, FOLDS))
    assert [row["fold"] for row in table] == [1, 2]
    assert table[0]["to"] < table[1]["from"]
    assert sum(row["sessions"] for row in table) == result(walked)["test_sessions"]
    page = described(walked, result(walked))
    assert f"{FOLDS} folds" in page
    assert all(reason in page for reason in result(walked)["hrm_for_ppo"]["reasons"])


def test_every_fold_has_first_weights_of_its_own(walked: Run) -> None:
    assert {fold_run(walked, fold).inputs.seed for fold in range(3)} == {0, 1, 2}


def test_table_page_and_figure_are_artifacts(walked: Run) -> None:
    keys = ["walk-forward-folds", "walk-forward", "walk-forward-equity"]
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=keys)))
    assert {one.key for one in found} == set(keys)


def test_started_again_only_what_is_missing_is_done_with_the_same_result(walked: Run, bars: Path) -> None:
    before, found = records(walked), (walked.folder / "result.json").read_bytes()
    missing = walked.folder / "fold-2" / "steps" / "hrm.json"  # as if killed between training and record
    missing.unlink()
    walk(walked.settings.paths.state_dir, bars)
    after = records(walked)
    untouched = [file for file in before if file.name in ("hrm.json", "ppo.json") and file != missing]
    assert len(untouched) == 2 * FOLDS - 1
    assert all(before[file] == after[file] for file in untouched)
    assert (walked.folder / "result.json").read_bytes() == found


def test_a_record_that_cannot_be_read_is_named(walked: Run) -> None:
    file = walked.folder / "fold-1" / "steps" / "ppo.json"
    kept = file.read_text()
    try:
        file.write_text(json.dumps({"result": {"days": []}}))
        with pytest.raises(DataError, match=r"fold-1/steps/ppo\.json.*delete it"):
            judged(walked, FOLDS)
    finally:
        file.write_text(kept)


def test_two_processes_do_not_walk_the_same_folds(walked: Run, bars: Path) -> None:
    with (
        only_one(walked.folder / "walk.lock", "is a test", code="test"),
        pytest.raises(ConfigError, match="walks these folds"),
    ):
        walk_forward(str(bars), folds=FOLDS, run_dir=str(walked.folder))


def test_other_folds_seeds_and_bars_are_other_walks_but_not_other_runners(walked: Run, bars: Path) -> None:
    state_dir = walked.settings.paths.state_dir
    elsewhere = short(state_dir, HRM_FLOWS__TASK_RUNNER="dask")
    assert open_walk(elsewhere, bars, folds=FOLDS, seed=0).folder == walked.folder
    assert open_walk(short(state_dir), bars, folds=3, seed=0).folder != walked.folder
    assert open_walk(short(state_dir), bars, folds=FOLDS, seed=1).folder != walked.folder


def test_bars_that_changed_since_the_walk_began_are_refused(tmp_path: Path, bars: Path) -> None:
    copy = tmp_path / "bars.parquet"
    copy.write_bytes(bars.read_bytes())
    run = open_walk(short(tmp_path), copy, folds=FOLDS, seed=0)
    copy.write_bytes(bars.read_bytes() + b"more")
    folds_of.cache_clear()  # as another process sees it
    with pytest.raises(DataError, match="changed since the walk began"):
        folds_of(run.folder, FOLDS)


@pytest.mark.parametrize("folds", [0, -1, 60])
def test_folds_that_leave_nothing_to_test_are_refused(tmp_path: Path, bars: Path, folds: int) -> None:
    with pytest.raises(DataError, match="fewer folds"):
        open_walk(short(tmp_path), bars, folds=folds, seed=0)


def test_too_few_test_sessions_for_an_interval_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    settings = short(tmp_path)
    write_bars(to_frame(simulate(settings.synthetic_market, sessions=72, seed=5).bars), tmp_path / "bars.parquet")
    with pytest.raises(DataError, match="18 folds test 18 sessions, an interval takes 20"):
        open_walk(settings, tmp_path / "bars.parquet", folds=18, seed=0)


PASSED = {"verdict": Verdict.PASS}


def test_a_retraining_is_told_what_the_walk_found(walked: Run, bars: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, inputs_of(walked.settings, bars, 0))
    said = walk_forward_gate.walked(run, PASSED, FOLDS)
    assert (said["walk"], said["folds"]) == (walked.id, FOLDS)
    assert said["return_pct"] == result(walked)["hrm_minus_ppo"]["return_pct"]
    assert f"over {FOLDS} folds" in walk_forward_gate.in_words(said)


@pytest.mark.parametrize(
    ("folds", "file", "verdict", "why"),
    [
        (0, True, Verdict.PASS, "not asked for"),
        (FOLDS, False, Verdict.PASS, "simulated"),
        (FOLDS, True, Verdict.FAIL, "gates come first"),
        (60, True, Verdict.PASS, "fewer folds"),
    ],
)
def test_a_retraining_that_was_not_walked_says_why(
    tmp_path: Path, bars: Path, folds: int, file: bool, verdict: Verdict, why: str
) -> None:
    run = Run(tmp_path, inputs_of(short(tmp_path), bars if file else None, 0))
    said = walk_forward_gate.walked(run, {"verdict": verdict}, folds)
    assert why in said["why_not"] and why in walk_forward_gate.in_words(said)
    assert walk_forward_gate.shown_worse(said) is None


def test_only_who_is_shown_to_earn_less_is_kept_back() -> None:
    unclear = {"folds": 4, "return_pct": -1.0, "ci95_low": -3.0, "ci95_high": 0.5}
    assert walk_forward_gate.shown_worse(unclear) is None
    kept_back = walk_forward_gate.shown_worse(unclear | {"ci95_high": -0.5})
    assert kept_back is not None and "4 folds" in kept_back["kept_back"]


@pytest.mark.slow  # a training and a walk
def test_a_retraining_asked_to_walk_later_adds_the_walk_and_trains_nothing_again(
    prefect_server: dict[str, str], bars: Path, tmp_path: Path
) -> None:
    settings = short(tmp_path)
    first = retrain(settings, bars, seed=0)
    assert first["walk"] == {"folds": 0, "why_not": "not asked for"}
    trained = tmp_path / "runs" / first["run"] / "phases" / "hrm_training.json"
    at = trained.stat().st_mtime_ns
    second = retrain(settings, bars, seed=0, folds=FOLDS)
    assert (second["run"], second["walk"]["folds"], trained.stat().st_mtime_ns) == (first["run"], FOLDS, at)
    assert "ci95_low" in second["walk"]
    assert retrain(settings, bars, seed=0, folds=FOLDS)["skipped"]
    assert retrain(settings, bars, seed=0)["skipped"]


@pytest.mark.slow  # another walk
def test_one_worker_finds_to_the_byte_what_several_find(
    walked: Run, bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers in (1, 2):
        monkeypatch.setattr(runners.os, "cpu_count", lambda workers=workers: workers)
        run = walk(tmp_path / str(workers), bars)
        assert (run.folder / "result.json").read_bytes() == (walked.folder / "result.json").read_bytes()


def command(state_dir: Path, bars: Path) -> list[str]:
    walk = ["walk-forward", "--data", str(bars), "--folds", str(FOLDS), "--json"]
    return [sys.executable, "-m", "cli", "--state-dir", str(state_dir), *walk]


def environment(server: dict[str, str], **changes: str) -> dict[str, str]:
    return server | TINY | SHORT | {"OMP_NUM_THREADS": "1"} | changes


@pytest.mark.slow
def test_a_walk_that_was_killed_goes_on_and_ends_with_the_same_result(
    walked: Run, prefect_server: dict[str, str], bars: Path, tmp_path: Path
) -> None:
    env = environment(prefect_server)
    first = subprocess.Popen(command(tmp_path, bars), env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until(lambda: any(tmp_path.glob("walks/*/fold-*/steps/ppo.json")))
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    (file,) = tmp_path.glob("walks/*/run.json")
    assert not (file.parent / "result.json").exists()
    killed = records(load_run(file.parent))
    answer = subprocess.run(command(tmp_path, bars), env=env, check=True, timeout=DEADLINE_S, stdout=subprocess.PIPE)
    again = records(load_run(file.parent))
    assert all(again[done] == at for done, at in killed.items() if done.name in ("ppo.json", "hrm.json"))
    assert json.loads(answer.stdout.splitlines()[-1]) == result(walked)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what distributed warns about as its processes end is its own
def test_folds_on_a_dask_cluster_find_what_threads_find(
    walked: Run, prefect_server: dict[str, str], bars: Path, tmp_path: Path
) -> None:
    env = environment(prefect_server, HRM_FLOWS__TASK_RUNNER="dask")
    done = subprocess.run(
        command(tmp_path, bars), env=env, check=False, timeout=DEADLINE_S, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == result(walked)


def until(true: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
