"""A trainer's state as named tensors, and back: what a checkpoint stores.

    weights    model.<parameter> (as trained), ema.<parameter> (to decide with)
    training   optimizer.<parameter index>.<moment>, generator; extra.<name> of whoever drives the trainer
    rows       batch.<name>, carry.z_H, carry.z_L, steps, halted: one process's share of the global batch

Weights, optimizer and generator are equal in all processes that train together; only the rows differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
import torch
from torch import Tensor

from core.errors import ModelError
from hrm.convergence import ConvergenceMonitor
from hrm.distributed import World
from hrm.model import Carry, HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer, Rows

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW and of Adam-atan2
REMEDY = "delete the folder to train anew, or restore the folder from a copy"

Tensors = Mapping[str, Tensor]
Trainer = DeepSupervisionTrainer[HierarchicalReasoningModel]

log = structlog.get_logger(__name__)


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return named("model", trainer.model.state_dict()) | named("ema", trainer.ema.state_dict())


def training_of(trainer: Trainer) -> dict[str, Tensor]:
    moments = {
        f"{index}.{name}": tensor
        for index, moments in trainer.optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }
    return named("optimizer", moments) | {"generator": trainer.generator.get_state()}


def rows_of(trainer: Trainer) -> dict[str, Tensor]:
    """This process's rows; empty before the first step."""
    rows = trainer.rows
    if rows is None:
        return {}
    state = named("batch", rows.batch) | named("carry", rows.carry._asdict())
    return state | {"steps": rows.steps, "halted": rows.halted}


def named(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{kind}.{name}": tensor for name, tensor in tensors.items()}


def part(tensors: Tensors, kind: str) -> dict[str, Tensor]:
    """The inverse of `named`, of one kind."""
    return {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}


def require_weights(place: str, weights: Tensors, model: HierarchicalReasoningModel) -> None:
    """Raises ModelError unless both sets of weights are this model's."""
    own = model.state_dict()
    _require_like(place, weights, named("model", own) | named("ema", own))


def require_training(place: str, state: Tensors, trainer: Trainer) -> None:
    """Raises ModelError unless the moments fit the parameters; one that never had a gradient has none."""
    moments = part(state, "optimizer")
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    known = {name.partition(".")[0] for name in moments}
    expected = {
        f"{index}.{name}": torch.empty(()) if name == "step" else parameter
        for index, parameter in enumerate(parameters)
        if str(index) in known
        for name in MOMENTS
    }
    _require_like(place, moments, expected)
    if "generator" not in state:
        raise ModelError(f"{place}: the training state has no generator; {REMEDY}", code="checkpoint_damaged")


def require_rows(place: str, states: Sequence[Tensors], trainer: Trainer) -> None:
    """Raises ModelError unless every process's rows are whole, or nobody has any yet.

    Raises ConfigError if those who train now cannot share them equally.
    """
    expected = {f"carry.{name}": z.shape[1:] for name, z in trainer.model.initial_carry(1)._asdict().items()}
    expected |= {"steps": torch.Size(), "halted": torch.Size()}
    for state in states:
        shapes = {name: tensor.shape[1:] for name, tensor in state.items() if not name.startswith("batch.")}
        lengths = {tensor.shape[:1] for tensor in state.values()}
        if set(state) != set(states[0]) or (state and (shapes != expected or len(lengths) != 1)):
            raise ModelError(f"{place}: rows in training that do not fit together; {REMEDY}", code="checkpoint_damaged")
    trainer.world.share(torch.cat([state.get("steps", torch.empty(0)) for state in states]))


def restore_weights(trainer: Trainer, weights: Tensors) -> None:
    trainer.model.load_state_dict(part(weights, "model"))
    trainer.ema.load_state_dict(part(weights, "ema"))


def restore_training(trainer: Trainer, state: Tensors) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in part(state, "optimizer").items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = tensor
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    restore_generator(trainer.generator, state["generator"])


def restore_rows(trainer: Trainer, states: Sequence[Tensors]) -> None:
    """The rows of all processes that saved, shared anew among those that train now."""
    if not states[0]:
        trainer.rows = None
        return
    world: World = trainer.world
    state = {name: world.share(torch.cat([each[name] for each in states])).to(trainer.device) for name in states[0]}
    carry = Carry(state["carry.z_H"].to(trainer.dtype), state["carry.z_L"].to(trainer.dtype))
    trainer.restart_rows(Rows(part(state, "batch"), carry, state["steps"], state["halted"]))


def restore_monitor(trainer: Trainer, average: float | None, *, observations: int, recoveries: int) -> None:
    """The restored state becomes the stable one."""
    monitor = ConvergenceMonitor(trainer.monitor.snapshot_every, trainer.snapshot())
    monitor.average, monitor.observations, monitor.recoveries = average, observations, recoveries
    trainer.monitor = monitor


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue the same random sequence; another kind of device has another one, and then it starts afresh."""
    if state.shape != generator.get_state().shape:
        log.warning("random_sequence_restarts", why=f"the checkpoint comes from another device than {generator.device}")
        return
    generator.set_state(state)


def _require_like(place: str, tensors: Tensors, expected: Tensors) -> None:
    wrong = sorted(set(tensors) ^ set(expected)) or sorted(
        name for name, tensor in tensors.items() if tensor.shape != expected[name].shape
    )
    wrong = wrong or sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if wrong:
        raise ModelError(
            f"{place}: tensors that are missing, unknown, misshapen or not finite: {', '.join(wrong[:5])}; {REMEDY}",
            code="checkpoint_damaged",
        )
