"""AdamW or Adam-atan2 (betas 0.9, 0.95), the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from core.settings import HrmTraining, Settings
from hrm.model import ReasoningModel

BETAS = (0.9, 0.95)
WARMUP_SHARE = 0.1  # a short run warms up over a tenth of its steps at most
FINAL_FACTOR = 0.01  # of the learning rate, at the end of the cosine and after it

Model = TypeVar("Model", bound=ReasoningModel)


def make_optimizer(model: ReasoningModel, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer of `training_params.hrm`, with the q head as a group of its own, at `act.q_learning_lr`."""
    hrm = settings.training_params.hrm
    q_head = list(model.q_head.parameters())
    own = {id(parameter) for parameter in q_head}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups: list[dict[str, Any]] = [
        {"params": rest, "lr": hrm.learning_rate},
        {"params": q_head, "lr": settings.hierarchical_reasoning_model.act.q_learning_lr},
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    if hrm.optimizer == "adam_atan2":
        return AdamAtan2(groups, weight_decay=hrm.weight_decay)
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=hrm.weight_decay, fused=True)


class AdamAtan2(torch.optim.Optimizer):
    """Adam without epsilon, invariant to the gradient's scale (arXiv 2407.05872); the published HRM's optimizer.

        p <- p (1 - lr wd) - lr / (1 - b1^t) atan2(m, sqrt(v) / sqrt(1 - b2^t))

    m, v the running means of gradient and squared gradient at step t; weight decay is decoupled.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = BETAS,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """Update every parameter that has a gradient; `closure` may compute the loss anew and returns it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters]
        means, squares, step = self._advance_state(parameters)
        b1, b2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - b2)
        scales = torch._foreach_sqrt(torch._foreach_div(squares, 1 - b2**step))
        updates = [torch.atan2(mean, scale) for mean, scale in zip(means, scales, strict=True)]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] / (1 - b1**step))

    def _advance_state(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor], float]:
        """Running means and squares, and t; all parameters of a group are equally old."""
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
        states = [self.state[parameter] for parameter in parameters]
        step = float(states[0]["step"])
        return [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], step


def learning_rate_factor(step: int, total_steps: int, hrm: HrmTraining) -> float:
    """Linear warm-up, then a half cosine down to 1 % or a constant. `step` counts from 0."""
    warmup = max(1, min(hrm.warmup_steps, math.ceil(WARMUP_SHARE * total_steps)))
    if step < warmup:
        return (step + 1) / warmup
    if hrm.scheduler == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * 0.5 * (1 + math.cos(math.pi * progress))


class Ema(Generic[Model]):
    """Exponential moving average of the parameters; the first steps average over what there is."""

    def __init__(self, model: Model, decay: float, *, average: Model | None = None) -> None:
        """`average`: one to go on with, in place; by default a copy of the model."""
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False) if average is None else average
        self._averages: list[torch.Tensor] = list(self.model.parameters())
        self._sources: list[nn.Parameter] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step` (from 0): average <- average + (1 - decay) (weights - average)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)  # type: ignore[arg-type]  # parameters are tensors
