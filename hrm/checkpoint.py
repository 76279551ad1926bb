"""The whole state of a training run as a folder: safetensors and JSON, nothing that could run code.

    checkpoint.json                  settings, schema, step, names and SHA-256 of the two files
    model-<digest>.safetensors       `model.<parameter>` (as trained) and `ema.<parameter>` (to decide with)
    training-<digest>.safetensors    optimizer moments, the rows in training, the random generator

The JSON file is replaced last and in one step, so a crash at any moment leaves the previous checkpoint whole.
A resumed run continues with the identical sequence of losses, given the same batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from core.errors import ModelError
from core.files import sha256_hex, write_atomically, write_json
from core.observation import ObservationSchema
from core.settings import HierarchicalReasoningModelSettings
from hrm.convergence import ConvergenceMonitor
from hrm.model import Carry, HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer, Rows

INDEX = "checkpoint.json"
REMEDY = "train again or restore the folder from a copy"

Tensors = Mapping[str, Tensor]
Trainer = DeepSupervisionTrainer[HierarchicalReasoningModel]


class StoredFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^(model|training)-[0-9a-f]{16}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Checkpoint(BaseModel):
    """checkpoint.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    settings: HierarchicalReasoningModelSettings
    observation: ObservationSchema
    quantity_max: float = Field(gt=0)
    step: int = Field(ge=0)
    loss_average: float | None
    observations: int = Field(ge=0)
    recoveries: int = Field(ge=0)
    model: StoredFile
    training: StoredFile


def save_checkpoint(folder: Path, trainer: Trainer) -> Checkpoint:
    """Write the trainer's state; the folder holds one checkpoint, the newest. Raises OSError, harming nothing."""
    model, monitor = trainer.model, trainer.monitor
    checkpoint = Checkpoint(
        settings=model.settings,
        observation=model.schema,
        quantity_max=model.quantity_max,
        step=trainer.step,
        loss_average=monitor.average,
        observations=monitor.observations,
        recoveries=monitor.recoveries,
        model=_store(folder, "model", _weights(trainer)),
        training=_store(folder, "training", _training_state(trainer)),
    )
    write_json(folder / INDEX, checkpoint.model_dump(mode="json"))
    kept = {checkpoint.model.name, checkpoint.training.name}
    for file in folder.glob("*.safetensors"):
        if file.name not in kept:
            file.unlink(missing_ok=True)
    return checkpoint


def load_checkpoint(folder: Path, trainer: Trainer) -> Checkpoint:
    """Restore the trainer's state. Raises ModelError, changing nothing, if anything about the folder is wrong."""
    checkpoint = read_checkpoint(folder)
    checkpoint.observation.require(trainer.model.schema, str(folder))
    _require_same_model(folder, checkpoint, trainer.model)
    weights = _read(folder, checkpoint.model)
    state = _read(folder, checkpoint.training)
    _require_weights(folder, weights, trainer.model)
    _require_training_state(folder, state, trainer)
    trainer.model.load_state_dict(_part(weights, "model."))
    trainer.ema.load_state_dict(_part(weights, "ema."))
    trainer.step = checkpoint.step
    _restore_training_state(trainer, state)
    _restore_monitor(trainer, checkpoint)
    return checkpoint


def load_model(folder: Path) -> HierarchicalReasoningModel:
    """The averaged model of a checkpoint, on the CPU, in evaluation mode. Raises ModelError as above."""
    checkpoint = read_checkpoint(folder)
    model = HierarchicalReasoningModel(checkpoint.settings, checkpoint.observation, checkpoint.quantity_max)
    weights = _read(folder, checkpoint.model)
    _require_weights(folder, weights, model)
    model.load_state_dict(_part(weights, "ema."))
    return model.eval()


def read_checkpoint(folder: Path) -> Checkpoint:
    """The folder's checkpoint.json. Raises ModelError if it is absent or malformed."""
    file = folder / INDEX
    try:
        return Checkpoint.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{file}: no readable checkpoint ({error.strerror}); {REMEDY}", code="checkpoint_absent"
        ) from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"]) or "document"
        raise ModelError(f"{file}: {place}: {detail['msg']}; {REMEDY}", code="checkpoint_damaged") from None


def _store(folder: Path, kind: str, tensors: Tensors) -> StoredFile:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous)
    digest = sha256_hex(data)
    stored = StoredFile(name=f"{kind}-{digest[:16]}.safetensors", sha256=digest)
    write_atomically(folder / stored.name, data)
    return stored


def _read(folder: Path, stored: StoredFile) -> dict[str, Tensor]:
    file = folder / stored.name
    try:
        data = file.read_bytes()
        if sha256_hex(data) != stored.sha256:
            raise ModelError(f"{file}: content does not match the digest in {INDEX}; {REMEDY}", code="digest_mismatch")
        return safetensors.torch.load(data)
    except OSError as error:
        raise ModelError(f"{file}: not readable ({error.strerror}); {REMEDY}", code="checkpoint_damaged") from error
    except SafetensorError as error:
        raise ModelError(f"{file}: not a safetensors file ({error}); {REMEDY}", code="checkpoint_damaged") from error


def _part(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _require_same_model(folder: Path, checkpoint: Checkpoint, model: HierarchicalReasoningModel) -> None:
    saved, asked = checkpoint.settings, model.settings
    differing = [name for name in ("architecture", "hierarchical") if getattr(saved, name) != getattr(asked, name)]
    if checkpoint.quantity_max != model.quantity_max:
        differing.append("trading.max_quantity")
    if differing:
        raise ModelError(
            f"{folder}: saved under other settings of {', '.join(differing)}; use those or train again",
            code="settings_mismatch",
        )


def _require_weights(folder: Path, weights: Tensors, model: HierarchicalReasoningModel) -> None:
    own = model.state_dict()
    _require_like(folder, weights, {f"{kind}.{name}": own[name] for kind in ("model", "ema") for name in own})


def _require_training_state(folder: Path, state: Tensors, trainer: Trainer) -> None:
    """Optimizer moments must fit the parameters; before the first step there are none."""
    moments = _part(state, "optimizer.")
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    expected = {
        f"{index}.{name}": torch.empty(()) if name == "step" else parameter
        for index, parameter in enumerate(parameters)
        for name in ("step", "exp_avg", "exp_avg_sq")
    }
    if moments:
        _require_like(folder, moments, expected)
    if "generator" not in state:
        raise ModelError(f"{folder}: the training state has no generator; {REMEDY}", code="checkpoint_damaged")


def _require_like(folder: Path, tensors: Tensors, expected: Tensors) -> None:
    wrong = sorted(set(tensors) ^ set(expected)) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    )
    wrong = wrong or sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if wrong:
        raise ModelError(
            f"{folder}: tensors that are missing, unknown, misshapen or not finite: {', '.join(wrong[:5])}; {REMEDY}",
            code="checkpoint_damaged",
        )


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    raw = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    return raw | {f"ema.{name}": tensor for name, tensor in trainer.ema.state_dict().items()}


def _training_state(trainer: Trainer) -> dict[str, Tensor]:
    state = {
        f"optimizer.{index}.{name}": tensor
        for index, moments in trainer.optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }
    if trainer.rows is not None:
        state |= {f"batch.{name}": tensor for name, tensor in trainer.rows.batch.items()}
        state |= {f"carry.{name}": tensor for name, tensor in trainer.rows.carry._asdict().items()}
        state |= {"rows.steps": trainer.rows.steps, "rows.halted": trainer.rows.halted}
    return state | {"generator": trainer.generator.get_state()}


def _restore_training_state(trainer: Trainer, state: Tensors) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _part(state, "optimizer.").items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = tensor
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    trainer.generator.set_state(state["generator"])
    if "rows.steps" in state:
        trainer.restart_rows(_rows(state, trainer.device))
    else:
        trainer.rows = None


def _rows(state: Tensors, device: torch.device) -> Rows:
    on_device = {name: tensor.to(device) for name, tensor in state.items()}
    batch = _part(on_device, "batch.")
    carry = Carry(on_device["carry.z_H"], on_device["carry.z_L"])
    return Rows(batch, carry, on_device["rows.steps"], on_device["rows.halted"])


def _restore_monitor(trainer: Trainer, checkpoint: Checkpoint) -> None:
    monitor = ConvergenceMonitor(trainer.monitor.snapshot_every, trainer.snapshot())
    monitor.average = checkpoint.loss_average
    monitor.observations, monitor.recoveries = checkpoint.observations, checkpoint.recoveries
    trainer.monitor = monitor
