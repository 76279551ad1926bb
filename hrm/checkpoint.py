"""The whole state of a training run as a folder: safetensors and JSON, nothing that could run code.

    checkpoint.json             the newest: settings, schema, step, names and SHA-256 of its files
    previous.json               the one before it; next.json, for a moment, the one after it
    model-*.safetensors         weights and their average                             (hrm/training_state.py)
    training-*.safetensors      optimizer moments, the random generator, and what the caller wants kept
    rows-*.safetensors          the rows in training, one file for each process

Files are named by their content and an index is put in place last, in one step: a crash at any moment leaves the two
newest checkpoints whole. One that was damaged later is noticed, and the one before it taken. A resumed run continues
with the identical sequence of losses, given the same batches; in another number of processes, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import safetensors.torch
import structlog
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from core.errors import ModelError
from core.files import sha256_hex, write_atomically, write_json
from core.observation import ObservationSchema
from core.settings import DeepSupervision, HierarchicalReasoningModelSettings, HrmTraining
from hrm import training_state
from hrm.model import HierarchicalReasoningModel
from hrm.training_state import REMEDY, Tensors, Trainer, named, part

INDEX = "checkpoint.json"
PREVIOUS = "previous.json"
NEXT = "next.json"
DAMAGE = ("checkpoint_absent", "checkpoint_damaged", "digest_mismatch")  # error codes that the previous one mends
TRAINING = (  # of training_params.hrm: what decides the sequence of losses
    "optimizer",
    "learning_rate",
    "weight_decay",
    "scheduler",
    "warmup_steps",
    "ema_decay",
    "label_temperature",
)

Found = TypeVar("Found")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Extra:
    """What the driver of a trainer keeps beside it: JSON values and tensors."""

    notes: Mapping[str, JsonValue] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)


class StoredFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^(model|training|rows)-[0-9a-f]{16}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Checkpoint(BaseModel):
    """checkpoint.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    settings: HierarchicalReasoningModelSettings
    observation: ObservationSchema
    quantity_max: float = Field(gt=0)
    schedule: HrmTraining
    deep_supervision: DeepSupervision
    total_steps: int = Field(ge=1)
    step: int = Field(ge=0)
    loss: float | None = Field(description="the last one that was judged")
    loss_average: float | None
    observations: int = Field(ge=0)
    recoveries: int = Field(ge=0)
    notes: dict[str, JsonValue]
    model: StoredFile
    training: StoredFile
    rows: tuple[StoredFile, ...] = Field(min_length=1, description="one of each process, by rank")

    @property
    def files(self) -> tuple[StoredFile, ...]:
        return (self.model, self.training, *self.rows)


def save_checkpoint(folder: Path, trainer: Trainer, extra: Extra | None = None) -> None:
    """Write the trainer's state and `extra` as the newest checkpoint; the newest until now becomes the previous.

    All processes that train together call it. Raises OSError, harming nothing.
    """
    world = trainer.world
    rows = _store(folder, "rows", training_state.rows_of(trainer))
    digests = [digest.hex() for digest in world.gather(bytes.fromhex(rows.sha256))]
    if world.leads:
        _save(folder, trainer, extra or Extra(), tuple(_stored_file("rows", digest) for digest in digests))
    world.wait()


def load_checkpoint(folder: Path, trainer: Trainer) -> Extra:
    """Restore the trainer's state from the newest whole checkpoint; what was kept beside it.

    Raises ModelError, changing nothing, if none is whole or it is another model's or another schedule's.
    """
    state = _newest_whole(folder, lambda index: _State.read(folder, index, trainer))
    checkpoint = state.checkpoint
    training_state.restore_weights(trainer, state.weights)
    training_state.restore_training(trainer, state.training)
    training_state.restore_rows(trainer, state.rows)
    trainer.continue_from(checkpoint.step, math.nan if checkpoint.loss is None else checkpoint.loss)
    training_state.restore_monitor(
        trainer, checkpoint.loss_average, observations=checkpoint.observations, recoveries=checkpoint.recoveries
    )
    return Extra(checkpoint.notes, part(state.training, "extra"))


def load_model(folder: Path) -> HierarchicalReasoningModel:
    """The averaged model of the newest whole checkpoint, on the CPU, in evaluation mode. Raises ModelError as above."""
    return _newest_whole(folder, lambda index: _model(folder, index))


def read_checkpoint(folder: Path, index: str = INDEX) -> Checkpoint:
    """What an index file says. Raises ModelError if it is absent or malformed."""
    file = folder / index
    try:
        return Checkpoint.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{file}: no readable checkpoint ({error.strerror}); name the folder that a training wrote, or {REMEDY}",
            code="checkpoint_absent",
        ) from error
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"]) or "document"
        raise ModelError(f"{file}: {place}: {detail['msg']}; {REMEDY}", code="checkpoint_damaged") from None


def exists(folder: Path) -> bool:
    """Whether a checkpoint, whole or not, was ever finished in the folder."""
    return any((folder / index).exists() for index in (NEXT, INDEX, PREVIOUS))


@dataclass(frozen=True)
class _State:
    """A whole checkpoint that fits the trainer, in memory: nothing of the trainer has changed yet."""

    checkpoint: Checkpoint
    weights: Tensors
    training: Tensors
    rows: tuple[Tensors, ...]

    @classmethod
    def read(cls, folder: Path, index: str, trainer: Trainer) -> _State:
        place, checkpoint = str(folder / index), read_checkpoint(folder, index)
        checkpoint.observation.require(trainer.model.schema, place)
        _require_same_training(place, checkpoint, trainer)
        weights, training = _read(folder, checkpoint.model), _read(folder, checkpoint.training)
        rows = tuple(_read(folder, stored) for stored in checkpoint.rows)
        training_state.require_weights(place, weights, trainer.model)
        training_state.require_training(place, training, trainer)
        training_state.require_rows(place, rows, trainer)
        return cls(checkpoint, weights, training, rows)


def _model(folder: Path, index: str) -> HierarchicalReasoningModel:
    checkpoint = read_checkpoint(folder, index)
    model = HierarchicalReasoningModel(checkpoint.settings, checkpoint.observation, checkpoint.quantity_max)
    weights = _read(folder, checkpoint.model)
    training_state.require_weights(str(folder / index), weights, model)
    model.load_state_dict(part(weights, "ema"))
    return model.eval()


def _newest_whole(folder: Path, read: Callable[[str], Found]) -> Found:
    """What `read` makes of the newest checkpoint, or of the one before it if the newest is damaged."""
    problems: list[ModelError] = []
    for index in (NEXT, INDEX, PREVIOUS):
        if index != INDEX and not (folder / index).exists():
            continue
        try:
            found = read(index)
        except ModelError as error:
            if error.code not in DAMAGE:
                raise
            problems.append(error)
            continue
        if problems:
            log.warning("previous_checkpoint_taken", taken=index, why=str(problems[0]))
        return found
    message = "; the one before it neither: ".join(str(problem) for problem in problems)
    raise ModelError(message, code=problems[0].code) from problems[0]


def _save(folder: Path, trainer: Trainer, extra: Extra, rows: tuple[StoredFile, ...]) -> None:
    model, monitor = trainer.model, trainer.monitor
    training = training_state.training_of(trainer) | named("extra", extra.tensors)
    checkpoint = Checkpoint(
        settings=model.settings,
        observation=model.schema,
        quantity_max=model.quantity_max,
        schedule=trainer.settings.training_params.hrm,
        deep_supervision=trainer.settings.deep_supervision,
        total_steps=trainer.total_steps,
        step=trainer.step,
        loss=trainer.loss if math.isfinite(trainer.loss) else None,
        loss_average=monitor.average,
        observations=monitor.observations,
        recoveries=monitor.recoveries,
        notes=dict(extra.notes),
        model=_store(folder, "model", training_state.weights_of(trainer)),
        training=_store(folder, "training", training),
        rows=rows,
    )
    _put_in_place(folder, checkpoint)
    _remove_unnamed(folder)


def _put_in_place(folder: Path, checkpoint: Checkpoint) -> None:
    """The newest becomes the previous if it is whole: a damaged one must not replace a good one.

    Between any two of these steps the folder names two checkpoints, as before and after them.
    """
    newest = _whole(folder, INDEX)
    if newest == checkpoint:
        return  # saved twice: the previous one stays another one
    write_json(folder / NEXT, checkpoint.model_dump(mode="json"))
    if newest is not None:
        (folder / INDEX).replace(folder / PREVIOUS)
    (folder / NEXT).replace(folder / INDEX)


def _whole(folder: Path, index: str) -> Checkpoint | None:
    try:
        checkpoint = read_checkpoint(folder, index)
        for stored in checkpoint.files:
            _bytes(folder, stored)
    except ModelError as error:
        if error.code != "checkpoint_absent":
            log.warning("damaged_checkpoint_replaced", why=str(error))
        return None
    return checkpoint


def _remove_unnamed(folder: Path) -> None:
    """Files of older checkpoints, and what a killed process left half-written."""
    kept = {stored.name for index in (INDEX, PREVIOUS) for stored in _named_by(folder, index)}
    ours = [*folder.glob("*.safetensors"), *folder.glob(".*.safetensors.*"), *folder.glob(".*.json.*")]
    for file in ours:
        if file.name not in kept:
            file.unlink(missing_ok=True)


def _named_by(folder: Path, index: str) -> tuple[StoredFile, ...]:
    try:
        return read_checkpoint(folder, index).files
    except ModelError:  # absent, or damaged: then it names nothing
        return ()


def _store(folder: Path, kind: str, tensors: Tensors) -> StoredFile:
    contiguous: dict[str, Tensor] = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous)
    stored = _stored_file(kind, sha256_hex(data))
    write_atomically(folder / stored.name, data)
    return stored


def _stored_file(kind: str, digest: str) -> StoredFile:
    return StoredFile(name=f"{kind}-{digest[:16]}.safetensors", sha256=digest)


def _bytes(folder: Path, stored: StoredFile) -> bytes:
    file = folder / stored.name
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: not readable ({error.strerror}); {REMEDY}", code="checkpoint_damaged") from error
    if sha256_hex(data) != stored.sha256:
        raise ModelError(f"{file}: content does not match its digest in the index; {REMEDY}", code="digest_mismatch")
    return data


def _read(folder: Path, stored: StoredFile) -> dict[str, Tensor]:
    data = _bytes(folder, stored)
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        file = folder / stored.name
        raise ModelError(f"{file}: not a safetensors file ({error}); {REMEDY}", code="checkpoint_damaged") from error


def _require_same_training(place: str, checkpoint: Checkpoint, trainer: Trainer) -> None:
    """A checkpoint continues only under the settings that made it."""
    model, hrm = trainer.model, trainer.settings.training_params.hrm
    saved, asked = checkpoint.settings, model.settings
    differing = [name for name in ("architecture", "hierarchical") if getattr(saved, name) != getattr(asked, name)]
    differing += _differing("act", saved.act, asked.act)
    differing += _differing("deep_supervision", checkpoint.deep_supervision, trainer.settings.deep_supervision)
    differing += [name for name in TRAINING if getattr(checkpoint.schedule, name) != getattr(hrm, name)]
    values = {
        "trading.max_quantity": (checkpoint.quantity_max, model.quantity_max),
        "total_steps": (checkpoint.total_steps, trainer.total_steps),
    }
    differing += [name for name, (then, now) in values.items() if then != now]
    if differing:
        raise ModelError(
            f"{place}: saved under other settings of {', '.join(differing)}; use those or train again",
            code="settings_mismatch",
        )


def _differing(section: str, then: BaseModel, now: BaseModel) -> list[str]:
    return [f"{section}.{name}" for name in type(then).model_fields if getattr(then, name) != getattr(now, name)]
