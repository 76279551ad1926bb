"""Sweeps: trials in threads, on Dask, after a kill, two processes at one study. Trainings are real and tiny."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import ValidationError
from tiny_migration import TINY, tiny_settings

from core.errors import ConfigError
from core.flow_settings import Flows
from core.settings import Settings
from flows.runners import task_runner
from flows.sweep import open_sweep, sweep
from flows.sweep_study import SeededByTrial, chosen, ended, study_of, suggested
from flows.tracking import trials

DEADLINE_S = 400
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),  # pytest forgets ours
    pytest.mark.timeout(2 * DEADLINE_S),
]
SHORT = {"HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "512", "HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "2"}
SHORT |= {"HRM_TRAINING_PARAMS__HRM__VALIDATION_FREQUENCY": "1"}


def short(state_dir: Path, **changes: str) -> Settings:
    return tiny_settings(state_dir, **SHORT, **changes)


def command(state_dir: Path, count: int) -> list[str]:
    return [sys.executable, "-m", "cli", "--state-dir", str(state_dir), "sweep", "--trials", str(count), "--json"]


def environment(server: dict[str, str], **changes: str) -> dict[str, str]:
    return server | TINY | SHORT | {"OMP_NUM_THREADS": "1"} | changes


def test_a_sweep_ends_with_its_best_trial_tested_once_and_every_look_counted(prefect_server, tmp_path):
    run = open_sweep(short(tmp_path), None, 0)
    found = sweep(n_trials=3, run_dir=str(run.folder))
    known = ended(study_of(run))
    assert found["trials"] == len(known) == 3
    assert found["looks"] == trials(tmp_path, open_digest(run)).count == 6  # two validations a trial
    assert found["validation_loss_bps"] == min(trial.value for trial in known)
    assert 0.0 <= found["deflated_sharpe"] <= 1.0
    assert Path(found["checkpoint"]).is_dir()
    again = sweep(n_trials=3, run_dir=str(run.folder))
    assert again == found  # nothing was trained again


def open_digest(run):
    from flows.phases import dataset_of

    return dataset_of(run).digest


def test_the_same_inputs_are_the_same_sweep_and_where_tasks_run_does_not_matter(tmp_path):
    here = open_sweep(short(tmp_path), None, 0)
    assert open_sweep(short(tmp_path, HRM_FLOWS__TASK_RUNNER="dask"), None, 0).folder == here.folder
    assert open_sweep(short(tmp_path), None, 1).folder != here.folder


def drawn(seed: int, count: int, others: int = 0) -> list[dict[str, float]]:
    """Choices of `count` trials by one sampler a trial, as each task has its own."""
    study = optuna.create_study()
    found = []
    for _ in range(count):
        study.sampler = SeededByTrial(seed)
        trial = study.ask()
        found.append(suggested(trial))
        study.tell(trial, sum(found[-1].values()))
    return found


def test_choices_are_those_of_the_seed_and_differ_from_trial_to_trial():
    assert drawn(1, 12) == drawn(1, 12)
    assert drawn(1, 3) != drawn(2, 3)
    choices = drawn(1, 12)
    assert len({tuple(choice.values()) for choice in choices}) == 12
    lone = optuna.create_study(sampler=SeededByTrial(1))
    shares = [lone.ask() for _ in range(2)]  # at once: neither knows the other's result
    assert suggested(shares[0]) != suggested(shares[1])


def test_every_suggested_setting_exists_and_is_validated(tmp_path):
    settings = short(tmp_path)
    (choice,) = drawn(0, 1)
    assert chosen(settings, choice).training_params.hrm.learning_rate == choice["training_params.hrm.learning_rate"]
    assert chosen(settings, {}) == settings
    with pytest.raises(ValidationError):
        chosen(settings, {"training_params.hrm.learning_rate": float("nan")})


def test_the_runner_is_what_the_setting_names(tmp_path, monkeypatch):
    assert isinstance(task_runner(short(tmp_path)), ThreadPoolTaskRunner)
    monkeypatch.setitem(sys.modules, "prefect_ray", None)  # as where the package is not installed
    with pytest.raises(ConfigError, match="pip install prefect-ray"):
        task_runner(short(tmp_path, HRM_FLOWS__TASK_RUNNER="ray"))
    with pytest.raises(ValidationError):
        Flows(task_runner="processes")


@pytest.mark.parametrize("held", [None, "not a URL", "sqlite:///here.db", "mysql://me:secret@host/name"])
def test_an_address_that_is_no_postgres_server_is_refused_without_showing_it(tmp_path, monkeypatch, held):
    if held is not None:
        monkeypatch.setenv("STUDIES_URL", held)
    run = open_sweep(short(tmp_path, HRM_FLOWS__STUDY_URL_ENV="STUDIES_URL"), None, 0)
    with pytest.raises(ConfigError, match="STUDIES_URL") as refused:
        study_of(run)
    assert "secret" not in str(refused.value)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_with_the_trial_it_was_killed_in(prefect_server, tmp_path):
    long = {"HRM_TRAINING_PARAMS__HRM__MAX_EPOCHS": "8", "HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "5120"}
    env = environment(prefect_server, **long)
    first = subprocess.Popen(command(tmp_path, 2), env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        until(lambda: any(tmp_path.glob("sweeps/*/trial-*/checkpoint")))
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    subprocess.run(command(tmp_path, 2), env=env, check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)
    (folder,) = tmp_path.glob("sweeps/*/run.json")
    study = study_of(load(folder.parent))
    retried = [trial for trial in ended(study) if trial.user_attrs["folder"] != f"trial-{trial.number:04}"]
    assert len(ended(study)) == 2
    assert retried  # in the folder of the trial that died, from its checkpoint


@pytest.mark.slow
def test_two_processes_share_a_study(prefect_server, tmp_path):
    env = environment(prefect_server)
    both = [subprocess.Popen(command(tmp_path, 6), env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [each.communicate(timeout=DEADLINE_S)[0] for each in both]
    assert [each.returncode for each in both] == [0, 0]
    (file,) = tmp_path.glob("sweeps/*/run.json")
    assert 6 <= len(ended(study_of(load(file.parent)))) <= 7  # both may begin the last one
    assert all('"trials": ' in text for text in answers)


@pytest.mark.slow
def test_two_processes_share_a_study_on_a_postgres_server(prefect_server, postgres, tmp_path, monkeypatch):
    url = postgres.new_database()
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("STUDIES_URL", address)
    env = environment(prefect_server, HRM_FLOWS__STUDY_URL_ENV="STUDIES_URL", STUDIES_URL=address)
    try:
        both = [subprocess.Popen(command(tmp_path, 4), env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        answers = [each.communicate(timeout=DEADLINE_S)[0] for each in both]
        assert [each.returncode for each in both] == [0, 0]
        (file,) = tmp_path.glob("sweeps/*/run.json")
        study = study_of(load(file.parent))
        assert 4 <= len(ended(study)) <= 5  # both may begin the last one
        assert len({trial.number for trial in ended(study)}) == len(ended(study))
        study._storage.remove_session()
    finally:
        postgres.drop(url)
    assert not (tmp_path / "sweeps.db").exists()
    assert all('"trials": ' in text for text in answers)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what distributed warns about as its processes end is its own
def test_trials_run_on_a_dask_cluster(prefect_server, tmp_path):
    env = environment(prefect_server, HRM_FLOWS__TASK_RUNNER="dask")
    done = subprocess.run(
        command(tmp_path, 3), env=env, check=False, timeout=DEADLINE_S, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"trials": 3' in done.stdout


def load(folder: Path):
    from flows.run_state import load_run

    return load_run(folder)


def until(true) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
