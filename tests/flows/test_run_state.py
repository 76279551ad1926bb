"""The same inputs find the unfinished run; finished parts stay; damage is named; one migration at a time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import finished_run, new_run, phase_results, record, settings_in

from core.errors import ConfigError, DataError
from flows.run_state import inputs_of, load_run, migration_lock, open_run, to_json

ROOT = Path(__file__).parent.parent.parent


def test_the_same_inputs_find_the_unfinished_run(tmp_path):
    run = new_run(tmp_path)
    record(run, "ppo_baseline_capture", phase_results()["ppo_baseline_capture"])
    again = new_run(tmp_path)
    assert again.folder == run.folder
    assert again.result("ppo_baseline_capture")["model"] == "ppo/made-up"


def test_another_seed_settings_or_file_is_another_run(tmp_path):
    bars = tmp_path / "bars.csv"
    bars.write_text("one")
    first, seeded, filed = new_run(tmp_path), new_run(tmp_path, seed=1), new_run(tmp_path, bars)
    changed = open_run(inputs_of(settings_in(tmp_path, HRM_TRADING__COST_BPS="2.5"), None, 0))
    bars.write_text("two")
    rewritten = new_run(tmp_path, bars)
    assert len({run.folder for run in (first, seeded, filed, changed, rewritten)}) == 5


def test_where_files_lie_and_which_port_is_used_does_not_make_another_run(tmp_path):
    assert (
        new_run(tmp_path).folder == open_run(inputs_of(settings_in(tmp_path, HRM_SERVING__PORT="9999"), None, 0)).folder
    )


def test_a_finished_run_is_followed_by_a_new_one(tmp_path):
    finished = finished_run(new_run(tmp_path))
    assert new_run(tmp_path).folder != finished.folder


def test_a_run_stopped_by_a_gate_is_finished_too(tmp_path):
    stopped = finished_run(new_run(tmp_path), stopped_at="hrm_training")
    assert new_run(tmp_path).folder != stopped.folder


def test_the_settings_travel_with_the_run(tmp_path):
    run = open_run(inputs_of(settings_in(tmp_path, HRM_TRADING__COST_BPS="2.5"), None, 3))
    again = load_run(run.folder)
    assert again.inputs == run.inputs
    assert again.settings.trading.cost_bps == 2.5
    assert again.settings.paths.state_dir.is_absolute()


def test_a_damaged_phase_is_named_and_not_believed(tmp_path):
    run = new_run(tmp_path)
    record(run, "ppo_baseline_capture", phase_results()["ppo_baseline_capture"])
    file = run.folder / "phases" / "ppo_baseline_capture.json"
    file.write_text(file.read_text()[:-40])
    with pytest.raises(DataError, match=r"ppo_baseline_capture\.json: damaged"):
        run.phase("ppo_baseline_capture")


def test_a_run_of_another_version_of_the_settings_is_left_alone(tmp_path):
    run = new_run(tmp_path)
    tree = json.loads((run.folder / "run.json").read_text())
    del tree["settings"]["trading"]
    (run.folder / "run.json").write_text(json.dumps(tree))
    assert new_run(tmp_path).folder != run.folder


def test_a_phase_that_needs_an_earlier_one_says_so(tmp_path):
    with pytest.raises(ConfigError, match="ppo_baseline_capture has not finished"):
        new_run(tmp_path).result("ppo_baseline_capture")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no run\.json"):
        load_run(tmp_path)


def test_a_missing_data_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.csv: cannot be read"):
        inputs_of(settings_in(tmp_path), tmp_path / "nothing.csv", 0)


def test_arrays_become_lists_and_what_is_not_finite_becomes_null():
    value = {"a": np.array([1.5, np.nan]), "b": (np.int64(3), float("inf")), "c": np.True_, 4: None}
    assert to_json(value) == {"a": [1.5, None], "b": [3, None], "c": True, "4": None}


def test_a_second_migration_in_the_same_state_directory_is_refused(tmp_path):
    with migration_lock(tmp_path):
        done = take_lock(tmp_path)
    assert "is migrating in" in done.stderr
    after = take_lock(tmp_path)
    assert after.returncode == 0, after.stderr


def take_lock(state_dir: Path) -> subprocess.CompletedProcess:
    """In another process."""
    code = "import sys; from pathlib import Path; from flows.run_state import migration_lock as lock\n"
    code += "with lock(Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(state_dir)]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
