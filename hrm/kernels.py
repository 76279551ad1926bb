"""One level (hrm/layers.Level) without gradient in four fused kernels a block, for Hopper GPUs and later.

The matrices are thin (K = w = 512), so reading and writing activations costs as much as the products. A block is

    qkv         = y Wqkv'                          cuBLAS; its rows not yet normal
    mixed       = attention(rotate(s qkv))         q, k, v read from the fused projection, [B, n, w] written
    y1          = s y + mixed Wout'                and its row sums of squares
    hidden      = silu(s1 y1 Wg') * (s1 y1 Wu')    neither factor is ever written
    y2          = s1 y1 + hidden Wdown'            and its row sums of squares

where s = 1 / sqrt(mean(y^2) + eps) of each row: rms without a gain commutes with a linear map, so that nobody has to
own a whole row to normalise it: whoever reads y scales its own result. Products accumulate in float32.

Shapes: B batch, n tokens, w width, a heads, d = w / a head width, i inner width, M = B n rows, P parts of a row.
Importable without triton and without a GPU; `available` and `supports` say where the kernels may be used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hrm.layers import RMS_EPSILON, Level, Rotary, rms_norm

HAS_TRITON = find_spec("triton") is not None  # CUDA builds of torch bring it
if HAS_TRITON:
    from hrm import kernels_triton as device_code

MAX_TOKENS = 128  # of a batch row: one tile
HOPPER = 9  # compute capability: the first with tensor descriptors in hardware
WIDTH_MULTIPLE, HEAD_WIDTHS = 128, (32, 64, 128)  # what tiles and powers of two divide
WEIGHTS_PER_BLOCK = 4


class Tile(NamedTuple):
    """How a product is cut; the constants below are the fastest measured on an H200 (M = 31,104 and 16,384).

    Two programs share a multiprocessor: one multiplies while the other writes its result.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 2  # that stay on each multiprocessor and walk over tiles
    flatten: bool = False

    def within(self, outputs: int) -> Tile:
        """Narrow enough to divide a number of outputs."""
        return self._replace(columns=math.gcd(self.columns, outputs))


PRODUCT = Tile()
SWIGLU = Tile(columns=64)


class AttentionTile(NamedTuple):
    """How attention is cut: as many whole batch rows as fit `tokens`, one head."""

    tokens: int
    warps: int
    registers: int | None = None  # at most, of a thread


ONE_ROW = AttentionTile(MAX_TOKENS, warps=8, registers=128)  # two programs on each multiprocessor
SEVERAL_ROWS = AttentionTile(64, warps=4)


class Stream(NamedTuple):
    """What flows through the blocks: rms(values), by whoever reads it; values as they are where squares is None."""

    values: Tensor  # [M, w]
    squares: Tensor | None  # float32 [P, M], sums of squares of P parts of each row

    @property
    def parts(self) -> int:
        return 0 if self.squares is None else len(self.squares)


def available(device: torch.device) -> bool:
    """Whether the kernels run there: triton, and a GPU with tensor descriptors in hardware."""
    return HAS_TRITON and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= HOPPER


def supports(z: Tensor, heads: int) -> bool:
    """Whether, where `available`, `level_forward` can take z [B, n, w]: bfloat16, no gradient, fitting tiles."""
    tokens, width = z.shape[1:]
    fits = tokens <= MAX_TOKENS and width % WIDTH_MULTIPLE == 0 and width / heads in HEAD_WIDTHS
    return fits and z.dtype is torch.bfloat16 and not torch.is_grad_enabled()


def level_weights(level: Level, dtype: torch.dtype) -> list[Tensor]:
    """qkv, out, gate_up, down of each block in turn, cast: the order in which a level declares them."""
    return [weight.detach().to(dtype) for weight in level.parameters()]


def level_forward(z: Tensor, injection: Tensor, weights: list[Tensor], *, heads: int, rotary: Rotary | None) -> Tensor:
    """What `Level.forward` gives without gradient: [B, n, w] twice -> [B, n, w].

    `weights` as `level_weights` lists them, in z's dtype; `rotary` as the level keeps it, None for learned positions.
    """
    cos, sin = (None, None) if rotary is None else _angles(rotary)
    return rms_norm(_blocks(z + injection, weights, heads, cos, sin))


@torch.library.custom_op("hrm::blocks", mutates_args=())
def _blocks(z: Tensor, weights: Sequence[Tensor], heads: int, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    """All blocks on z [B, n, w], before the last normalisation. One opaque call for torch.compile."""
    batch, tokens, width = z.shape
    stream = Stream(z.reshape(-1, width).contiguous(), None)
    rotary = None if cos is None or sin is None else (cos, sin)
    for first in range(0, len(weights), WEIGHTS_PER_BLOCK):
        qkv, out, gate_up, down = weights[first : first + WEIGHTS_PER_BLOCK]
        projected = Stream(stream.values @ qkv.T, stream.squares)
        mixed = rotary_attention(projected, rotary, tokens=tokens, heads=heads)
        stream = residual_linear(mixed, out, stream)
        stream = residual_linear(swiglu_linear(stream, gate_up), down, stream)
    return stream.values.view(batch, tokens, width)


@_blocks.register_fake
def _(z: Tensor, weights: Sequence[Tensor], heads: int, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    return z.new_empty(z.shape)


def residual_linear(x: Tensor, weight: Tensor, residual: Stream, tile: Tile = PRODUCT) -> Stream:
    """x [M, K], weight [N, K], residual [M, N] -> the stream rms(residual) + x W' (see Stream), P = N / columns."""
    tile, y = tile.within(len(weight)), torch.empty_like(residual.values)
    squares = x.new_empty(len(weight) // tile.columns, len(x), dtype=torch.float32)
    before, after = (_blocked(values, tile.rows, tile.columns // 2) for values in (residual.values, y))
    operands = (*_operands(x, weight, tile), before, residual.squares, after, squares)
    _launch(device_code.residual_linear, operands, (*_sizes(x, y), residual.parts, RMS_EPSILON), tile)
    return Stream(y, squares)


def swiglu_linear(x: Stream, gate_up: Tensor, tile: Tile = SWIGLU) -> Tensor:
    """x [M, K], gate_up [2 i, K], gate rows first -> silu(x Wg') * (x Wu') [M, i] of the normalised x."""
    y = x.values.new_empty(len(x.values), len(gate_up) // 2)
    tile = tile.within(y.shape[1])
    operands = (*_operands(x.values, gate_up, tile), x.squares, _blocked(y, tile.rows, tile.columns))
    _launch(device_code.swiglu_linear, operands, (*_sizes(x.values, y), x.parts, RMS_EPSILON), tile)
    return y


def rotary_attention(
    qkv: Stream, rotary: Rotary | None, *, tokens: int, heads: int, cut: AttentionTile | None = None
) -> Tensor:
    """qkv [M, 3w] of unnormalised rows -> softmax(q k' / sqrt(d)) v [M, w] of the normalised.

    Batch rows are `tokens` <= 128 consecutive rows. `rotary`: cos and sin [n, d / 2], None where positions are learned.
    `squares` are those of the rows that were projected.
    """
    tile, warps, registers = cut or (ONE_ROW if tokens > SEVERAL_ROWS.tokens else SEVERAL_ROWS)
    rows, width = len(qkv.values), qkv.values.shape[1] // 3
    y = qkv.values.new_empty(rows, width)
    grid = (math.ceil(rows / (tile // tokens * tokens)), heads)
    cos, sin = rotary or (None, None)
    sizes = (rows, tokens, width, width // heads, rotary is not None, qkv.parts, RMS_EPSILON, tile)
    launch = {"num_warps": warps, "maxnreg": registers}
    device_code.rotary_attention[grid](qkv.values, cos, sin, qkv.squares, y, *sizes, **launch)
    return y


def _angles(rotary: Rotary) -> Rotary:
    """cos and unsigned sin [n, d / 2] from the tables [n, 1, d] of hrm.layers.rotary_table."""
    cos, sin = (table.squeeze(1) for table in rotary)
    half = cos.shape[-1] // 2
    return cos[:, :half].contiguous(), sin[:, half:].contiguous()


def _operands(x: Tensor, weight: Tensor, tile: Tile) -> tuple[Any, Any]:
    return _blocked(x, tile.rows, tile.depth), _blocked(weight, tile.columns, tile.depth)


def _blocked(tensor: Tensor, rows: int, columns: int) -> Any:
    return device_code.TensorDescriptor.from_tensor(tensor, [rows, columns])


def _sizes(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    return len(x), y.shape[1], x.shape[1]


def _launch(kernel: Any, operands: tuple[Any, ...], sizes: tuple[Any, ...], tile: Tile) -> None:
    """No more programs than stay on the device together, nor than there are tiles. `sizes` begins with M and N."""
    tiles = math.ceil(sizes[0] / tile.rows) * (sizes[1] // tile.columns)
    grid = (min(tiles, tile.programs * _multiprocessors(operands[0].base.device)),)
    cut = (tile.rows, tile.columns, tile.depth, tile.flatten)
    kernel[grid](*operands, *sizes, *cut, num_warps=tile.warps, num_stages=tile.stages)


@cache
def _multiprocessors(device: torch.device) -> int:
    """Of a CPU, where triton interprets: few, so that programs have to walk."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
