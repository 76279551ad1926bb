"""`hrm train`: a version is one training, which only one process continues; torchrun's processes train it together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorded_training import SMALL, small_settings

from core.errors import ConfigError, ModelError
from flows.run_state import Inputs, inputs_of, only_one
from flows.terminal import answer, fail
from flows.train import _open, train_and_publish

EPOCHS = {"HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "2"}


def begun(state_dir: Path, **changes: str) -> Inputs:
    """A training of version `a` that was begun and not finished."""
    settings = small_settings(state_dir, **changes)
    return _open(settings, "hrm", None, seed=0, version="a").inputs


def test_the_same_version_again_is_the_same_training(tmp_path):
    assert begun(tmp_path).key == begun(tmp_path).key
    assert [folder.name for folder in (tmp_path / "trainings" / "hrm").iterdir()] == ["a"]


@pytest.mark.parametrize(("seed", "changes"), [(1, {}), (0, {"HRM_TRAINING_PARAMS__HRM__LEARNING_RATE": "0.5"})])
def test_a_version_begun_with_other_inputs_is_refused_and_left_alone(tmp_path, seed, changes):
    before = begun(tmp_path)
    with pytest.raises(ConfigError, match=r"begun with other settings, data or seed.*another --version"):
        train_and_publish(small_settings(tmp_path, **changes), "hrm", None, seed=seed, version="a")
    assert begun(tmp_path).key == before.key


def test_a_published_version_is_refused(tmp_path):
    (tmp_path / "models" / "hrm" / "a").mkdir(parents=True)
    with pytest.raises(ModelError, match="published already"):
        train_and_publish(small_settings(tmp_path), "hrm", None, version="a")


def test_a_version_that_another_process_trains_is_refused(tmp_path):
    inputs = begun(tmp_path)
    lock = tmp_path / "trainings" / "hrm" / "a" / "training.lock"
    with only_one(lock, "", code=""), pytest.raises(ConfigError, match=f"process {os.getpid()} trains this version"):
        train_and_publish(small_settings(tmp_path), "hrm", None, version="a")
    assert inputs == inputs_of(inputs.settings, None, 0)


def test_a_new_training_says_how_to_continue_it(tmp_path, capsys):
    run = _open(small_settings(tmp_path), "hrm", None, seed=0, version=None)
    assert f"if it is interrupted, --version {run.id} continues it" in capsys.readouterr().err


def torchrun(state_dir: Path, *command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HRM_", "PREFECT_"))}
    env |= SMALL | EPOCHS | changes | {"HRM_PATHS__STATE_DIR": str(state_dir), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    return subprocess.run(
        [*program, Path(sys.executable).parent / "hrm", *command],
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
def test_under_torchrun_two_processes_train_one_model_and_the_first_alone_speaks(tmp_path):
    done = torchrun(tmp_path, "train", "--version", "two", "--json")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert json.loads(line)["model"] == "hrm/two"
    assert (tmp_path / "models" / "hrm" / "two" / "manifest.json").exists()
    index = json.loads((tmp_path / "trainings" / "hrm" / "two" / "checkpoint" / "checkpoint.json").read_text())
    assert len(index["rows"]) == 2
    assert done.stderr.count("hrm_training: begins") == 1


@pytest.mark.parametrize(("rank", "lines"), [("0", 2), ("1", 0)])
def test_of_torchruns_processes_the_first_alone_answers_and_fails_aloud(rank, lines, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["hrm", "train", "--json"])
    answer({"model": "hrm/a"}, as_json=True)
    with pytest.raises(SystemExit):
        fail("version_exists", "published already")
    assert len(capsys.readouterr().out.splitlines()) == lines
