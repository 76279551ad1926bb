"""AdamW (betas 0.9, 0.95), the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from core.settings import HrmTraining, Settings
from hrm.model import HierarchicalReasoningModel

BETAS = (0.9, 0.95)
WARMUP_SHARE = 0.1  # a short run warms up over a tenth of its steps at most
FINAL_FACTOR = 0.01  # of the learning rate, at the end of the cosine and after it


def make_optimizer(model: HierarchicalReasoningModel, settings: Settings) -> torch.optim.AdamW:
    """AdamW with the q head as a group of its own, at `act.q_learning_lr`."""
    hrm = settings.training_params.hrm
    q_head = list(model.output_network.q_head.parameters())
    own = {id(parameter) for parameter in q_head}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    groups = [
        {"params": rest, "lr": hrm.learning_rate},
        {"params": q_head, "lr": settings.hierarchical_reasoning_model.act.q_learning_lr},
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=hrm.weight_decay, fused=True)


def learning_rate_factor(step: int, total_steps: int, hrm: HrmTraining) -> float:
    """Linear warm-up, then a half cosine down to 1 % or a constant. `step` counts from 0."""
    warmup = max(1, min(hrm.warmup_steps, math.ceil(WARMUP_SHARE * total_steps)))
    if step < warmup:
        return (step + 1) / warmup
    if hrm.scheduler == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return FINAL_FACTOR + (1 - FINAL_FACTOR) * 0.5 * (1 + math.cos(math.pi * progress))


class Ema:
    """Exponential moving average of the parameters; the first steps average over what there is."""

    def __init__(self, model: HierarchicalReasoningModel, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._averages: list[torch.Tensor] = list(self.model.parameters())
        self._sources: list[nn.Parameter] = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number `step` (from 0): average <- average + (1 - decay) (weights - average)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)  # type: ignore[arg-type]  # parameters are tensors
