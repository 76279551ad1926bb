"""The building blocks against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from hrm.layers import Attention, SwiGLU, attend, rms_norm, rotary_table, rotate, truncated_normal_


def test_truncation_keeps_the_asked_standard_deviation_and_the_bound() -> None:
    torch.manual_seed(0)
    sample = truncated_normal_(torch.empty(200_000), std=0.5)
    assert sample.std().item() == pytest.approx(0.5, rel=0.01)
    assert sample.abs().max().item() <= 2 * 0.5 / 0.8796 + 1e-3  # two sigmas of the sampling normal


def test_rms_norm_has_unit_mean_square_and_no_gain() -> None:
    x = torch.randn(5, 64) * 7
    np.testing.assert_allclose(rms_norm(x).square().mean(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(rms_norm(torch.zeros(1, 8)), 0.0)


def test_rms_norm_computes_in_float32_and_returns_the_type_it_got() -> None:
    assert rms_norm(torch.randn(2, 8, dtype=torch.bfloat16)).dtype is torch.bfloat16


@examples(max_examples=25, deadline=None)
@given(offset=st.integers(0, 20), seed=st.integers(0, 99))
def test_rotary_scores_depend_on_the_distance_between_tokens_only(offset: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 16, generator=generator)
    cos, sin = rotary_table(30, 16)
    turned_q = rotate(q.expand(1, 30, 1, 16), (cos, sin))[0, :, 0]
    turned_k = rotate(k.expand(1, 30, 1, 16), (cos, sin))[0, :, 0]
    near, far = turned_q[4] @ turned_k[1], turned_q[4 + offset] @ turned_k[1 + offset]
    assert near.item() == pytest.approx(far.item(), abs=1e-4)
    assert turned_q.norm(dim=-1).numpy() == pytest.approx(q.norm().item(), rel=1e-5)


def test_rotary_pairs_feature_j_with_feature_j_plus_half() -> None:
    x = torch.zeros(1, 2, 1, 4)
    x[0, 1, 0, 0] = 1.0
    turned = rotate(x, rotary_table(2, 4))[0, 1, 0]
    np.testing.assert_allclose(turned, [np.cos(1.0), 0, np.sin(1.0), 0], atol=1e-6)


@pytest.mark.parametrize(("width", "inner"), [(64, 256), (256, 768), (512, 1536)])
def test_the_inner_width_is_rounded_up_to_a_multiple_of_256(width: int, inner: int) -> None:
    mlp = SwiGLU(width, expansion=4.0)
    assert mlp.gate_up.weight.shape == (2 * inner, width)
    assert mlp.down.weight.shape == (width, inner)


def test_the_gate_is_the_first_half_of_the_fused_projection() -> None:
    mlp, x = SwiGLU(8, 4.0), torch.randn(3, 8)
    gate, up = mlp.gate_up.weight.chunk(2)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), expected)


def test_attention_spelt_out_equals_the_fused_one_in_values_and_gradients() -> None:
    q, k, v = (torch.randn(2, 4, 8, 16, requires_grad=True) for _ in range(3))
    ours, theirs = attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((result * weight).sum(), (q, k, v)) for result in (ours, theirs)]
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_attention_survives_scores_far_beyond_the_exponent_range() -> None:
    q = torch.full((1, 1, 3, 4), 1e3)
    assert attend(q, q, torch.ones(1, 1, 3, 4)).isfinite().all()


def test_nothing_but_the_two_fused_projections_is_in_an_attention() -> None:
    shapes = {name: tuple(value.shape) for name, value in Attention(32, 4).named_parameters()}
    assert shapes == {"qkv.weight": (96, 32), "out.weight": (32, 32)}
