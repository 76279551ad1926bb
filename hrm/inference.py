"""The recurrence laid out as a runtime is fastest with it: the same weights, the same numbers but for rounding.

    states [n, B, w] instead of [B, n, w];   x @ W with W [inputs, outputs];   (q k), v, gate and up: a product each

With the tokens outermost onnxruntime multiplies heads where they lie, and three of the four transpositions of an
attention vanish. What is computed apart need not be split. Every normalisation has a gain of ones, because ONNX's has
one and would otherwise be given it anew at every run.

The exported graph is standard ONNX (RMSNormalization and RotaryEmbedding are of opset 23), in phrases that onnxruntime
fuses while it loads. What each of them is worth: docs/adr/0018-static-int8.md.

Shapes as in hrm/layers.py: B batch, n tokens, w width, a heads, d = w / a, i inner width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

from hrm.layers import RMS_EPSILON, Attention, Block, Level, Linear, Rotary, SwiGLU
from hrm.model import ReasoningModel
from hrm.recurrence import Recurrence

Model = TypeVar("Model", bound=ReasoningModel)


def laid_out(model: Model) -> Model:
    """A copy of `model` with the recurrence of this module."""
    return with_recurrence(model, TokensFirst)


def with_recurrence(model: Model, form: Callable[[Recurrence], nn.Module]) -> Model:
    """A copy of `model` with its recurrence in another form; its other parts, inputs and outputs are the same."""
    copied = copy.deepcopy(model)
    copied.recurrence = form(copied.recurrence)  # type: ignore[assignment]  # what a segment needs of one
    return copied


class TokensFirst(nn.Module):
    """A recurrence between two transpositions: inside, states are [n, B, w]. Takes its layers over."""

    H_init: Tensor
    L_init: Tensor

    def __init__(self, recurrence: Recurrence) -> None:
        super().__init__()
        self.inner, self.tokens = recurrence, recurrence.tokens
        self.H_init, self.L_init = recurrence.H_init, recurrence.L_init
        for level in (recurrence.f_H, recurrence.f_L):
            level.blocks = nn.ModuleList(InferenceBlock(block) for block in _blocks(level))
        for name in ("x_to_L", "H_to_L", "L_to_H"):
            projection = getattr(recurrence, name)
            if isinstance(projection, Linear):
                setattr(recurrence, name, Product(projection.weight))

    def forward(self, z_H: Tensor, z_L: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        z_H, z_L = self.inner(z_H.transpose(0, 1), z_L.transpose(0, 1), x.transpose(0, 1))
        return z_H.transpose(0, 1), z_L.transpose(0, 1)


class Product(nn.Module):
    """x @ W. Its weight [inputs, outputs] keeps its name in the exported file: hrm/storage.py finds it there."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` is [outputs, inputs], as everywhere else."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class InferenceBlock(nn.Module):
    """hrm.layers.Block on [n, B, w]."""

    gain: Tensor

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attention, self.mlp = InferenceAttention(block.attention), InferenceSwiGLU(block.mlp)
        self.register_buffer("gain", torch.ones(block.mlp.down.out_features))

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        x = self._normed(x + self.attention(x, rotary))
        return self._normed(x + self.mlp(x))

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain, RMS_EPSILON)


class InferenceAttention(nn.Module):
    """hrm.layers.Attention on [n, B, w]."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads, width = attention.heads, attention.out.in_features
        qk, v = attention.qkv.weight.split((2 * width, width))  # type: ignore[no-untyped-call]  # torch's own
        self.qk, self.v, self.out = Product(qk), Product(v), Product(attention.out.weight)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        qk = self.qk(x) if rotary is None else self._rotated(self.qk(x), rotary)
        q, k = qk.reshape(*x.shape[:2], 2 * self.heads, -1).chunk(2, 2)
        v = self.v(x).reshape(q.shape)
        q, k, v = (part.permute(1, 2, 0, 3) for part in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = scores.softmax(-1) @ v
        merged: Tensor = self.out(mixed.permute(2, 0, 1, 3).reshape(x.shape))
        return merged

    def _rotated(self, qk: Tensor, rotary: Rotary) -> Tensor:
        """hrm.layers.rotate: what ONNX takes for a batch of sequences are tokens, with the same angle in every row."""
        cos, signed_sin = rotary  # [n, 1, d]: both halves alike but for the sine's sign
        half = cos.shape[-1] // 2
        angles = (table.expand(-1, qk.shape[1], -1) for table in (cos[..., :half], signed_sin[..., half:]))
        turned: Tensor = torch.onnx.ops.rotary_embedding(qk, *angles, num_heads=2 * self.heads)
        return turned


class InferenceSwiGLU(nn.Module):
    """hrm.layers.SwiGLU."""

    def __init__(self, mlp: SwiGLU) -> None:
        super().__init__()
        gate, up = mlp.gate_up.weight.chunk(2)
        self.gate, self.up, self.down = Product(gate), Product(up), Product(mlp.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        lowered: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return lowered


def _blocks(level: Level) -> list[Block]:
    return [block for block in level.blocks if isinstance(block, Block)]
