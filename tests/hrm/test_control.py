"""The controls are the same model without reasoning in depth."""

from __future__ import annotations

import pytest
import torch
from hrm_planted import QUANTITY_MAX, SCHEMA, UNEQUAL_WIDTHS, inputs, settings

from core.settings import Settings
from hrm import control
from hrm.model import HierarchicalReasoningModel
from hrm.recurrence import GradientApproximation


def _model(chosen: Settings, gradient: GradientApproximation = "one_step") -> HierarchicalReasoningModel:
    return HierarchicalReasoningModel(
        chosen.hierarchical_reasoning_model, SCHEMA, QUANTITY_MAX, gradient=gradient, seed=0
    )


@pytest.mark.parametrize("environ", [{}, UNEQUAL_WIDTHS])
def test_the_control_of_the_same_size_has_the_same_parameters(environ: dict[str, str]) -> None:
    ours, theirs = _model(settings(environ)), _model(control.same_size(settings(environ)))
    assert theirs.parameter_count == ours.parameter_count
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}


@pytest.mark.parametrize("preset", ["compact", "default", "seed"])
def test_the_control_of_the_same_compute_runs_through_as_many_blocks_each_once(preset: str) -> None:
    ours = settings(preset=preset)
    theirs = control.same_compute(ours)
    shape = theirs.hierarchical_reasoning_model.architecture
    assert control.block_passes(theirs) == control.block_passes(ours) == shape.l_layers + shape.h_layers


def test_a_control_decides_in_one_segment_whatever_the_market() -> None:
    rule = control.same_compute(settings(preset="default")).hierarchical_reasoning_model.halting_rule
    assert (rule.min_segments, rule.max_segments, rule.halting) == (1, 1, "single_head")


def test_nothing_is_left_out_of_a_controls_gradient() -> None:
    gradients = []
    for approximation in ("one_step", "full_bptt"):
        model = _model(control.same_compute(settings()), approximation)
        outputs, _ = model(*inputs(4), model.initial_carry(4))
        outputs.action_logits.square().sum().backward()
        gradients.append([p.grad for p in model.recurrence.parameters()])
    for cut, full in zip(*gradients, strict=True):
        assert cut is not None
        torch.testing.assert_close(cut, full)


def test_a_control_is_its_blocks_in_a_row() -> None:
    model = _model(control.same_compute(settings()))
    bars, account = inputs(3)
    x = model.embed(bars, account)
    z_H, z_L = model.initial_carry(3)
    table = (model.recurrence.f_L.cos, model.recurrence.f_L.sin)
    expected = x + z_H + z_L
    for block in model.recurrence.f_L.blocks:
        expected = block(expected, table)
    expected = z_H + expected
    for block in model.recurrence.f_H.blocks:
        expected = block(expected, table)
    torch.testing.assert_close(model(bars, account, model.initial_carry(3))[1].z_H, expected)
