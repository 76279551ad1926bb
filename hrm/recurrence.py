"""The recurrence: one segment (z_H, z_L, x) -> (z_H, z_L). It knows nothing of markets.

    repeat N times:  T times  z_L <- f_L(z_L + (z_H + x));  once  z_H <- f_H(z_H + z_L)

With equal widths, the `soft` reset and the one-step gradient this is the published model (arXiv 2506.21734).
Between cycles z_L is kept (`soft`, published), set to L_init (`hard`), or mixed with it by a gate (`learned`).

Gradient: `one_step` through the last f_L and the last f_H only; `last_cycle` through the last T f_L and f_H;
`full_bptt` through everything. Peak training memory grows with N and T in the last only (`last_cycle`: with T).

Shapes: B batch, n tokens, h width of z_H, l width of z_L, e width of x. Where widths differ, bias-free
projections carry one into the other (`x_to_L` [l, e], `H_to_L` [l, h], `L_to_H` [h, l]); where they are equal
there is none. Parameters: `f_L.blocks.<i>.*`, `f_H.blocks.<i>.*` (layout: hrm/layers.py); H_init [h] and
L_init [l] are persistent buffers, drawn once, never trained.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from core.settings import Architecture, Hierarchical
from hrm import kernels
from hrm.layers import Block, Level, Linear, truncated_normal_

GradientApproximation = Literal["one_step", "last_cycle", "full_bptt"]
GATE_BIAS = 2.0  # sigmoid(2) = 0.88: a learned reset starts close to `soft`


class Recurrence(nn.Module):
    """One segment of hierarchical reasoning over n tokens."""

    H_init: Tensor
    L_init: Tensor

    def __init__(
        self,
        architecture: Architecture,
        hierarchical: Hierarchical,
        tokens: int,
        *,
        gradient: GradientApproximation = "one_step",
    ) -> None:
        super().__init__()
        h, l, e = architecture.h_module_dim, architecture.l_module_dim, architecture.embedding_dim  # noqa: E741
        self.cycles, self.steps, self.heads = hierarchical.N_cycles, hierarchical.T_timesteps, architecture.num_heads
        self.fused = False  # passes without gradient in hrm/kernels.py; where they are `available`, a trainer says so
        self.gradient, self.tokens = gradient, tokens
        self.reset_mechanism = hierarchical.reset_mechanism
        self.f_H = _level(architecture, h, architecture.h_layers, tokens)
        self.f_L = _level(architecture, l, architecture.l_layers, tokens)
        self.x_to_L = _projection(e, l)
        self.H_to_L = _projection(h, l)
        self.L_to_H = _projection(l, h)
        self.reset_gate = _gate(l) if self.reset_mechanism == "learned" else None
        self.register_buffer("H_init", truncated_normal_(torch.empty(h), 1.0))
        self.register_buffer("L_init", truncated_normal_(torch.empty(l), 1.0))

    def initial_state(self, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """(z_H [B, n, h], z_L [B, n, l]): the fixed initial vectors at every token."""
        z_H, z_L = self.H_init.to(dtype), self.L_init.to(dtype)
        return z_H.expand(batch, self.tokens, -1), z_L.expand(batch, self.tokens, -1)

    def forward(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """z_H [B, n, h], z_L [B, n, l], x [B, n, e] -> the next (z_H, z_L), not detached."""
        x = self.x_to_L(x)
        for _ in range(self.cycles - 1):
            with self._gradient_if(self.gradient == "full_bptt"):
                z_L = self._think(z_H, z_L, x, self.steps)
                z_H = self._run(self.f_H, z_H, self.L_to_H(z_L))
            z_L = self._reset(z_L)
        with self._gradient_if(self.gradient != "one_step"):
            settled = self._think(z_H, z_L, x, self.steps - 1)
        if self.reset_gate is not None and self.gradient == "one_step" and torch.is_grad_enabled():
            # One-step takes the Jacobian of the skipped steps as the identity: that is how the gate learns.
            settled = settled.detach() + (z_L - z_L.detach())
        z_L = self._think(z_H, settled, x, 1)
        return self._run(self.f_H, z_H, self.L_to_H(z_L)), z_L

    def _think(self, z_H: Tensor, z_L: Tensor, x: Tensor, steps: int) -> Tensor:
        """`steps` updates of the low level under one fixed high-level state."""
        injection = self.H_to_L(z_H) + x
        for _ in range(steps):
            z_L = self._run(self.f_L, z_L, injection)
        return z_L

    def _run(self, level: Level, z: Tensor, injection: Tensor) -> Tensor:
        """One pass of a level, by fused kernels where they are switched on and no gradient is wanted."""
        if self.fused and kernels.supports(z, self.heads):
            rotary = (level.cos, level.sin) if level.rotary else None
            weights = kernels.level_weights(level, z.dtype)
            return kernels.level_forward(z, injection, weights, heads=self.heads, rotary=rotary)
        passed: Tensor = level(z, injection)
        return passed

    def _reset(self, z_L: Tensor) -> Tensor:
        if self.reset_mechanism == "hard":
            return self.L_init.to(z_L.dtype).expand_as(z_L)
        if self.reset_gate is None:
            return z_L
        keep = torch.sigmoid(self.reset_gate(z_L.float())).to(z_L.dtype)
        return keep * z_L + (1 - keep) * self.L_init.to(z_L.dtype)

    def _gradient_if(self, carries: bool) -> AbstractContextManager[None]:
        """no_grad where a call carries no gradient; nothing at all in inference, so that export sees no context."""
        return nullcontext() if carries or not torch.is_grad_enabled() else torch.no_grad()


def residual(before: Tensor, after: Tensor) -> Tensor:
    """How far a state moved, relative to its size: [B, n, w] twice -> [B]. Telemetry, not a halting rule."""
    change, size = ((state.float().square().sum((1, 2))).sqrt() for state in (after - before, before))
    return change / size.clamp_min(1e-12)


def _level(architecture: Architecture, width: int, layers: int, tokens: int) -> Level:
    blocks = [Block(width, architecture.num_heads, architecture.expansion) for _ in range(layers)]
    return Level(blocks, tokens, rotary=architecture.positions == "rotary")


def _projection(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else Linear(inputs, outputs)


def _gate(width: int) -> nn.Linear:
    gate = nn.Linear(width, width)
    nn.init.zeros_(gate.weight)
    nn.init.constant_(gate.bias, GATE_BIAS)
    return gate
