"""The recurrence in 16-bit arithmetic, in the operators that onnxruntime has fused kernels for on a GPU.

    attention   rotary embedding and multi-head attention, one kernel each (com.microsoft)
    norm        x <- rms(x + update), one kernel (com.microsoft SkipSimplifiedLayerNormalization); sums in float32

Inputs, carry and outputs stay float32, and so do the input and output networks: 1 % of the arithmetic. On a CPU
onnxruntime casts back and forth; the numbers are those of the GPU but for rounding, the speed is not.

The modules here are for tracing only: outside an export their operators compute nothing.

Shapes as in hrm/layers.py: B batch, n tokens, w width, a heads, d = w / a.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hrm.inference import Product, with_recurrence
from hrm.layers import RMS_EPSILON, Attention, Block, Level, SwiGLU
from hrm.model import ReasoningModel
from hrm.recurrence import Recurrence

CONTRIB = "com.microsoft::"
Model = TypeVar("Model", bound=ReasoningModel)


def in_half(model: Model) -> Model:
    """A copy of `model` with the recurrence of this module."""
    return with_recurrence(model, HalfRecurrence)


class HalfRecurrence(nn.Module):
    """A recurrence between casts. Takes its levels over; positions must be rotary."""

    H_init: Tensor
    L_init: Tensor

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__()
        self.inner, self.tokens = recurrence, recurrence.tokens
        self.register_buffer("H_init", recurrence.H_init)
        self.register_buffer("L_init", recurrence.L_init)
        recurrence.f_H, recurrence.f_L = FusedLevel(recurrence.f_H), FusedLevel(recurrence.f_L)  # type: ignore[assignment]
        recurrence.half()
        if recurrence.reset_gate is not None:
            recurrence.reset_gate.float()  # it computes in float32

    def forward(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        z_H, z_L = self.inner(z_H.half(), z_L.half(), x.half())
        return z_H.float(), z_L.float()


class FusedLevel(nn.Module):
    """hrm.layers.Level."""

    cos: Tensor
    sin: Tensor

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.rotary = level.rotary
        self.blocks = nn.ModuleList(FusedBlock(block) for block in level.blocks if isinstance(block, Block))
        if level.rotary:  # halves of hrm.layers.rotary_table, whose sine has its sign in it
            half = level.cos.shape[-1] // 2
            self.register_buffer("cos", level.cos[:, 0, :half].contiguous())
            self.register_buffer("sin", level.sin[:, 0, half:].contiguous())

    def forward(self, z: Tensor, injection: Tensor) -> Tensor:
        table = (self.cos, self.sin) if self.rotary else None
        z = z + injection
        for block in self.blocks:
            z = block(z, table)
        return z


class FusedBlock(nn.Module):
    """hrm.layers.Block."""

    gain: Tensor

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attention, self.mlp = FusedAttention(block.attention), FusedSwiGLU(block.mlp)
        self.register_buffer("gain", torch.ones(block.mlp.down.out_features))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self._normed(self.attention(x, rotary), x)
        return self._normed(self.mlp(x), x)

    def _normed(self, update: Tensor, x: Tensor) -> Tensor:
        return _fused("SkipSimplifiedLayerNormalization", x, (update, x, self.gain), epsilon=RMS_EPSILON)


class FusedAttention(nn.Module):
    """hrm.layers.Attention."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv, self.out = Product(attention.qkv.weight), Product(attention.out.weight)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if rotary is not None:
            q, k = (self._rotated(part, rotary) for part in (q, k))
        mixed: Tensor = self.out(_fused("MultiHeadAttention", q, (q, k, v), num_heads=self.heads))
        return mixed

    def _rotated(self, part: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        first = torch.zeros(1, dtype=torch.int64)  # positions count from 0
        return _fused("RotaryEmbedding", part, (part, first, *rotary), num_heads=self.heads, interleaved=0)


class FusedSwiGLU(nn.Module):
    """hrm.layers.SwiGLU; gate and up apart, which need not be split."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        gate, up = mlp.gate_up.weight.chunk(2)
        self.gate, self.up, self.down = Product(gate), Product(up), Product(mlp.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        lowered: Tensor = self.down(_fused("QuickGelu", gate, (gate,), alpha=1.0) * self.up(x))
        return lowered


def _fused(name: str, like: Tensor, inputs: tuple[Tensor, ...], **attributes: float | int) -> Tensor:
    """An operator of onnxruntime, whose result is of the shape and type of `like`."""
    typed: dict[str, Any] = attributes
    return torch.onnx.ops.symbolic(CONTRIB + name, inputs, typed, dtype=like.dtype, shape=tuple(like.shape), version=1)
