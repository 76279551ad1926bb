"""What the tracking store is told, and that training neither waits for it nor fails by it."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recorded_training
from mlflow import MlflowClient
from structlog.testing import capture_logs
from tracking_store import make_store

from core.settings import load_settings
from flows import tracking
from flows.fit import fit, parameters
from flows.phases import dataset_of
from flows.ppo_baseline_capture import train_incumbent
from flows.run_state import inputs_of, open_run
from flows.tracking import EXPERIMENT, LOOK, Description, tracked, trials
from trading.files import to_frame, write_bars
from trading.synthetic import simulate


def description(folder: Path) -> Description:
    return Description("20260101-1", folder / "runs" / "20260101-1", {"training.seed": "1"}, {"preset": "compact"})


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory whose store knows a finished training of two steps."""
    folder = tmp_path_factory.mktemp("tracked")
    with tracked(folder, description(folder)) as record:
        record(25, {"train/total": 0.5, "rows_s": 100.0})
        record(50, {"train/total": 0.25})
    return folder


@pytest.fixture
def client(state_dir: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{state_dir / 'mlflow.db'}")


def runs(client: MlflowClient) -> list[object]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def history(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, metric))


def test_a_training_is_recorded_with_parameters_tags_and_metrics_by_step(client):
    [run] = runs(client)
    assert run.info.run_name == "20260101-1"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"training.seed": "1"}
    assert run.data.tags["preset"] == "compact"
    assert history(client, run.info.run_id, "train/total") == [(25, 0.5), (50, 0.25)]
    assert history(client, run.info.run_id, "rows_s") == [(25, 100.0)]


def test_a_training_that_is_continued_goes_on_under_the_same_run_and_one_that_fails_is_failed(state_dir, client):
    with pytest.raises(ValueError, match="a bug"), tracked(state_dir, description(state_dir)) as record:
        record(75, {"train/total": 0.2})
        raise ValueError("a bug")
    [run] = runs(client)
    assert run.info.status == "FAILED"
    assert history(client, run.info.run_id, "train/total") == [(25, 0.5), (50, 0.25), (75, 0.2)]


def test_a_locked_store_is_warned_about_once_and_training_does_not_wait_for_it(state_dir, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH_S", 0.05)
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.5)
    other = sqlite3.connect(state_dir / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with capture_logs() as logs, tracked(state_dir, description(state_dir)) as record:
        began = time.monotonic()
        for step in range(1000):
            record(step, {"train/total": 0.1})
        recording_s = time.monotonic() - began
    other.execute("ROLLBACK")
    other.close()
    assert recording_s < 3.0  # a thousand times into a queue; waiting for the store once would take longer
    assert [line["event"] for line in logs] == ["tracking_store_unavailable"]


def test_what_a_store_missed_is_sent_when_it_answers_again(tmp_path):
    store = tracking._Store(f"sqlite:///{tmp_path / 'absent' / 'mlflow.db'}", description(tmp_path))
    (tmp_path / "absent").write_text("a file where the folder would be")
    with capture_logs() as logs:
        store.send([tracking.Point("loss", 1.0, 0, 1)])
        store.send([tracking.Point("loss", 0.5, 0, 2)])
        (tmp_path / "absent").unlink()
        store.send([tracking.Point("loss", 0.25, 0, 3)], "FINISHED")
    assert [line["event"] for line in logs] == ["tracking_store_unavailable"]
    [run] = runs(MlflowClient(store.uri))
    client = MlflowClient(store.uri)
    assert history(client, run.info.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_a_server_that_nobody_runs_costs_training_nothing(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.5)
    with capture_logs() as logs, tracked(tmp_path, description(tmp_path)) as record:
        record(1, {"train/total": 0.1})
    assert [line["event"] for line in logs] == ["tracking_store_unavailable"]
    assert not (tmp_path / "mlflow.db").exists()


NOBODY_CALLED = """
import socket, sys
from pathlib import Path
called = []
def connect(self, address): called.append(address); raise OSError("no network")
socket.socket.connect = connect
socket.getaddrinfo = lambda host, *rest, **more: called.append(host) or []
from flows import tracking
from flows.tracking import Description, tracked
tracking.PATIENCE_S = 100.0  # a busy machine takes its time to import mlflow
assert "mlflow" not in sys.modules  # its import is paid for in training only
folder = Path(sys.argv[1])
with tracked(folder, Description("a", folder / "a", {}, {})) as record:
    record(1, {"loss": 1.0})
assert (folder / "mlflow.db").exists() and "mlflow" in sys.modules
print(called)
"""


def test_nothing_is_sent_anywhere_and_mlflow_is_imported_only_to_record(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOBODY_CALLED, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_parameters_are_the_settings_by_dotted_name_and_fit_into_one_batch():
    found = parameters(load_settings(preset="compact", environ={}))
    assert found["training.learning_rate"] == "0.001"
    assert found["hrm.hierarchical.N_cycles"] == "2"
    assert len(found) <= 100


def train_on(state_dir: Path, name: str, dataset_digest: str, points: dict[int, dict[str, float]]) -> None:
    """A finished training in the store, with what it recorded at each step."""
    run = Description(name, state_dir / "runs" / name, {}, {"dataset_digest": dataset_digest})
    with tracked(state_dir, run) as record:
        for step, metrics in points.items():
            record(step, metrics)


def test_the_trials_of_a_dataset_are_all_looks_of_all_trainings_at_it(tmp_path):
    make_store(tmp_path)
    train_on(tmp_path, "a", "one", {10: {LOOK: 0.1, "validation/loss_bps": 3.0}, 20: {LOOK: -0.2}})
    train_on(tmp_path, "b", "one", {10: {LOOK: 0.3}})
    train_on(tmp_path, "c", "two", {10: {LOOK: 9.0}})
    train_on(tmp_path, "old", "one", {5: {"validation/loss_bps": 2.0}, 9: {"validation/loss_bps": 1.0}})
    with capture_logs() as logs:
        found = trials(tmp_path, "one")
    assert sorted(found.sharpes) == [-0.2, 0.1, 0.3]
    assert (found.unrecorded, found.count, found.complete) == (2, 5, True)
    assert logs == []


def test_a_look_that_was_repeated_after_a_kill_is_one_and_that_of_a_failed_training_counts(tmp_path):
    make_store(tmp_path)
    train_on(tmp_path, "a", "one", {10: {LOOK: 0.1}})
    with pytest.raises(ValueError, match="a bug"):
        run = Description("a", tmp_path / "runs" / "a", {}, {"dataset_digest": "one"})
        with tracked(tmp_path, run) as record:
            record(10, {LOOK: 0.1})
            record(20, {LOOK: 0.2})
            raise ValueError("a bug")
    assert sorted(trials(tmp_path, "one").sharpes) == [0.1, 0.2]


def test_without_a_store_or_a_look_on_record_there_is_at_least_one_trial_and_a_warning(tmp_path, state_dir):
    for folder in (tmp_path, state_dir):
        with capture_logs() as logs:
            found = trials(folder, "one")
        assert (found.count, found.complete) == (1, False)
        assert [line["event"] for line in logs] == ["trials_unknown"]
        assert "lower bound" in logs[0]["effect"]
    assert not (tmp_path / "mlflow.db").exists()  # asking leaves nothing behind


def test_a_store_that_is_damaged_is_a_store_that_cannot_be_asked(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    with capture_logs() as logs:
        assert not trials(tmp_path, "one").complete
    assert [line["event"] for line in logs] == ["trials_unknown"]
    assert (tmp_path / "mlflow.db").read_bytes().startswith(b"this is no database")


def test_every_validation_of_a_training_is_a_look_with_its_sharpe_ratio(tmp_path):
    make_store(tmp_path)
    settings, file = recorded_training.small_settings(tmp_path), tmp_path / "bars.parquet"
    write_bars(to_frame(simulate(settings.synthetic_market, sessions=90, seed=0).bars), file)
    run = open_run(inputs_of(settings, file, 0))
    data = dataset_of(run)
    curve = fit(recorded_training.agent_of(run), data, run)
    found = trials(tmp_path, data.digest)
    assert found.count == len(found.sharpes) == len(curve) == 3
    assert found.unrecorded == 0


def test_the_looks_at_a_ppo_in_training_are_trials_too(tmp_path):
    make_store(tmp_path)
    few = {"N_ENVS": "8", "N_STEPS": "15", "BATCH_SIZE": "60", "TOTAL_TIMESTEPS": "1200"}
    changes = {f"HRM_TRAINING_PARAMS__PPO__{name}": value for name, value in few.items()}
    settings, file = recorded_training.small_settings(tmp_path, **changes), tmp_path / "bars.parquet"
    write_bars(to_frame(simulate(settings.synthetic_market, sessions=90, seed=0).bars), file)
    run = open_run(inputs_of(settings, file, 0))
    trained = train_incumbent.fn(str(run.folder))
    found = trials(tmp_path, dataset_of(run).digest)
    assert found.count == len(found.sharpes) == len(trained["validation"]) > 0
