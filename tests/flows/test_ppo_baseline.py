"""The incumbent's training leaves its learning curve: in the phase's result, and in the tracking store."""

from __future__ import annotations

from mlflow import MlflowClient
from tiny_migration import tiny_settings

from flows.ppo_baseline_capture import PHASE, train_incumbent
from flows.run_state import inputs_of, open_run
from flows.tracking import EXPERIMENT


def test_the_score_on_validation_sessions_is_recorded_by_samples(tmp_path):
    run = open_run(inputs_of(tiny_settings(tmp_path, HRM_TRAINING_PARAMS__PPO__TOTAL_TIMESTEPS="30000"), None, 0))
    result = train_incumbent.fn(str(run.folder))
    samples = [point["samples"] for point in result["validation"]]
    assert samples == sorted(set(samples))
    assert len(samples) == 10
    assert all(set(point) == {"samples", "loss_bps", "score"} for point in result["validation"])

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [record] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert record.info.run_name == f"{run.id}-ppo"
    assert record.data.params["ppo.total_timesteps"] == "30000"
    assert record.data.tags["hrm.run"] == str(run.folder / PHASE)  # the HRM of the same migration is another run
    history = client.get_metric_history(record.info.run_id, "validation/score")
    assert {point.step: point.value for point in history} == {p["samples"]: p["score"] for p in result["validation"]}
    assert client.get_metric_history(record.info.run_id, "train/reward_bps")
