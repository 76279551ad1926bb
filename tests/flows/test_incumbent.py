"""A migration begins from the PPO that decides already, and never silently demotes another model."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from made_up_runs import new_run, phase_results, record
from tiny_migration import tiny_settings

from core.errors import ConfigError
from core.manifest import IMPORTED, publish
from core.settings import Serving
from delivery.store import RolloutStore
from delivery.transitions import Change, Command, RolloutState
from flows import ppo_baseline_capture
from flows.drill_models import golden, policy_graph
from flows.incumbent import acting_ppo, live_state, require_free_or_own
from flows.phases import dataset_of
from flows.ppo_baseline_capture import capture
from flows.processes import free_port
from flows.run_state import Run, inputs_of, open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return open_run(inputs_of(tiny_settings(tmp_path), None, 0))


def installed(run: Run, model_id: str, challenger: str | None = None, **fields: object) -> None:
    """Publish a policy and let it decide."""
    data, graph = dataset_of(run), policy_graph("none")
    name, version = model_id.split("/")
    described = {"algorithm": "ppo", "observation": data.schema, "dataset_digest": data.digest}
    files = {"model.onnx": graph, "golden.npz": golden(graph)}
    publish(run.models, files, name=name, version=version, parameters=1, quantity_max=1.0, **described | fields)
    store = RolloutStore(run.settings.paths.state_dir / "rollout.db", run.settings.rollout)
    store.apply(Change(Command.INSTALL, time.time(), champion=model_id))
    if challenger is not None:
        store.apply(Change(Command.START, time.time(), champion=model_id, challenger=challenger))
    store.close()


def state_of(run: Run) -> RolloutState:
    store = RolloutStore(run.settings.paths.state_dir / "rollout.db", run.settings.rollout)
    try:
        return store.read()
    finally:
        store.close()


def test_nobody_decides_where_no_service_runs(run):
    installed(run, "ppo/earlier")
    nobody = live_state(run.settings.model_copy(update={"serving": closed_port(run)}))
    require_free_or_own(run, nobody)
    assert acting_ppo(run, nobody) is None


def closed_port(run: Run) -> Serving:
    return run.settings.serving.model_copy(update={"port": free_port("127.0.0.1")})


def test_a_ppo_of_the_same_data_that_decides_is_the_incumbent(run):
    installed(run, "ppo/earlier")
    require_free_or_own(run, state_of(run))
    assert acting_ppo(run, state_of(run)) == "ppo/earlier"


def test_an_imported_ppo_that_decides_is_the_incumbent_whatever_it_was_trained_on(run):
    installed(run, "ppo/mine", dataset_digest=IMPORTED + "0" * 64)
    require_free_or_own(run, state_of(run))
    assert acting_ppo(run, state_of(run)) == "ppo/mine"


def test_the_acting_incumbent_is_measured_and_not_trained_again(run, monkeypatch):
    installed(run, "ppo/earlier")
    measured: list[str] = []
    measure = "flows.ppo_baseline_capture.measure_incumbent"
    monkeypatch.setattr(measure, lambda run_dir, model: measured.append(model) or {"metrics": {}})
    monkeypatch.delattr("flows.ppo_baseline_capture.train_incumbent")
    monkeypatch.setattr(ppo_baseline_capture, "live_state", lambda settings: state_of(run))
    assert capture(run) == {"model": "ppo/earlier", "curve": [], "validation": [], "metrics": {}}
    assert measured == ["ppo/earlier"]


@pytest.mark.parametrize("fields", [{"algorithm": "hrm"}, {"dataset_digest": "other"}], ids=["an HRM", "other data"])
def test_a_model_that_is_no_incumbent_of_this_migration_is_never_demoted(run, fields):
    installed(run, "other/v1", **fields)
    with pytest.raises(ConfigError, match=r"other/v1 decides here.*--state-dir, or stop the service") as refused:
        require_free_or_own(run, state_of(run))
    assert refused.value.code == "champion_mismatch"


def test_a_rollout_under_way_is_not_disturbed(run):
    installed(run, "ppo/earlier", challenger="hrm/new")
    with pytest.raises(ConfigError, match="hrm/new is under way"):
        require_free_or_own(run, state_of(run))


@pytest.mark.parametrize("phase", ["ppo_baseline_capture", "hrm_training"])
def test_a_run_whose_own_model_decides_is_resumed(tmp_path, phase):
    run = new_run(tmp_path)
    record(run, phase, phase_results()[phase])
    store = RolloutStore(tmp_path / "rollout.db", run.settings.rollout)
    store.apply(Change(Command.INSTALL, time.time(), champion=phase_results()[phase]["model"]))
    store.close()
    require_free_or_own(run, state_of(run))
