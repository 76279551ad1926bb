"""The model around the recurrence: tokens, heads, isolation of rows."""

from __future__ import annotations

import math

import pytest
import torch
from hrm_planted import HRM, QUANTITY_MAX, SCHEMA, UNEQUAL_WIDTHS, inputs, model, settings
from torch import Tensor

from hrm.model import HierarchicalReasoningModel


def test_tokens_are_decision_account_and_one_per_patch() -> None:
    x = model().embed(*inputs(4))
    assert x.shape == (4, 2 + SCHEMA.window // SCHEMA.patch, 64)


def test_tokens_start_with_unit_variance() -> None:
    wide = model({f"{HRM}ARCHITECTURE__EMBEDDING_DIM": "512"})
    x = wide.embed(*inputs(2000))
    for token in range(1, wide.tokens):
        assert x[:, token].std().item() == pytest.approx(1.0, abs=0.1)


def test_a_patch_token_sees_its_own_bars_only() -> None:
    bars, account = inputs(1)
    other = bars.clone()
    other[:, 4:8] += 1  # the second patch
    changed = (model().embed(bars, account) != model().embed(other, account)).any(-1)[0]
    assert changed.tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("environ", [{}, UNEQUAL_WIDTHS, {f"{HRM}ARCHITECTURE__POSITIONS": "learned"}])
def test_one_segment_answers_for_every_row(environ: dict[str, str]) -> None:
    net = model(environ)
    outputs, carry = net(*inputs(3), net.initial_carry(3))
    assert outputs.action_logits.shape == (3, 5)
    for head in outputs[1:]:
        assert head.shape == (3,)
    assert [z.shape for z in carry] == [z.shape for z in net.initial_carry(3)]
    assert all(tensor.isfinite().all() for tensor in (*outputs, *carry))


def test_learned_positions_are_added_and_scaled_and_nothing_rotates() -> None:
    net = model({f"{HRM}ARCHITECTURE__POSITIONS": "learned"})
    assert net.input_network.positions is not None
    with_positions = net.embed(*inputs(2))
    positions, net.input_network.positions = net.input_network.positions, None
    torch.testing.assert_close(with_positions, (net.embed(*inputs(2)) + positions) / math.sqrt(2))
    assert not net.recurrence.f_L.rotary


def test_thinking_begins_by_not_halting() -> None:
    net = model()
    outputs, _ = net(*inputs(6), net.initial_carry(6))
    assert torch.equal(outputs.q_halt, torch.full((6,), -5.0))
    assert torch.equal(outputs.q_continue, torch.full((6,), -5.0))


def test_the_quantity_is_bounded_and_has_a_gradient_everywhere() -> None:
    net = model()
    torch.nn.init.normal_(net.output_network.quantity.weight, std=3.0)
    outputs, _ = net(*inputs(50), net.initial_carry(50))
    quantity = outputs.log_quantity
    assert (quantity >= 0).all()
    assert (quantity <= math.log(QUANTITY_MAX)).all()
    quantity.sum().backward()
    gradient = net.output_network.quantity.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    net = model().eval()
    bars, account = inputs(5)

    def think(rows: list[int]) -> tuple[Tensor, ...]:
        carry = net.initial_carry(len(rows))
        for _ in range(3):
            outputs, carry = net(bars[rows], account[rows], carry)
        return (*outputs, *carry)

    with torch.inference_mode():
        alone, together = think([2]), think([4, 2, 0])
    for own, shared in zip(alone, together, strict=True):
        torch.testing.assert_close(own[0], shared[1], atol=1e-5, rtol=1e-5)


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = model(seed=3), model(seed=3), model(seed=4)
    assert torch.equal(torch.rand(1), expected)
    weight = "recurrence.f_L.blocks.0.attention.qkv.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_the_paper_preset_has_the_papers_27_million_parameters() -> None:
    with torch.device("meta"):
        net = HierarchicalReasoningModel(
            settings(preset="paper_27m").hierarchical_reasoning_model, SCHEMA, QUANTITY_MAX
        )
    assert sum(p.numel() for p in net.recurrence.parameters()) == 27_262_976
