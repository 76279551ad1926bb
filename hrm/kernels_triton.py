# mypy: ignore-errors
# (Triton compiles these functions: their arguments are its pointers and blocks, which Python's types do not describe.)
# ruff: noqa: PLR0913, PLR0917 - a kernel's arguments are all it knows
"""Device code of hrm/kernels.py: a matrix product with two different ends, and attention. Needs triton.

Rows M = B n tokens, N outputs, K inputs; every weight is (out, in), so both operands of a product have K innermost.
Tiles travel by tensor descriptors (TMA), which read zeros and write nothing outside a tensor: M needs no mask. Each
program walks over tiles, columns fastest, so that neighbours read the same rows while the weights stay in L2; FLATTEN
lets it fetch the next tile's operands while it writes this one's result.

`squares` [P, M] float32: the sum of squares of a row, in P parts, one for each tile of columns that computed it.
"""

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = ["TensorDescriptor", "residual_linear", "rotary_attention", "swiglu_linear"]


@triton.jit
def inverse_rms(squares, rows, M, PARTS: tl.constexpr, WIDTH: tl.constexpr, EPSILON: tl.constexpr):
    """1 / sqrt(mean(x^2) + eps) of the given rows, float32."""
    total = tl.zeros(rows.shape, tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(squares + part * M + rows, mask=rows < M, other=1.0)
    return tl.rsqrt(total / WIDTH + EPSILON)


@triton.jit
def halves(block):
    """[R, C] -> its left and its right [R, C / 2]."""
    left, right = tl.split(block.reshape(block.shape[0], 2, block.shape[1] // 2).permute(0, 2, 1))
    return left, right


@triton.jit
def residual_linear(
    x, weight, residual, squares, y, y_squares,
    M, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """y [M, N] = rms(residual) + x W', and the squares of y's rows; PARTS = 0: the residual is normal already."""
    across: tl.constexpr = N // COLUMNS
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, ROWS) * across, tl.num_programs(0), flatten=FLATTEN):
        row, column = tile // across * ROWS, tile % across * COLUMNS
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, K, DEPTH):
            product = tl.dot(x.load([row, k]), weight.load([column, k]).T, product)
        rows = row + tl.arange(0, ROWS)
        scale = inverse_rms(squares, rows, M, PARTS, N, EPSILON) if PARTS else tl.full((ROWS,), 1.0, tl.float32)
        left, right = halves(product)
        left += residual.load([row, column]).to(tl.float32) * scale[:, None]
        y.store([row, column], left.to(y.dtype))
        right += residual.load([row, column + COLUMNS // 2]).to(tl.float32) * scale[:, None]
        y.store([row, column + COLUMNS // 2], right.to(y.dtype))
        sums = tl.sum(left * left, 1) + tl.sum(right * right, 1)
        tl.store(y_squares + tile % across * M + rows, sums, mask=rows < M)


@triton.jit
def swiglu_linear(
    x, gate_up, squares, y,
    M, N, K: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """y [M, N] = silu(x' Wg') * (x' Wu'), x' = rms(x): a row's scale is applied to its products. N inner width."""
    across = N // COLUMNS
    for tile in tl.range(tl.program_id(0), tl.cdiv(M, ROWS) * across, tl.num_programs(0), flatten=FLATTEN):
        row, column = tile // across * ROWS, tile % across * COLUMNS
        gate = tl.zeros((ROWS, COLUMNS), tl.float32)
        up = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, K, DEPTH):
            block = x.load([row, k])
            gate = tl.dot(block, gate_up.load([column, k]).T, gate)
            up = tl.dot(block, gate_up.load([N + column, k]).T, up)
        if PARTS:
            scale = inverse_rms(squares, row + tl.arange(0, ROWS), M, PARTS, K, EPSILON)[:, None]
            gate, up = gate * scale, up * scale
        y.store([row, column], (gate * tl.sigmoid(gate) * up).to(y.dtype))


@triton.jit
def rotated(x, scale, rows, valid, cos, sin, WIDTH: tl.constexpr, HEAD: tl.constexpr, dtype: tl.constexpr):
    """Both halves of the features of a head, scaled and turned: [TILE, d / 2] each."""
    half = tl.arange(0, HEAD // 2)
    at = x + rows[:, None] * (3 * WIDTH) + half[None, :]
    first = tl.load(at, mask=valid[:, None], other=0.0).to(tl.float32) * scale[:, None]
    second = tl.load(at + HEAD // 2, mask=valid[:, None], other=0.0).to(tl.float32) * scale[:, None]
    return (first * cos - second * sin).to(dtype), (second * cos + first * sin).to(dtype)


@triton.jit
def rotary_attention(
    qkv, cos, sin, squares, y,
    M, TOKENS: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr,
    ROTARY: tl.constexpr, PARTS: tl.constexpr, EPSILON: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One head of as many whole batch rows as fit a tile; tokens of different batch rows do not see each other.

    qkv [M, 3w], y [M, w], cos and sin [n, d / 2] (unsigned). Program (i, j): tile i, head j.
    """
    USED: tl.constexpr = TILE // TOKENS * TOKENS
    token = tl.arange(0, TILE)
    rows = tl.program_id(0) * USED + token
    valid = (token < USED) & (rows < M)
    scale = inverse_rms(squares, rows, M, PARTS, WIDTH, EPSILON) if PARTS else tl.full((TILE,), 1.0, tl.float32)
    if ROTARY:
        angle = (token % TOKENS)[:, None] * (HEAD // 2) + tl.arange(0, HEAD // 2)[None, :]
        cosine, sine = tl.load(cos + angle), tl.load(sin + angle)
    else:
        cosine, sine = 1.0, 0.0
    head = qkv + tl.program_id(1) * HEAD
    dtype: tl.constexpr = y.dtype.element_ty
    q_first, q_second = rotated(head, scale, rows, valid, cosine, sine, WIDTH, HEAD, dtype)
    k_first, k_second = rotated(head + WIDTH, scale, rows, valid, cosine, sine, WIDTH, HEAD, dtype)
    scores = tl.dot(q_second, k_second.T, tl.dot(q_first, k_first.T))

    features = tl.arange(0, HEAD)[None, :]
    v = tl.load(head + 2 * WIDTH + rows[:, None] * (3 * WIDTH) + features, mask=valid[:, None], other=0.0)
    v = (v.to(tl.float32) * scale[:, None]).to(dtype)
    seen = (token // TOKENS)[:, None] == (token // TOKENS)[None, :]
    LOG2_E: tl.constexpr = 1.4426950408889634
    scores = tl.where(seen & valid[None, :], scores * (LOG2_E / tl.sqrt(float(HEAD))), -1.0e30)
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    mixed = tl.dot(weights.to(dtype), v) / tl.sum(weights, 1)[:, None]
    out = y + rows[:, None] * WIDTH + tl.program_id(1) * HEAD + features
    tl.store(out, mixed.to(dtype), mask=valid[:, None])
