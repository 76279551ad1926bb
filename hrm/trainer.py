"""Deep supervision: the published ACT training loop over oracle labels (paper section 2; seed 2.3).

Every call of `train_step` is one segment and one optimiser step. Each of the B rows keeps its own observation,
labels, carry and age; a row that halted takes the offered batch's row and starts from the fixed initial state,
a row that goes on keeps its own, and what the batch offered for it is dropped. So one optimiser step mixes ages,
and the carry never carries a gradient from one segment to the next: memory does not grow with segments.

A batch is B rows on the trainer's device; a call with another B starts all rows afresh.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from core.errors import ConfigError, DataError
from core.settings import Settings
from hrm.act import AdaptiveComputationTime
from hrm.convergence import ConvergenceMonitor
from hrm.losses import Labels, LossScale, SegmentLoss, segment_loss
from hrm.model import Carry, HierarchicalReasoningModel
from hrm.optimizer import Ema, learning_rate_factor, make_optimizer
from hrm.recurrence import residual


@dataclass(frozen=True)
class TrainingBatch:
    """B rows; one (bar, position) each."""

    bars: Tensor  # float32 [B, W, F]
    account: Tensor  # float32 [B, A]
    complexity: Tensor  # float32 [B]
    position: Tensor  # int64 [B]
    q_values: Tensor  # float32 [B, 3], bps
    log_quantity: Tensor  # float32 [B]

    @classmethod
    def from_numpy(cls, arrays: Mapping[str, Any], device: torch.device | str = "cpu") -> Self:
        """From arrays named as the fields. Raises DataError for a missing field or unequal lengths."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in arrays]
        if missing:
            raise DataError(f"training rows lack {', '.join(missing)}; see docs/architecture.md, Training rows")
        lengths = {name: len(arrays[name]) for name in names}
        if len(set(lengths.values())) != 1:
            raise DataError(f"training rows of unequal lengths: {lengths}")
        if not np.isin(arrays["position"], (-1, 0, 1)).all():
            raise DataError("training rows: position must be -1, 0 or +1")
        return cls(**{name: _to_tensor(name, arrays[name], device) for name in names})

    def __len__(self) -> int:
        return len(self.position)

    @property
    def labels(self) -> Labels:
        return Labels(self.position, self.q_values, self.log_quantity)

    def replaced(self, mask: Tensor, new: TrainingBatch) -> TrainingBatch:
        """The same rows, those in `mask` (bool [B]) taken from `new`."""
        return TrainingBatch(
            **{field.name: _select(mask, getattr(new, field.name), getattr(self, field.name)) for field in fields(self)}
        )


@dataclass(frozen=True)
class Rows:
    """The B rows in training: their data, their carry and how far each has come."""

    batch: TrainingBatch
    carry: Carry
    steps: Tensor  # int64 [B], segments done
    halted: Tensor  # bool [B], to be replaced at the next call

    def advanced(self, offered: TrainingBatch, fresh: Carry) -> Rows:
        """Halted rows replaced by offered ones with a fresh carry and no steps."""
        carry = Carry(*(_select(self.halted, new, old) for new, old in zip(fresh, self.carry, strict=True)))
        return replace(
            self,
            batch=self.batch.replaced(self.halted, offered),
            carry=carry,
            steps=self.steps.masked_fill(self.halted, 0),
        )


class DeepSupervisionTrainer:
    """Trains a model one segment and one optimiser step at a time; `ema` is what to evaluate and export."""

    def __init__(
        self,
        model: HierarchicalReasoningModel,
        settings: Settings,
        *,
        cost_bps: float,
        total_steps: int,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        """`cost_bps`: of one unit of turnover; `total_steps`: optimiser steps of the whole schedule.

        Raises ConfigError for settings under which no training is defined.
        """
        _check(settings, cost_bps, total_steps)
        self.device = torch.device(device or "cpu")
        self.model = model.to(self.device)
        self.model.recurrence.gradient = settings.deep_supervision.gradient_approximation
        self.settings, self.total_steps = settings, total_steps
        hrm = settings.training_params.hrm
        self.scale = LossScale(
            cost_bps, hrm.label_temperature, settings.hierarchical_reasoning_model.act.reward_shaping
        )
        self.act = AdaptiveComputationTime(model.settings, max_segments=_training_segments(settings))
        self.optimizer = make_optimizer(model, settings)
        self._ema = Ema(model, hrm.ema_decay)
        self.monitor = ConvergenceMonitor(settings.model_management.checkpoint_frequency, self.snapshot())
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.rows: Rows | None = None
        self.step = 0
        self.last: SegmentLoss | None = None

    @property
    def ema(self) -> HierarchicalReasoningModel:
        """The exponential moving average of the weights, in evaluation mode."""
        return self._ema.model

    def train_step(self, batch: TrainingBatch) -> float:
        """One segment and one optimiser step; `batch` refills the halted rows. Returns the segment's loss.

        A step whose loss or gradient is not finite, or whose loss explodes, changes nothing: the last stable
        state returns with half the learning rate. Raises ModelError after the third time.
        """
        rows = self._refill(batch)
        self.model.train()
        self._set_learning_rate()
        loss, carry, halted = self._segment(rows)
        weight = self.settings.deep_supervision.segment_loss_weight
        self.optimizer.zero_grad(set_to_none=True)
        (loss.total * weight).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.settings.performance.gradient_clip_norm, foreach=True
        )
        value, gradient_norm = torch.stack((loss.total.detach(), norm)).tolist()  # the step's only wait
        if self.monitor.diverged(value, gradient_norm):
            self._recover(value, gradient_norm)
            return float(value)
        self.optimizer.step()
        self._ema.update(self.step)
        self.step += 1
        self.last, self.rows = loss, Rows(rows.batch, carry, rows.steps + 1, halted)
        self.monitor.observe(value, self.step, self.snapshot)
        return float(value)

    def metrics(self) -> dict[str, float]:
        """The last segment's losses, regret, halting statistics and learning rate; empty before the first."""
        if self.last is None or self.rows is None:
            return {}
        losses = {field.name: float(getattr(self.last, field.name).detach()) for field in fields(self.last)}
        return losses | {
            "segments": float(self.rows.steps.float().mean()),
            "halted_ratio": float(self.rows.halted.float().mean()),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "recoveries": float(self.monitor.recoveries),
        }

    @torch.no_grad()
    def residuals(self) -> dict[str, float]:
        """How far one more segment would move the rows' states: telemetry that costs one forward pass.

        `z_H_residual` is the mean relative change; `converged_ratio` the rows below `convergence_threshold`.
        """
        if self.rows is None:
            return {}
        batch, carry = self.rows.batch, self.rows.carry
        _, ahead = self.model(batch.bars, batch.account, carry)
        moved = residual(carry.z_H, ahead.z_H)
        threshold = self.model.settings.hierarchical.convergence_threshold
        return {
            "z_H_residual": float(moved.mean()),
            "converged_ratio": float((moved < threshold).float().mean()),
        }

    def _refill(self, batch: TrainingBatch) -> Rows:
        fresh = self.model.initial_carry(len(batch))
        if self.rows is None or len(self.rows.batch) != len(batch):
            steps = torch.zeros(len(batch), dtype=torch.int64, device=self.device)
            return Rows(batch, fresh, steps, torch.ones_like(steps, dtype=torch.bool))
        return self.rows.advanced(batch, fresh)

    def _segment(self, rows: Rows) -> tuple[SegmentLoss, Carry, Tensor]:
        """One forward pass: the loss with its gradient, the detached carry and who halts."""
        bf16 = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs, carry = self.model(rows.batch.bars, rows.batch.account, rows.carry)
            carry = carry.detach()
            target = self._continue_target(rows, carry) if self.act.bootstraps else None
        loss = segment_loss(outputs, rows.batch.labels, self.scale, target)
        halted = self.act.training_halts(
            rows.steps + 1, outputs.q_halt.detach(), outputs.q_continue.detach(), self.generator
        )
        return loss, carry, halted

    @torch.no_grad()
    def _continue_target(self, rows: Rows, carry: Carry) -> Tensor:
        ahead, _ = self.model(rows.batch.bars, rows.batch.account, carry)
        return self.act.continue_target(ahead.q_halt, ahead.q_continue, rows.steps + 1)

    def _set_learning_rate(self) -> None:
        factor = learning_rate_factor(self.step, self.total_steps, self.settings.training_params.hrm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor * self.monitor.learning_rate_factor

    def snapshot(self) -> dict[str, Any]:
        """A copy of the weights, their average and the optimizer's state."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )

    def _recover(self, loss: float, gradient_norm: float) -> None:
        state = self.monitor.recover(self.step, loss, gradient_norm)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.rows = None


def _check(settings: Settings, cost_bps: float, total_steps: int) -> None:
    problems = []
    if not cost_bps > 0:
        problems.append(f"cost_bps must be positive (got {cost_bps}): it scales the labels' temperature")
    if total_steps < 1:
        problems.append(f"total_steps must be at least 1 (got {total_steps})")
    if not settings.deep_supervision.memory_optimization:
        problems.append(
            "deep_supervision.memory_optimization must be true: one optimiser step per segment needs a detached carry"
        )
    if problems:
        raise ConfigError("HRM training cannot start: " + "; ".join(problems))


def _training_segments(settings: Settings) -> int:
    return settings.deep_supervision.max_supervision_segments if settings.deep_supervision.enabled else 1


def _to_tensor(name: str, array: Any, device: torch.device | str) -> Tensor:
    dtype = np.int64 if name == "position" else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype)).to(device)


def _select(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *([1] * (new.dim() - 1))), new, old)
