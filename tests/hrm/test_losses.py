"""The losses against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from core.actions import Action
from hrm.batch import Batch
from hrm.losses import Imitation, SegmentLoss, target_logits
from hrm.model import Outputs

SCALE = Imitation(cost_bps=2.0, label_temperature=0.3, reward_shaping=True)


def outputs(logits: Tensor, **heads: float) -> Outputs:
    rows = len(logits)
    named = {"log_quantity": 0.0, "value": 0.0, "q_halt": 0.0, "q_continue": 0.0} | heads
    return Outputs(logits, **{name: torch.full((rows,), value) for name, value in named.items()})


def labels(q_values: list[float], position: int = 0, log_quantity: float = 0.0) -> Batch:
    return {
        "position": torch.tensor([position]),
        "q_values": torch.tensor([q_values]),
        "log_quantity": torch.tensor([log_quantity]),
    }


def choosing(target: int, position: int = 0) -> Tensor:
    logits = torch.zeros(1, 5)
    table = {-1: Action.SELL_SHORT, 0: Action.HOLD, 1: Action.BUY_LONG} if position == 0 else {}
    logits[0, table[target]] = 30.0
    return logits


def loss(result: Outputs, truth: Batch, scale: Imitation = SCALE, target: Tensor | None = None) -> SegmentLoss:
    computed: SegmentLoss = scale(result, truth, target)
    return computed


@pytest.mark.parametrize(
    ("position", "actions"),
    [
        (-1, [Action.HOLD, Action.CLOSE_SHORT, Action.BUY_LONG]),
        (0, [Action.SELL_SHORT, Action.HOLD, Action.BUY_LONG]),
        (1, [Action.SELL_SHORT, Action.CLOSE_LONG, Action.HOLD]),
    ],
)
def test_each_position_reads_its_own_three_actions(position: int, actions: list[Action]) -> None:
    legal = target_logits(torch.arange(5.0).unsqueeze(0), torch.tensor([position]))
    assert legal[0].tolist() == [float(action) for action in actions]


def test_the_policy_loss_is_zero_exactly_at_the_soft_labels_and_is_a_divergence() -> None:
    q_values = [1.0, -2.0, 0.5]
    logits = torch.zeros(1, 5)
    logits[0, [Action.SELL_SHORT, Action.HOLD, Action.BUY_LONG]] = torch.tensor(q_values) / 0.6
    assert loss(outputs(logits), labels(q_values)).parts["policy"].item() == pytest.approx(0.0, abs=1e-6)
    oracle = np.exp(np.array(q_values) / 0.6)  # tau: 0.3 of a cost of 2 bps
    oracle /= oracle.sum()
    expected = (oracle * np.log(oracle * 3)).sum()
    assert loss(outputs(torch.zeros(1, 5)), labels(q_values)).parts["policy"].item() == pytest.approx(
        expected, rel=1e-5
    )


def test_illegal_actions_get_no_gradient() -> None:
    logits = torch.zeros(1, 5, requires_grad=True)
    loss(outputs(logits), labels([1.0, 0.0, 0.0])).total.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[0, [Action.CLOSE_LONG, Action.CLOSE_SHORT]] == 0).all()
    assert (logits.grad[0, [Action.SELL_SHORT, Action.HOLD]] != 0).all()


def test_regret_is_what_the_best_action_of_the_policy_gives_up() -> None:
    result = loss(outputs(choosing(0)), labels([7.0, 4.0, -1.0]))
    assert result.parts["regret_bps"].item() == pytest.approx(3.0)


@pytest.mark.parametrize(("shaping", "regret", "right"), [(True, 1.9, 1), (True, 2.1, 0), (False, 1.9, 0)])
def test_halting_is_right_within_half_a_round_trip_or_at_the_very_action(
    shaping: bool, regret: float, right: int
) -> None:
    scale = Imitation(cost_bps=2.0, label_temperature=0.5, reward_shaping=shaping)
    assert loss(outputs(choosing(0)), labels([regret, 0.0, -5.0]), scale).parts["right_ratio"].item() == right
    assert loss(outputs(choosing(-1)), labels([regret, 0.0, -5.0]), scale).parts["right_ratio"].item() == 1


def test_the_value_learns_what_the_policy_earns_not_the_maximum() -> None:
    q_values = [6.0, 0.0, 3.0]
    earned = 3.0  # of the uniform policy
    assert loss(outputs(torch.zeros(1, 5), value=earned), labels(q_values)).parts["value"].item() == pytest.approx(0.0)
    assert loss(outputs(torch.zeros(1, 5), value=6.0), labels(q_values)).parts["value"].item() > 0.5


def test_the_quantity_loss_is_the_squared_log_error() -> None:
    result = loss(outputs(torch.zeros(1, 5), log_quantity=2.0), labels([0.0, 0.0, 0.0], log_quantity=5.0))
    assert result.parts["quantity"].item() == pytest.approx(9.0)


def test_halting_loss_with_and_without_the_continue_head() -> None:
    truth, wrong = labels([0.0, 0.0, 0.0]), np.log1p(np.exp(2.0))
    single = loss(outputs(torch.zeros(1, 5), q_halt=-2.0), truth)
    assert single.parts["halting"].item() == pytest.approx(wrong, rel=1e-5)
    both = loss(outputs(torch.zeros(1, 5), q_halt=-2.0), truth, target=torch.tensor([0.5]))
    assert both.parts["halting"].item() == pytest.approx(wrong + np.log(2), rel=1e-5)
