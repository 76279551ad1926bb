"""The same training step as anyone would write it first: eager torch, one operation after the other.

It has the model's parameters and computes the published step with the textbook modules: bfloat16 autocast on CUDA,
`scaled_dot_product_attention`, an AdamW over all parameters, a moving average in a loop. The yardstick of
`hrm bench training`; a test holds it to the trainer's own loss.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

from core.settings import Settings
from hrm.batch import Batch
from hrm.layers import Block, Level, rotate
from hrm.losses import Imitation
from hrm.model import HierarchicalReasoningModel
from hrm.optimizer import BETAS


class PlainStep:
    """`train_step(batch) -> loss` over a model's own parameters."""

    def __init__(self, model: HierarchicalReasoningModel, settings: Settings, device: torch.device) -> None:
        self.model, self.settings, self.device = model.to(device), settings, device
        self.ema = copy.deepcopy(self.model)
        hrm = settings.training_params.hrm
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=hrm.learning_rate, betas=BETAS, weight_decay=hrm.weight_decay
        )
        self.objective = Imitation(cost_bps=1.5, label_temperature=0.3, reward_shaping=True).to(device)
        self.bootstraps = settings.hierarchical_reasoning_model.act.halting == "q_learning"
        self.carry: tuple[Tensor, Tensor] | None = None

    def train_step(self, batch: Batch) -> float:
        rows = len(batch["position"])
        if self.carry is None:
            z_H, z_L = self.model.initial_carry(rows)
            self.carry = z_H.clone(), z_L.clone()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            z_H, z_L = self._segment(*self.carry, batch)
            self.carry = z_H.detach(), z_L.detach()
            target = None
            if self.bootstraps:
                with torch.no_grad():
                    ahead = self.model.read(self._segment(*self.carry, batch)[0])
                target = torch.sigmoid(torch.maximum(ahead.q_halt, ahead.q_continue))
        loss = self.objective(self.model.read(z_H), batch, target).total
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.performance.gradient_clip_norm)
        self.optimizer.step()
        decay = self.settings.training_params.hrm.ema_decay
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.model.parameters(), strict=True):
                average.mul_(decay).add_(parameter, alpha=1 - decay)
        return float(loss.detach())

    def _segment(self, z_H: Tensor, z_L: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """One segment with the one-step gradient and the soft reset."""
        recurrence = self.model.recurrence
        x = recurrence.x_to_L(self.model.embed(batch["bars"], batch["account"]))
        cycles, steps = recurrence.cycles, recurrence.steps
        with torch.no_grad():
            for cycle in range(cycles):
                for step in range(steps):
                    if not (cycle == cycles - 1 and step == steps - 1):
                        z_L = _level(recurrence.f_L, z_L, recurrence.H_to_L(z_H) + x)
                if cycle < cycles - 1:
                    z_H = _level(recurrence.f_H, z_H, recurrence.L_to_H(z_L))
        z_L = _level(recurrence.f_L, z_L, recurrence.H_to_L(z_H) + x)
        return _level(recurrence.f_H, z_H, recurrence.L_to_H(z_L)), z_L


def _level(level: Level, z: Tensor, injection: Tensor) -> Tensor:
    z = z + injection
    for block in level.blocks:
        assert isinstance(block, Block)  # noqa: S101 - for the type checker
        z = _norm(z + _attention(block, z, level))
        gate, up = F.linear(z, block.mlp.gate_up.weight).chunk(2, -1)
        z = _norm(z + F.linear(F.silu(gate) * up, block.mlp.down.weight))
    return z


def _attention(block: Block, z: Tensor, level: Level) -> Tensor:
    rows, tokens, width = z.shape
    qkv = F.linear(z, block.attention.qkv.weight).view(rows, tokens, 3, block.attention.heads, -1)
    q, k, v = qkv.unbind(2)
    if level.rotary:
        q, k = rotate(q, (level.cos, level.sin)), rotate(k, (level.cos, level.sin))
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return F.linear(mixed.transpose(1, 2).reshape(rows, tokens, width), block.attention.out.weight)


def _norm(x: Tensor) -> Tensor:
    dtype, x = x.dtype, x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).to(dtype)
