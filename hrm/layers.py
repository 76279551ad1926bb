"""Building blocks of the Hierarchical Reasoning Model (arXiv 2506.21734), as in the published code.

Block, post-norm twice, no mask, no dropout:

    x <- rms(x + attention(x))
    x <- rms(x + swiglu(x))

Shapes: B batch, n tokens, w width, a heads, d = w / a head width, i inner width.
Every weight is (out, in); only the q head and the learned reset gate have biases. Weights are kept in float32 and
cast to the dtype of what they multiply, so a bfloat16 carry makes a bfloat16 segment. Fused projections:

    attention.qkv    [3w, w]   q heads, then k heads, then v heads; inside each, head by head, d rows per head
    attention.out    [w, w]    reads the heads in the same order
    mlp.gate_up      [2i, w]   gate rows first, then up rows: down(silu(gate) * up)
    mlp.down         [w, i]
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

RMS_EPSILON = 1e-5
ROPE_THETA = 10_000.0
INNER_MULTIPLE = 256
TRUNCATION = 2.0  # standard deviations of the sampling normal

Rotary = tuple[Tensor, Tensor]


def _truncated_std(bound: float) -> float:
    """Standard deviation of a unit normal truncated at +-bound: 0.8796 at 2."""
    density = math.exp(-0.5 * bound**2) / math.sqrt(2 * math.pi)
    mass = math.erf(bound / math.sqrt(2))
    return math.sqrt(1 - 2 * bound * density / mass)


@torch.no_grad()
def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal truncated at +-2 sigma whose std is `std` AFTER truncation (as JAX does)."""
    sigma = std / _truncated_std(TRUNCATION)
    return nn.init.trunc_normal_(tensor, std=sigma, a=-TRUNCATION * sigma, b=TRUNCATION * sigma)


class Linear(nn.Linear):
    """Bias-free; weight [outputs, inputs] of std 1 / sqrt(inputs), cast to its input's dtype at use."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        truncated_normal_(self.weight, inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-5) over the last axis, in float32, without a learned gain."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=RMS_EPSILON).to(x.dtype)


def rotary_table(tokens: int, head_width: int) -> tuple[Tensor, Tensor]:
    """cos and signed sin of the rotary angles, float32 [n, 1, d] each: angle = position * theta^(-2j / d)."""
    frequency = ROPE_THETA ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(tokens, dtype=torch.float32), frequency)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((-angle, angle), -1).sin()
    return cos.unsqueeze(1), sin.unsqueeze(1)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding by half-split pairs: feature j turns with feature j + d / 2. x is [B, n, heads, d]."""
    cos, sin = rotary
    swapped: Tensor = x.roll(x.shape[-1] // 2, -1)
    return (x * cos + swapped * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d)) v over [B, a, n, d].

    On a CPU a softmax over a handful of tokens is several times slower than the elementwise operations it is
    made of (rows shorter than a vector register), so training there spells it out.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    scores = q @ (k * k.shape[-1] ** -0.5).transpose(-1, -2)
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    attended: Tensor = (weights / weights.sum(-1, keepdim=True)) @ v
    return attended


class Attention(nn.Module):
    """Bidirectional multi-head self-attention over all tokens; scale 1 / sqrt(d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """[B, n, w] -> [B, n, w]; `rotary` is the (cos, sin) table, None where positions are learned."""
        batch, tokens, width = x.shape
        qk, v = self.qkv(x).view(batch, tokens, 3 * self.heads, -1).split((2 * self.heads, self.heads), 2)
        q, k = (qk if rotary is None else rotate(qk, rotary)).transpose(1, 2).chunk(2, 1)
        mixed = attend(q, k, v.transpose(1, 2))
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return merged


def inner_width(width: int, expansion: float) -> int:
    """round(expansion * w * 2 / 3), rounded up to a multiple of 256."""
    return math.ceil(round(expansion * width * 2 / 3) / INNER_MULTIPLE) * INNER_MULTIPLE


class SwiGLU(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = inner_width(width, expansion)
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        lowered: Tensor = self.down(F.silu(gate) * up)
        return lowered


class Block(nn.Module):
    """One post-norm transformer block; the same in both levels."""

    def __init__(self, width: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = SwiGLU(width, expansion)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """[B, n, w] -> [B, n, w]."""
        x = rms_norm(x + self.attention(x, rotary))
        return rms_norm(x + self.mlp(x))


class Level(nn.Module):
    """A stack of blocks applied to state + injection: f_L or f_H."""

    cos: Tensor
    sin: Tensor

    def __init__(self, blocks: list[Block], tokens: int, *, rotary: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.rotary = rotary
        if rotary:
            attention = blocks[0].attention
            cos, sin = rotary_table(tokens, attention.out.in_features // attention.heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)

    def forward(self, z: Tensor, injection: Tensor) -> Tensor:
        """[B, n, w] twice -> [B, n, w]; the injection is added once, before the first block."""
        table = (self.cos, self.sin) if self.rotary else None
        z = z + injection
        for block in self.blocks:
            z = block(z, table)
        return z
