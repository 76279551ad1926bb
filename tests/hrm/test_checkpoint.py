"""Checkpoints: a resumed run is the same run, and a damaged folder is refused whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hrm_planted import HRM, QUANTITY_MAX, SCHEMA, SMALL, model, objective, planted_batch, settings

from core.errors import ModelError
from core.files import sha256_hex
from hrm.checkpoint import INDEX, Trainer, load_checkpoint, load_model, save_checkpoint
from hrm.model import HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer

ROWS = 8
EXPLORING = SMALL | {  # the random minimum decides which rows are replaced
    f"{HRM}ACT__EXPLORATION": "0.5",
    "HRM_DEEP_SUPERVISION__MAX_SUPERVISION_SEGMENTS": "6",
}


def trainer(environ: dict[str, str] | None = None, seed: int = 0) -> Trainer:
    environ = SMALL if environ is None else environ
    return DeepSupervisionTrainer(model(environ, seed=seed), settings(environ), objective(), total_steps=50, seed=seed)


def trained(steps: int = 3, environ: dict[str, str] | None = None) -> Trainer:
    run = trainer(environ)
    for step in range(steps):
        run.train_step(planted_batch(ROWS, step))
    return run


@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_run_continues_with_the_identical_losses(tmp_path: Path, steps: int) -> None:
    run, other = trained(steps, EXPLORING), trainer(EXPLORING, seed=9)
    torch.nn.init.constant_(run.model.q_head.bias, 3.0)  # rows halt: only exploration goes on
    save_checkpoint(tmp_path, run)
    assert load_checkpoint(tmp_path, other).step == other.step == steps
    batches = [planted_batch(ROWS, 100 + step) for step in range(5)]
    assert [run.train_step(batch) for batch in batches] == [other.train_step(batch) for batch in batches]


def test_the_averaged_model_comes_back_alone(tmp_path: Path) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    net = load_model(tmp_path)
    assert net.schema == SCHEMA
    for name, value in run.ema.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_a_newer_checkpoint_replaces_the_older_one_and_leaves_nothing_behind(tmp_path: Path) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    run.train_step(planted_batch(ROWS, 7))
    newest = save_checkpoint(tmp_path, run)
    assert {file.name for file in tmp_path.iterdir()} == {INDEX, newest.model.name, newest.training.name}


def test_a_crash_before_the_index_is_written_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    run.train_step(planted_batch(ROWS, 7))

    def full_disk(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("hrm.checkpoint.write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, run)
    assert load_checkpoint(tmp_path, trainer()).step == 3


def truncate(folder: Path) -> None:
    file = next(folder.glob("training-*"))
    file.write_bytes(file.read_bytes()[:100])


def flip_a_weight(folder: Path) -> None:
    file = next(folder.glob("model-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def remove_a_file(folder: Path) -> None:
    next(folder.glob("model-*")).unlink()


def remove_the_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def garble_the_index(folder: Path) -> None:
    (folder / INDEX).write_text("{not json")


def point_outside(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["model"]["name"] = "../../etc/passwd"
    (folder / INDEX).write_text(json.dumps(index))


def replace_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Damage that comes with a matching digest: a file that is whole, and wrong."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        tensors = safetensors.torch.load_file(folder / index["model"]["name"])
        change(tensors)
        data = safetensors.torch.save(tensors)
        digest = sha256_hex(data)
        index["model"] = {"name": f"model-{digest[:16]}.safetensors", "sha256": digest}
        (folder / index["model"]["name"]).write_bytes(data)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ema.recurrence.H_init"][0] = np.nan


def missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.recurrence.H_init"]


def misshapen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.recurrence.H_init"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"training-.*does not match the digest"),
        (flip_a_weight, r"model-.*does not match the digest"),
        (remove_a_file, r"model-.*not readable"),
        (remove_the_index, r"checkpoint\.json: no readable checkpoint"),
        (garble_the_index, r"checkpoint\.json: document"),
        (point_outside, r"checkpoint\.json: model\.name"),
        (replace_weights(not_finite), r"not finite: ema\.recurrence\.H_init"),
        (replace_weights(missing), r"missing.*model\.recurrence\.H_init"),
        (replace_weights(misshapen), r"misshapen.*model\.recurrence\.H_init"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    save_checkpoint(tmp_path, trained())
    damage(tmp_path)
    run = trainer(seed=5)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(ModelError, match=message) as caught:
        load_checkpoint(tmp_path, run)
    assert "restore the folder" in str(caught.value)
    assert run.step == 0
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_another_schema_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained())
    schema = SCHEMA.model_copy(update={"bar_features": ("return", "spread")})
    other = HierarchicalReasoningModel(settings(SMALL).hierarchical_reasoning_model, schema, QUANTITY_MAX)
    run = DeepSupervisionTrainer(other, settings(SMALL), objective(), total_steps=5)
    with pytest.raises(ModelError, match="another observation schema"):
        load_checkpoint(tmp_path, run)


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained())
    with pytest.raises(ModelError, match="other settings of hierarchical;"):
        load_checkpoint(tmp_path, trainer(SMALL | {f"{HRM}HIERARCHICAL__N_CYCLES": "3"}))
