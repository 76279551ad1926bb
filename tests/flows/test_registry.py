"""The registry follows the store and the rollout, however often it is asked; gone, it costs nobody anything."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracking_store import make_store

from benchmarks.postgres import PostgresServer
from core.settings import Settings, load_settings
from delivery.state_database import place_of
from delivery.store import RolloutStore
from delivery.transitions import Change, Command
from flows.drill_models import publish_policy
from flows.key_commands import list_models
from flows.registry import DIGEST_TAG, project, published
from flows.run_state import PhaseRecord, inputs_of, open_run
from flows.tracking import Description, tracked


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    make_store(tmp_path)
    for model in ("ppo/v1", "ppo/v2", "hrm/v1"):
        publish_policy(tmp_path / "models", model)
    return load_settings(environ={"HRM_PATHS__STATE_DIR": str(tmp_path), "HRM_ROLLOUT__COOL_DOWN_S": "0"})


def client(settings: Settings) -> MlflowClient:
    return MlflowClient(f"sqlite:///{settings.paths.state_dir / 'mlflow.db'}")


def command(settings: Settings, name: str, **fields: str) -> None:
    store = RolloutStore(place_of(settings), settings.rollout)
    try:
        store.apply(Change(Command(name), time.time(), "test", "test", **fields))
    finally:
        store.close()


def standing(settings: Settings) -> dict[str, dict[str, str]]:
    """By model, each alias and the version of ours that it names."""
    found, asked = {}, client(settings)
    for model in asked.search_registered_models():
        numbers = {alias: asked.get_model_version_by_alias(model.name, alias) for alias in model.aliases}
        found[model.name] = {alias: version.tags["hrm.version"] for alias, version in numbers.items()}
    return found


def test_everything_published_is_there_once_however_often_it_is_looked_at(settings: Settings) -> None:
    assert [project(settings)["registered"] for _ in range(3)] == [3, 3, 3]
    versions = client(settings).search_model_versions()
    assert sorted((one.name, one.tags["hrm.version"]) for one in versions) == [
        ("hrm", "v1"),
        ("ppo", "v1"),
        ("ppo", "v2"),
    ]
    (ours,) = [one for one in published(settings) if one.id == "hrm/v1"]
    (theirs,) = [one for one in versions if one.name == "hrm"]
    assert theirs.tags[DIGEST_TAG] == ours.sha256
    assert Path(theirs.source.removeprefix("file://")) == ours.folder
    inputs = json.loads(theirs.tags["signature"])
    assert {one["name"] for one in inputs} == {"bars", "account"}
    assert all(one["tensor-spec"]["shape"][0] == -1 for one in inputs)


def test_aliases_follow_who_decides_through_a_rollout_and_back(settings: Settings) -> None:
    command(settings, "start", champion="ppo/v1", challenger="hrm/v1")
    project(settings)
    assert standing(settings) == {"ppo": {"champion": "v1"}, "hrm": {"challenger": "v1"}}
    command(settings, "abort")
    project(settings)
    assert standing(settings) == {"ppo": {"champion": "v1"}, "hrm": {}}
    command(settings, "start", champion="ppo/v1", challenger="ppo/v2")
    project(settings)
    assert standing(settings) == {"ppo": {"champion": "v1", "challenger": "v2"}, "hrm": {}}


def test_what_somebody_moved_by_hand_is_put_right(settings: Settings) -> None:
    command(settings, "start", champion="ppo/v1", challenger="hrm/v1")
    project(settings)
    (wrong,) = client(settings).search_model_versions("name = 'ppo' and tags.`hrm.version` = 'v2'")
    client(settings).set_registered_model_alias("ppo", "champion", wrong.version)
    project(settings)
    assert standing(settings)["ppo"] == {"champion": "v1"}


def test_a_model_that_was_deleted_by_hand_is_a_problem_and_nobody_s_alias(settings: Settings) -> None:
    command(settings, "start", champion="ppo/v1", challenger="hrm/v1")
    project(settings)
    shutil.rmtree(settings.paths.state_dir / "models" / "ppo" / "v1")
    (problem,) = project(settings)["problems"]
    assert problem.startswith("champion ppo/v1: not in the store")
    assert standing(settings) == {"ppo": {}, "hrm": {"challenger": "v1"}}
    publish_policy(settings.paths.state_dir / "models", "ppo/v1")  # other bytes with the same name are another version
    assert project(settings)["problems"] == []
    named = client(settings).get_model_version_by_alias("ppo", "champion")
    (ours,) = [one for one in published(settings) if one.id == "ppo/v1"]
    assert named.tags[DIGEST_TAG] == ours.sha256
    client(settings).delete_model_version("ppo", named.version)  # somebody tidies up in MLflow
    project(settings)
    assert standing(settings)["ppo"] == {"champion": "v1"}


def test_of_two_desks_with_one_store_each_names_its_own_models(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{settings.paths.state_dir / 'mlflow.db'}")
    other = load_settings(environ={"HRM_PATHS__STATE_DIR": str(tmp_path_factory.mktemp("other"))})
    publish_policy(other.paths.state_dir / "models", "ppo/v1")
    for desk in (settings, other):
        command(desk, "start", champion="ppo/v1", challenger="hrm/v1")
        project(desk)
    for desk in (settings, other, settings):  # whoever looked last
        project(desk)
        (ours,) = [one for one in published(desk) if one.id == "ppo/v1"]
        assert client(settings).get_model_version_by_alias("ppo", "champion").tags[DIGEST_TAG] == ours.sha256
    versions = client(settings).search_model_versions("name = 'ppo' and tags.`hrm.version` = 'v1'")
    assert len(versions) == 2


def test_the_list_names_who_decides_even_where_its_folder_is_gone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HRM_PATHS__STATE_DIR", str(settings.paths.state_dir))
    command(settings, "start", champion="ppo/v1", challenger="hrm/v1")
    shutil.rmtree(settings.paths.state_dir / "models" / "ppo" / "v1")
    list_models(as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert {name: row["role"] for name, row in said.items()} == {
        "ppo/v1": "champion",
        "hrm/v1": "challenger",
        "ppo/v2": None,
    }
    assert "bring its folder back" in said["ppo/v1"]["problem"] and said["hrm/v1"]["problem"] is None


def test_a_version_knows_the_training_it_comes_from(settings: Settings) -> None:
    run = open_run(inputs_of(settings, None, 0))
    with tracked(settings.paths.state_dir, Description(run.id, run.folder, {}, {})) as record:
        record(1, {"train/total": 0.5})
    result = {"model": "hrm/v1", "metrics": {}}
    run.record(PhaseRecord(phase="hrm_training", verdict="pass", reason="", checks=(), result=result, seconds=1.0))
    project(settings)
    (version,) = client(settings).search_model_versions("name = 'hrm'")
    assert client(settings).get_run(version.run_id).info.run_name == run.id


def test_a_store_that_is_locked_or_absent_costs_a_warning_and_is_caught_up_with(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 2)  # of a store that is absent: ten take 100 s
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{settings.paths.state_dir / 'models'}")  # a folder
    assert project(settings)["problems"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    project(settings)
    command(settings, "start", champion="ppo/v1", challenger="hrm/v1")
    with sqlite3.connect(settings.paths.state_dir / "mlflow.db") as held:
        held.execute("BEGIN EXCLUSIVE")
        assert project(settings)["problems"]
        held.rollback()
    project(settings)
    assert standing(settings) == {"ppo": {"champion": "v1"}, "hrm": {"challenger": "v1"}}


def test_a_damaged_version_is_left_out_and_the_others_are_not(settings: Settings) -> None:
    (settings.paths.state_dir / "models" / "hrm" / "v1" / "manifest.json").write_text("{}")
    assert project(settings)["registered"] == 2


@pytest.mark.slow  # each of two processes makes the store: seconds of migrations
def test_two_processes_that_make_the_store_at_once_both_end_well(settings: Settings) -> None:
    code = """
import time
from core.settings import load_settings
from flows.registry import project
for _ in range(20):
    found = project(load_settings())
    if not found["problems"]:
        break
    time.sleep(0.5)
assert not found["problems"], found
"""
    environ = os.environ | {"HRM_PATHS__STATE_DIR": str(settings.paths.state_dir)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=environ) for _ in range(2)]
    assert [each.wait(timeout=200) for each in both] == [0, 0]
    project(settings)
    names = [(one.name, one.tags["hrm.version"]) for one in client(settings).search_model_versions()]
    assert len(set(names)) == 3


@pytest.mark.slow  # MLflow's migrations on a server
def test_a_postgres_server_does_as_well(
    settings: Settings, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database().render_as_string(hide_password=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    command(settings, "start", champion="ppo/v1", challenger="hrm/v1")
    assert project(settings)["problems"] == []
    found = MlflowClient(url).get_model_version_by_alias("hrm", "challenger")
    assert found.tags["hrm.version"] == "v1"
