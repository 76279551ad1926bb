"""Deep supervision: the published ACT training loop (paper section 2; seed 2.3), for any model and objective.

Every call of `train_step` is one segment and one optimiser step. Each of the B rows keeps its own data, carry and
age; a row that halted takes the offered batch's row and starts from the fixed initial state, a row that goes on
keeps its own, and what the batch offered for it is dropped. So one optimiser step mixes ages, and the carry never
carries a gradient from one segment to the next: memory does not grow with segments.

On CUDA a step computes in bfloat16 over float32 weights, is compiled, is replayed as one CUDA graph, and is judged
while the next one runs. In several processes (torchrun) each trains its share of the rows: gradients, losses and draws
are those of one process with all.
"""

from __future__ import annotations

import copy
import os
import shutil
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.settings import Settings
from hrm.act import AdaptiveComputationTime
from hrm.batch import Batch, rows_of
from hrm.capture import Captured, Readback
from hrm.convergence import ConvergenceMonitor
from hrm.distributed import World
from hrm.kernels import available
from hrm.losses import Imitation, Objective
from hrm.model import Carry, ReasoningModel
from hrm.optimizer import Ema, learning_rate_factor, make_optimizer
from hrm.recurrence import residual

Model = TypeVar("Model", bound=ReasoningModel)

COMPILED_CPU_STEPS = 5000


class Rows(NamedTuple):
    """The B rows in training: their data, their carry and how far each has come."""

    batch: Batch
    carry: Carry
    steps: Tensor  # int64 [B], segments done
    halted: Tensor  # bool [B], to be replaced at the next call


class Segment(NamedTuple):
    """What one call computed."""

    rows: Rows  # after it
    loss: Tensor  # carries the gradient
    parts: dict[str, Tensor]  # of the loss and the residuals, for people


class DeepSupervisionTrainer(Generic[Model]):
    """Trains a model one segment and one optimiser step at a time; `ema` is what to evaluate and export."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        objective: Objective | None = None,
        *,
        total_steps: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """`seed` must be the same in every process. Raises ConfigError for settings under which no training is defined.

        `objective`: by default that of one instrument, as the settings say. `total_steps`: optimiser steps of the whole
        schedule, by default the settings' epochs.
        """
        total_steps = _scheduled_steps(settings) if total_steps is None else total_steps
        _check(settings, total_steps)
        self.device, self.world = torch.device(device), World.current()
        self.model = model.to(self.device)
        self.model.recurrence.fused = available(self.device)
        self.model.recurrence.gradient = settings.deep_supervision.gradient_approximation
        self.settings, self.total_steps = settings, total_steps
        self.objective = (objective or Imitation.of(settings)).to(self.device)
        self.act = AdaptiveComputationTime(model.settings, max_segments=_training_segments(settings))
        self.optimizer = make_optimizer(model, settings)
        self._ema = Ema(model, settings.training_params.hrm.ema_decay)
        self.monitor = ConvergenceMonitor(settings.model_management.checkpoint_frequency, self.snapshot())
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.step, self.loss = 0, float("nan")  # steps done; the last loss that was judged
        self._verdicts = Readback()
        self.rows: Rows | None = None
        self.last: Segment | None = None

    @property
    def ema(self) -> Model:
        """The exponential moving average of the weights, in evaluation mode."""
        return self._ema.model

    @property
    def step_count(self) -> int:
        """Optimiser steps done; this and the next are the seed's names."""
        return self.step

    @property
    def max_segments(self) -> int:
        """Segments at most, in training."""
        return self.act.rule.max_segments

    @property
    def dtype(self) -> torch.dtype:
        """What the recurrence computes in."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def train_step(self, batch: Batch) -> float:
        """One segment and one optimiser step; `batch` refills the halted rows.

        Returns the segment's loss, on CUDA the one before's: the device is given this step before that is read. A
        call with another B starts all rows afresh. After a step whose loss or gradient is not finite, or whose loss
        explodes, the last stable state returns with half the learning rate. Raises ModelError after the third time.
        """
        self._offer(batch)
        self._propagate()
        self._update()
        self._verdicts.put(self.step, self._verdict)
        # A snapshot may hold nothing that has not been judged.
        settles = self.device.type == "cpu" or self.step == 1 or self.step % self.monitor.snapshot_every == 0
        for step, (loss, norm) in self._verdicts.take(lag=0 if settles else 1):
            self.loss = loss
            if self.monitor.diverged(loss, norm):
                self._recover(step, loss, norm)
                break
            self.monitor.observe(loss, step, self.snapshot)
        return self.loss

    def metrics(self) -> dict[str, float]:
        """The last segment's loss and its parts, residuals, halting and learning rate; empty before the first.

        `z_H_residual` is how far the segment moved z_H, relative to its size; `converged_ratio` the share of rows
        it moved by less than `convergence_threshold`.
        """
        if self.last is None or self.rows is None:
            return {}
        parts = {name: float(part) for name, part in self.last.parts.items()}
        return parts | {
            "total": self.loss,
            "segments": float(self.rows.steps.float().mean()),
            "halted_ratio": float(self.rows.halted.float().mean()),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "recoveries": float(self.monitor.recoveries),
        }

    def continue_from(self, step: int, loss: float) -> None:
        """A checkpoint's step and loss; the weights, the optimiser and the rows are there already."""
        self.step, self.loss = step, loss
        self._verdicts.clear()

    def restart_rows(self, rows: Rows) -> None:
        """Train on these rows from now on: they keep their data, carry and age."""
        self.rows = rows
        self._offered = {name: tensor.clone() for name, tensor in rows.batch.items()}
        self._minimum = torch.zeros_like(rows.steps)
        self._verdict = torch.zeros(2, device=self.device)  # loss, gradient norm
        compute = torch.compile(self._segment, dynamic=False) if self._compiles() else self._segment
        self._propagate = Captured(lambda: self._forward_and_backward(compute), self.device)

    def snapshot(self) -> dict[str, Any]:
        """A copy of the weights, their average and the optimizer's state."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def _offer(self, batch: Batch) -> None:
        """Put the batch and the draws where the step reads them."""
        rows = rows_of(batch)
        if self.rows is None or len(self.rows.steps) != rows:
            steps = torch.zeros(rows, dtype=torch.int64, device=self.device)
            carry = Carry(*(z.clone() for z in self.model.initial_carry(rows, self.dtype)))
            own = {name: tensor.clone() for name, tensor in batch.items()}
            self.restart_rows(Rows(own, carry, steps, torch.ones_like(steps, dtype=torch.bool)))
        _copy(self._offered, batch)
        drawn = self.act.exploration_minimum(self.world.size * rows, self.generator)
        self._minimum.copy_(self.world.share(drawn))

    def _forward_and_backward(self, compute: Any) -> None:
        """Gradients, the verdict and the rows after the segment, all in place: a CUDA graph replays just this."""
        assert self.rows is not None  # noqa: S101 - _offer has put them there
        self.optimizer.zero_grad(set_to_none=True)
        segment: Segment = compute(self.rows, self._offered, self._minimum)
        segment.loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        loss = segment.loss.detach().clone()
        self.world.average([*gradients, loss])
        self._verdict.copy_(torch.stack((loss, nn.utils.get_total_norm(gradients, foreach=True))))
        _copy(self.rows, segment.rows)
        self.last = segment._replace(loss=loss)

    def _segment(self, rows: Rows, offered: Batch, drawn_minimum: Tensor) -> Segment:
        """Replace the rows that halted, think for one segment, and see who halts."""
        fresh = self.model.initial_carry(len(rows.steps), self.dtype)
        batch = {name: _select(rows.halted, offered[name], kept) for name, kept in rows.batch.items()}
        before = Carry(*(_select(rows.halted, new, old) for new, old in zip(fresh, rows.carry, strict=True)))
        steps = rows.steps.masked_fill(rows.halted, 0) + 1
        outputs, carry = self.model(*self._inputs(batch), before)
        carry = carry.detach()
        target = self._continue_target(batch, carry, steps) if self.act.bootstraps else None
        loss = self.objective(outputs, batch, target)
        halted = self.act.training_halts(steps, outputs.q_halt.detach(), outputs.q_continue.detach(), drawn_minimum)
        moved = residual(before.z_H, carry.z_H)
        threshold = self.model.settings.hierarchical.convergence_threshold
        parts = {"z_H_residual": moved.mean(), "converged_ratio": (moved < threshold).float().mean()}
        weight = self.settings.deep_supervision.segment_loss_weight
        return Segment(Rows(batch, carry, steps, halted), loss.total * weight, loss.parts | parts)

    @torch.no_grad()
    def _continue_target(self, batch: Batch, carry: Carry, steps: Tensor) -> Tensor:
        ahead, _ = self.model(*self._inputs(batch), carry)
        return self.act.continue_target(ahead.q_halt, ahead.q_continue, steps)

    def _compiles(self) -> bool:
        """On CUDA always; on a CPU where there is a compiler and the run is long enough to earn its minute back."""
        has_compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
        return self.device.type == "cuda" or (has_compiler and self.total_steps >= COMPILED_CPU_STEPS)

    def _inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(batch[name] for name in self.model.inputs)

    def _update(self) -> None:
        """The optimiser step, with the schedule's rate and clipped gradients."""
        factor = learning_rate_factor(self.step, self.total_steps, self.settings.training_params.hrm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor * self.monitor.learning_rate_factor
        limit = self.settings.performance.gradient_clip_norm
        nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, self._verdict[1], foreach=True)
        self.optimizer.step()
        self._ema.update(self.step)
        self.step += 1

    def _recover(self, step: int, loss: float, gradient_norm: float) -> None:
        """Back to before `step`: weights, average, optimiser and schedule; all rows start afresh."""
        state = self.monitor.recover(step - 1, loss, gradient_norm)
        self.step = step - 1
        self._verdicts.clear()
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        assert self.rows is not None  # noqa: S101 - a step was taken
        self.rows.halted.fill_(value=True)


def _check(settings: Settings, total_steps: int) -> None:
    problems = []
    if total_steps < 1:
        problems.append(f"total_steps must be at least 1 (got {total_steps})")
    if not settings.deep_supervision.memory_optimization:
        problems.append(
            "deep_supervision.memory_optimization must be true: one optimiser step per segment needs a detached carry"
        )
    if problems:
        raise ConfigError("HRM training cannot start: " + "; ".join(problems))


def _scheduled_steps(settings: Settings) -> int:
    training = settings.training_params.hrm
    return max(1, training.rows_per_epoch // settings.performance.batch_size) * training.max_epochs


def _training_segments(settings: Settings) -> int:
    return settings.deep_supervision.max_supervision_segments if settings.deep_supervision.enabled else 1


def _select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *([1] * (new.dim() - 1))), new, old)


def _copy(into: Any, source: Any) -> None:
    """Tensors of one tree into those of another of the same shape, in place."""
    if isinstance(into, Tensor):
        into.copy_(source)
        return
    names = into if isinstance(into, dict) else range(len(into))
    for name in names:
        _copy(into[name], source[name])
