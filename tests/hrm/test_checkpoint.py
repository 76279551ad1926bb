"""Checkpoints: a resumed run is the same run, and a damaged folder is refused whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hrm_planted import HRM, QUANTITY_MAX, SCHEMA, SMALL, model, objective, planted_batch, settings
from structlog.testing import capture_logs

from core.errors import ModelError
from core.files import sha256_hex
from hrm.batch import Batch
from hrm.checkpoint import INDEX, NEXT, PREVIOUS, Extra, load_checkpoint, load_model, read_checkpoint, save_checkpoint
from hrm.model import HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer
from hrm.training_state import Trainer, restore_generator

ROWS = 8
TRAINING = "HRM_TRAINING_PARAMS__HRM__"
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


@pytest.mark.parametrize("optimizer", ["adamw", "adam_atan2"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_resumed_run_continues_with_the_identical_losses(tmp_path: Path, steps: int, optimizer: str) -> None:
    environ = EXPLORING | {f"{TRAINING}OPTIMIZER": optimizer}
    run, other = trained(steps, environ), trainer(environ, seed=9)
    torch.nn.init.constant_(run.model.q_head.bias, 3.0)  # rows halt: only exploration goes on
    save_checkpoint(tmp_path, run)
    load_checkpoint(tmp_path, other)
    assert other.step == steps
    batches = [planted_batch(ROWS, 100 + step) for step in range(5)]
    assert [run.train_step(batch) for batch in batches] == [other.train_step(batch) for batch in batches]


def test_what_the_caller_keeps_beside_the_trainer_comes_back(tmp_path: Path) -> None:
    extra = Extra({"epoch": 3, "loss": 0.1 + 0.2}, {"best": torch.arange(4.0), "sampler": torch.arange(3).byte()})
    save_checkpoint(tmp_path, trained(), extra)
    found = load_checkpoint(tmp_path, trainer())
    assert found.notes == extra.notes
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in extra.tensors.items())
    assert set(found.tensors) == set(extra.tensors)


def poisoned(seed: int) -> Batch:
    batch = planted_batch(ROWS, seed)
    return batch | {"bars": torch.full_like(batch["bars"], math.nan)}


def test_a_resumed_run_remembers_its_recoveries_and_recovers_to_the_same_state(tmp_path: Path) -> None:
    frequent = SMALL | {"HRM_MODEL_MANAGEMENT__CHECKPOINT_FREQUENCY": "2"}
    frequent |= {"HRM_DEEP_SUPERVISION__MAX_SUPERVISION_SEGMENTS": "1"}  # every batch is taken whole
    run, other = trainer(frequent), trainer(frequent, seed=9)
    for batch in (planted_batch(ROWS, 0), poisoned(1), planted_batch(ROWS, 2)):  # two steps and a recovery
        run.train_step(batch)
    save_checkpoint(tmp_path, run)  # at step 2, where the monitor has just taken its own snapshot
    load_checkpoint(tmp_path, other)
    assert other.monitor.recoveries == 1
    batches = [planted_batch(ROWS, 3), poisoned(4), planted_batch(ROWS, 5), planted_batch(ROWS, 6)]
    losses = [[each.train_step(batch) for batch in batches] for each in (run, other)]
    np.testing.assert_array_equal(*losses)
    assert run.monitor.recoveries == other.monitor.recoveries == 2
    with pytest.raises(ModelError, match="after 3 recoveries"):
        for step in range(2):
            other.train_step(poisoned(step))


def test_the_averaged_model_comes_back_alone(tmp_path: Path) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    net = load_model(tmp_path)
    assert net.schema == SCHEMA
    for name, value in run.ema.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_the_newest_checkpoint_and_the_one_before_it_are_kept_and_nothing_else(tmp_path: Path) -> None:
    run = trained()
    (tmp_path / ".model-0123.safetensors.x1").write_bytes(b"what a killed process left")
    for step in range(3):
        save_checkpoint(tmp_path, run)
        run.train_step(planted_batch(ROWS, 7 + step))
    newest, previous = read_checkpoint(tmp_path), read_checkpoint(tmp_path, PREVIOUS)
    assert (newest.step, previous.step) == (5, 4)
    named = {stored.name for checkpoint in (newest, previous) for stored in checkpoint.files}
    assert {file.name for file in tmp_path.iterdir()} == {INDEX, PREVIOUS} | named


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
    other = trainer()
    load_checkpoint(tmp_path, other)
    assert other.step == 3


@pytest.mark.parametrize("renames", [0, 1])
def test_a_crash_while_a_checkpoint_is_put_in_place_leaves_two_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    run = trained()
    for step in range(2):
        save_checkpoint(tmp_path, run)
        run.train_step(planted_batch(ROWS, 7 + step))
    done, replace = [], Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name in (INDEX, PREVIOUS):
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, run)
    monkeypatch.undo()
    other = trainer()
    load_checkpoint(tmp_path, other)
    assert other.step == 5  # its files and its index were whole
    (tmp_path / read_checkpoint(tmp_path, NEXT).training.name).unlink()
    load_checkpoint(tmp_path, other)
    assert other.step == 4
    save_checkpoint(tmp_path, run)
    assert not (tmp_path / NEXT).exists()
    load_checkpoint(tmp_path, other)
    assert other.step == 5


def test_a_checkpoint_saved_twice_does_not_push_the_previous_one_out(tmp_path: Path) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    run.train_step(planted_batch(ROWS, 7))
    for _ in range(2):
        save_checkpoint(tmp_path, run)
    assert [read_checkpoint(tmp_path, index).step for index in (INDEX, PREVIOUS)] == [4, 3]


def test_a_garbled_previous_one_does_not_stop_the_next_from_being_saved(tmp_path: Path) -> None:
    run = trained()
    for step in range(3):
        save_checkpoint(tmp_path, run)
        run.train_step(planted_batch(ROWS, 7 + step))
        if step:
            (tmp_path / PREVIOUS).write_text("{not json")
    assert read_checkpoint(tmp_path).step == 5


def newest_file(folder: Path, kind: str) -> Path:
    checkpoint = read_checkpoint(folder)
    stored = checkpoint.rows[0] if kind == "rows" else getattr(checkpoint, kind)
    return folder / stored.name


def truncate(kind: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = newest_file(folder, kind)
        file.write_bytes(file.read_bytes()[:100])

    return damage


def flip_a_bit(kind: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = newest_file(folder, kind)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))

    return damage


def remove(kind: str) -> Callable[[Path], None]:
    return lambda folder: newest_file(folder, kind).unlink()


def remove_the_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def garble_the_index(folder: Path) -> None:
    (folder / INDEX).write_text("{not json")


def empty_the_index(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"")


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


FORGED = [replace_weights(change) for change in (not_finite, missing, misshapen)]
DAMAGES = [
    (truncate("training"), r"training-.*does not match its digest"),
    (truncate("rows"), r"rows-.*does not match its digest"),
    (flip_a_bit("model"), r"model-.*does not match its digest"),
    (flip_a_bit("rows"), r"rows-.*does not match its digest"),
    (remove("model"), r"model-.*not readable"),
    (remove("training"), r"training-.*not readable"),
    (remove("rows"), r"rows-.*not readable"),
    (remove_the_index, r"checkpoint\.json: no readable checkpoint"),
    (garble_the_index, r"checkpoint\.json: document"),
    (empty_the_index, r"checkpoint\.json: document"),
    (point_outside, r"checkpoint\.json: model\.name"),
    (FORGED[0], r"not finite: ema\.recurrence\.H_init"),
    (FORGED[1], r"missing.*model\.recurrence\.H_init"),
    (FORGED[2], r"misshapen.*model\.recurrence\.H_init"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
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


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_previous_one_which_stays(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    later = [run.train_step(planted_batch(ROWS, 100 + step)) for step in range(3)]
    save_checkpoint(tmp_path, run)
    damage(tmp_path)
    other = trainer(seed=9)
    with capture_logs() as logs:
        load_checkpoint(tmp_path, other)
    assert [line["event"] for line in logs] == ["previous_checkpoint_taken"]
    assert re.search(message, logs[0]["why"])
    assert load_model(tmp_path).state_dict().keys() == other.ema.state_dict().keys()
    assert [other.train_step(planted_batch(ROWS, 100 + step)) for step in range(3)] == later
    if damage not in FORGED:  # those have a digest that fits: nothing but a model notices them
        other.train_step(planted_batch(ROWS, 103))
        save_checkpoint(tmp_path, other)
        assert [read_checkpoint(tmp_path, index).step for index in (INDEX, PREVIOUS)] == [7, 3]


def test_two_damaged_checkpoints_are_one_clear_error(tmp_path: Path) -> None:
    run = trained()
    save_checkpoint(tmp_path, run)
    run.train_step(planted_batch(ROWS, 7))
    save_checkpoint(tmp_path, run)
    for file in tmp_path.glob("training-*"):
        file.write_bytes(b"")
    with pytest.raises(ModelError, match=r"training-.*the one before it neither: .*training-.*delete the folder"):
        load_checkpoint(tmp_path, trainer())


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


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({f"{TRAINING}OPTIMIZER": "adam_atan2"}, "optimizer"),
        ({f"{TRAINING}SCHEDULER": "constant"}, "scheduler"),
        ({f"{TRAINING}LEARNING_RATE": "0.5"}, "learning_rate"),
        ({f"{HRM}ACT__Q_LEARNING_LR": "0.5"}, r"act\.q_learning_lr"),
        ({f"{HRM}ACT__HALTING": "q_learning"}, r"act\.halting"),
        (
            {"HRM_DEEP_SUPERVISION__GRADIENT_APPROXIMATION": "full_bptt"},
            r"deep_supervision\.gradient_approximation",
        ),
    ],
)
def test_another_schedule_or_optimizer_is_refused_by_name(tmp_path: Path, change: dict[str, str], name: str) -> None:
    for _ in range(2):  # a previous one does not help
        save_checkpoint(tmp_path, trained())
    with pytest.raises(ModelError, match=f"other settings of {name};"):
        load_checkpoint(tmp_path, trainer(SMALL | change))


def test_a_longer_schedule_is_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, trained())
    longer = DeepSupervisionTrainer(model(SMALL), settings(SMALL), objective(), total_steps=51)
    with pytest.raises(ModelError, match="other settings of total_steps;"):
        load_checkpoint(tmp_path, longer)


def test_a_checkpoint_from_another_kind_of_device_restarts_the_random_sequence_and_says_so(tmp_path: Path) -> None:
    run = trained()
    state = {"generator": torch.zeros(16, dtype=torch.uint8)}  # a GPU's
    before = run.generator.get_state()
    with capture_logs() as logs:
        restore_generator(run.generator, state["generator"])
    assert [line["event"] for line in logs] == ["random_sequence_restarts"]
    assert torch.equal(run.generator.get_state(), before)
