"""The fused kernels against the layers they stand in for.

They run on a Hopper GPU, or, slowly and in float32, in triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
import os
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor

from hrm.kernels import (
    Stream,
    Tile,
    available,
    level_forward,
    level_weights,
    residual_linear,
    rotary_attention,
    supports,
    swiglu_linear,
)
from hrm.layers import Block, Level, attend, rms_norm, rotary_table, rotate

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9
DEVICE = torch.device("cuda" if HOPPER and not INTERPRETED else "cpu")
DTYPE = torch.float32 if INTERPRETED else torch.bfloat16  # the interpreter has no bfloat16 arithmetic
TOLERANCE = 1e-5 if INTERPRETED else 2e-2

needs_kernels = pytest.mark.skipif(
    find_spec("triton") is None or not (HOPPER or INTERPRETED),
    reason="needs triton, and a Hopper GPU or TRITON_INTERPRET=1",
)
SMALL = Tile(rows=64, columns=64, depth=64, warps=4)


def normal(*shape: int, seed: int = 0) -> Tensor:
    drawn: Tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, DTYPE)
    return drawn


def weight(outputs: int, inputs: int, seed: int = 1) -> Tensor:
    return normal(outputs, inputs, seed=seed) / math.sqrt(inputs)


def squares_of(values: Tensor, parts: int) -> Tensor:
    return torch.stack([part.float().square().sum(-1) for part in values.chunk(parts, -1)])


def close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype is DTYPE
    torch.testing.assert_close(found.float(), expected.float(), rtol=TOLERANCE, atol=TOLERANCE)


@needs_kernels
@pytest.mark.parametrize("parts", [0, 1, 2])
def test_the_residual_is_normalised_by_its_squares_and_added(parts: int) -> None:
    x, w, residual = normal(200, 192), weight(128, 192), 3 * normal(200, 128, seed=2)
    before = rms_norm(residual) if parts else residual
    values, squares = residual_linear(x, w, Stream(residual, squares_of(residual, parts) if parts else None), SMALL)
    close(values, before + x @ w.T)
    assert squares is not None
    torch.testing.assert_close(squares, squares_of(before + x @ w.T, 2), rtol=TOLERANCE, atol=TOLERANCE)


@needs_kernels
@pytest.mark.parametrize("parts", [0, 2])
def test_gate_and_up_are_one_product_each_of_the_normalised_rows(parts: int) -> None:
    x, w = 3 * normal(200, 128), weight(2 * 192, 128)
    gate, up = ((rms_norm(x) if parts else x) @ w.T).chunk(2, -1)
    close(swiglu_linear(Stream(x, squares_of(x, parts) if parts else None), w, SMALL), F.silu(gate) * up)


@needs_kernels
@pytest.mark.parametrize(("batch", "tokens"), [(3, 81), (2, 128), (9, 16), (5, 7), (1, 1), (2, 64), (2, 65)])
@pytest.mark.parametrize("rotary", [True, False])
def test_attention_sees_all_tokens_of_its_own_batch_row_and_no_other(batch: int, tokens: int, rotary: bool) -> None:
    heads, width = 2, 64
    qkv = normal(batch, tokens, 3 * width)
    cos, sin = (table.to(DEVICE) for table in rotary_table(tokens, width // heads))
    q, k, v = qkv.view(batch, tokens, 3 * heads, -1).chunk(3, 2)
    if rotary:
        q, k = rotate(q, (cos, sin)), rotate(k, (cos, sin))
    expected = attend(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2).reshape(-1, width)
    halves = (cos[:, 0, :16].contiguous(), sin[:, 0, 16:].contiguous()) if rotary else None
    close(rotary_attention(Stream(qkv.view(-1, 3 * width), None), halves, tokens=tokens, heads=heads), expected)


@needs_kernels
def test_attention_scales_what_was_projected_from_rows_not_yet_normal() -> None:
    y, w = 3 * normal(2 * 16, 64), weight(192, 64)
    late = rotary_attention(Stream(y @ w.T, squares_of(y, 2)), None, tokens=16, heads=2)
    close(late, rotary_attention(Stream(rms_norm(y) @ w.T, None), None, tokens=16, heads=2))


@needs_kernels
@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize(("batch", "tokens", "width"), [(2, 9, 128), (1, 81, 256)])
def test_a_level_is_the_level(positions: str, batch: int, tokens: int, width: int) -> None:
    torch.manual_seed(3)
    level = Level([Block(width, 4, 1.0) for _ in range(2)], tokens, rotary=positions == "rotary").to(DEVICE)
    z, injection = normal(batch, tokens, width, seed=4), normal(batch, tokens, width, seed=5)
    rotary = (level.cos, level.sin) if level.rotary else None
    with torch.no_grad():
        expected = level(z, injection)
        found = level_forward(z, injection, level_weights(level, DTYPE), heads=4, rotary=rotary)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=1e-4 if INTERPRETED else 0.1)
    assert (found - expected).float().square().mean().sqrt() < (1e-5 if INTERPRETED else 2e-2)


@needs_kernels
def test_a_level_is_one_call_for_the_compiler() -> None:
    z = normal(2, 9, 128)
    level = Level([Block(128, 4, 1.0)], 9, rotary=False).to(DEVICE)
    weights = level_weights(level, DTYPE)
    torch.library.opcheck(torch.ops.hrm.blocks.default, (z, weights, 4, None, None), test_utils="test_schema")
    torch.library.opcheck(torch.ops.hrm.blocks.default, (z, weights, 4, None, None), test_utils="test_faketensor")


def test_they_take_bfloat16_without_gradient_and_shapes_that_fit() -> None:
    z = torch.zeros(2, 9, 128, dtype=torch.bfloat16)
    assert not supports(z, heads=4)
    with torch.no_grad():
        assert supports(z, heads=4)
        assert not supports(z.float(), heads=4)
        assert not supports(z.expand(2, 9, 128).repeat(1, 15, 1), heads=4)  # 135 tokens
        assert not supports(z[..., :96], heads=4)
        assert not supports(z, heads=8)  # 16 features a head


def test_weights_come_block_by_block_in_the_order_the_kernels_read_them() -> None:
    level = Level([Block(128, 4, 1.0) for _ in range(2)], 9, rotary=True)
    shapes = [tuple(w.shape) for w in level_weights(level, torch.bfloat16)]
    assert shapes == [(384, 128), (128, 128), (512, 128), (128, 256)] * 2


def test_a_cpu_is_never_asked_to_run_them() -> None:
    assert not available(torch.device("cpu"))
