"""Stage B from a checkpoint to a published version: never worse where it is selected, both stages compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_migration import tiny_settings

from core.errors import ConfigError, ModelError
from core.settings import Settings
from flows.fine_tuning import fine_tune, fine_tune_and_publish
from flows.measure import validated
from flows.train import train_and_publish
from hrm.agent import HRMAgent
from hrm.checkpoint import load_model
from trading.dataset import build_dataset
from trading.evaluation import Evaluation

TUNING = "HRM_TRAINING_PARAMS__FINE_TUNING__"
FEW = {
    "HRM_TRAINING_PARAMS__HRM__ROWS_PER_EPOCH": "12800",  # a stage A that there is something to ruin of
    "HRM_TRAINING_PARAMS__PPO__N_STEPS": "8",
    f"{TUNING}TOTAL_TIMESTEPS": "512",  # two updates
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(state directory, checkpoint) of a stage A."""
    torch.set_num_threads(1)
    state_dir = tmp_path_factory.mktemp("fine-tuning")
    return state_dir, Path(train_and_publish(settings(state_dir), "hrm", None, version="a")["checkpoint"])


def settings(state_dir: Path, **changes: str) -> Settings:
    return tiny_settings(state_dir, **(FEW | changes))


def test_it_publishes_a_version_and_puts_both_stages_side_by_side(trained: tuple[Path, Path]) -> None:
    state_dir, checkpoint = trained
    result = fine_tune_and_publish(checkpoint, settings(state_dir), None, version="b")
    assert result["model"] == "hrm/b"
    assert (state_dir / "models" / "hrm" / "b" / "manifest.json").exists()
    for stage in ("stage_a", "stage_b"):
        assert result[stage]["ci95_low"] <= result[stage]["score"] <= result[stage]["ci95_high"]
    assert result["advantage_ci95_low"] <= result["advantage_bps_per_day"] <= result["advantage_ci95_high"]
    assert [point["steps"] for point in result["curve"]] == [0, 256, 512]
    assert result["improved"] == (max(point["advantage_ci95_low"] for point in result["curve"]) > 0.0)


def test_what_fine_tuning_ruins_is_not_published(trained: tuple[Path, Path]) -> None:
    state_dir, checkpoint = trained
    reckless = settings(state_dir, **{f"{TUNING}LEARNING_RATE": "3", f"{TUNING}KL_COEF": "0"})
    result = fine_tune_and_publish(checkpoint, reckless, None, version="ruined")
    losses = [point["loss_bps"] for point in result["curve"]]
    assert losses[-1] > losses[0]
    assert not result["improved"]
    assert result["advantage_bps_per_day"] == 0.0
    stage_a, kept = load_model(checkpoint).state_dict(), load_model(Path(result["checkpoint"])).state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in stage_a.items())


def test_a_better_mean_is_kept_only_if_it_is_certain(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dir, checkpoint = trained
    chosen = settings(state_dir, **{f"{TUNING}TOTAL_TIMESTEPS": "768"})  # three updates
    data = build_dataset(chosen, None, 0)
    agent = HRMAgent(data.schema, chosen, data.label_cost_bps)
    agent.load_model(checkpoint)
    real, weights = validated(agent.decide_batch, data), list[torch.Tensor]()
    # mean regrets 5, 4.9, 4 and 3; the last is better by far on one session in twenty and worse on the others
    regrets = iter([np.full(20, 5.0), np.full(20, 4.9), np.full(20, 4.0), np.append(np.full(19, 5.5), -44.5)])

    def planted(*_: object) -> Evaluation:
        weights.append(agent.model.output_network.policy.weight.clone())
        return replace(real, regret_bps=next(regrets))

    monkeypatch.setattr("flows.fine_tuning.validated", planted)
    curve = fine_tune(agent, data, chosen)
    assert [point["loss_bps"] for point in curve] == pytest.approx([5.0, 4.9, 4.0, 3.0])
    assert torch.equal(agent.model.output_network.policy.weight, weights[2])
    assert not torch.equal(weights[2], weights[3])


def test_a_taken_version_a_bad_name_and_a_missing_checkpoint_are_refused_before_training(
    trained: tuple[Path, Path],
) -> None:
    state_dir, checkpoint = trained
    with pytest.raises(ModelError, match="published already"):
        fine_tune_and_publish(checkpoint, settings(state_dir), None, version="a")
    (unfinished := state_dir / "trainings" / "hrm" / "unfinished").mkdir()
    with pytest.raises(ConfigError, match="another training's"):  # whose checkpoint would be written over
        fine_tune_and_publish(checkpoint, settings(state_dir), None, version=unfinished.name)
    with pytest.raises(ConfigError, match="up to 64"):
        fine_tune_and_publish(checkpoint, settings(state_dir), None, version="../b")
    with pytest.raises(ModelError, match="no readable checkpoint"):
        fine_tune_and_publish(state_dir / "absent", settings(state_dir), None, version="c")
