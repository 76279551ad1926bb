"""What one segment is trained for: cost-sensitive imitation of the oracle, and the two halting Q-values.

    policy     KL( softmax(Q / tau) || policy over the 3 legal actions ),   tau = label_temperature * cost_bps
    quantity   (log_quantity - target)^2
    value      huber( (value - E_policy[Q]) / cost_bps )
    halting    0.5 * (BCE(q_halt, right) + BCE(q_continue, bootstrap))

Q is the oracle's value in bps of each target position, [B, 3] by target -1, 0, +1. Soft labels instead of the
best action: near-ties are most of a market, and an expected-regret loss saturates at HOLD and never leaves.
The value is what this policy, not the best one, would earn: a maximum over noisy labels is biased upwards.
`right` means the regret of the policy's best action is within half a round trip's cost (reward shaping), or
that it is the oracle's very action; the literal comparison is almost a coin on near-ties.

Shapes: B batch; the three columns are the targets -1, 0, +1, which are three different actions per position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

from core.actions import ACTION_OF
from core.errors import ConfigError
from core.settings import Settings
from hrm.batch import Batch
from hrm.model import Outputs

POLICY_WEIGHT = 1.0
QUANTITY_WEIGHT = 0.1
VALUE_WEIGHT = 0.1
HALTING_WEIGHT = 0.5  # published code
ACTIONS = torch.as_tensor(ACTION_OF)  # int64 [3, 3]: the action from position index p + 1 to target index q + 1


class SegmentLoss(NamedTuple):
    """One segment's loss, means over the batch."""

    total: Tensor  # carries the gradient
    parts: dict[str, Tensor]  # detached; for people


class Objective(nn.Module, ABC):
    """What the trainer minimises: outputs of one segment and the batch they answer -> the loss.

    `continue_target` [B] in (0, 1) is what q_continue should say, None with a single halt head.
    """

    @abstractmethod
    def forward(self, outputs: Any, batch: Batch, continue_target: Tensor | None) -> SegmentLoss: ...


def target_logits(action_logits: Tensor, position: Tensor, actions: Tensor = ACTIONS) -> Tensor:
    """Logits of the three legal actions [B, 3], ordered by target position, from [B, 5] and position [B]."""
    return action_logits.gather(1, actions[position + 1])


class Imitation(Objective):
    """The objective of one instrument; two lengths in bps turn money into losses."""

    actions: Tensor

    def __init__(self, *, cost_bps: float, label_temperature: float, reward_shaping: bool) -> None:
        """`cost_bps` > 0 of one unit of turnover; `label_temperature` in units of it. Raises ConfigError."""
        super().__init__()
        if not cost_bps > 0:
            raise ConfigError(f"cost_bps must be positive (got {cost_bps}): it scales the labels' temperature")
        self.cost_bps, self.tau_bps = cost_bps, label_temperature * cost_bps
        self.tolerance_bps = cost_bps if reward_shaping else 0.0  # half a round trip: two units of turnover, halved
        self.register_buffer("actions", ACTIONS.clone(), persistent=False)

    @classmethod
    def of(cls, settings: Settings, cost_bps: float | None = None) -> Imitation:
        """As the settings say, where one unit of turnover costs `cost_bps`, by default `trading.cost_bps`."""
        return cls(
            cost_bps=settings.trading.cost_bps if cost_bps is None else cost_bps,
            label_temperature=settings.training_params.hrm.label_temperature,
            reward_shaping=settings.hierarchical_reasoning_model.act.reward_shaping,
        )

    def forward(self, outputs: Outputs, batch: Batch, continue_target: Tensor | None) -> SegmentLoss:
        q_values = batch["q_values"]
        log_policy = target_logits(outputs.action_logits, batch["position"], self.actions).log_softmax(-1)
        oracle = F.log_softmax(q_values / self.tau_bps, -1)
        policy = (oracle.exp() * (oracle - log_policy)).sum(-1).mean()
        quantity = (outputs.log_quantity - batch["log_quantity"]).square().mean()
        value = self._value_loss(outputs.value, log_policy.detach(), q_values)
        regret = _regret(log_policy.detach(), q_values)
        right = (regret <= self.tolerance_bps).float()
        halting = halting_loss(outputs.q_halt, outputs.q_continue, right, continue_target)
        total = POLICY_WEIGHT * policy + QUANTITY_WEIGHT * quantity + VALUE_WEIGHT * value + HALTING_WEIGHT * halting
        parts = {"policy": policy, "quantity": quantity, "value": value, "halting": halting}
        parts |= {"regret_bps": regret.mean(), "right_ratio": right.mean()}
        return SegmentLoss(total, {name: part.detach() for name, part in parts.items()})

    def _value_loss(self, value: Tensor, log_policy: Tensor, q_values: Tensor) -> Tensor:
        earned = (log_policy.exp() * q_values).sum(-1)
        return F.huber_loss(value / self.cost_bps, earned / self.cost_bps)


def halting_loss(q_halt: Tensor, q_continue: Tensor, right: Tensor, continue_target: Tensor | None) -> Tensor:
    """BCE(q_halt, right) and, where there is a target for it, BCE(q_continue, target); all [B] -> scalar."""
    loss = F.binary_cross_entropy_with_logits(q_halt, right)
    if continue_target is None:
        return loss
    return loss + F.binary_cross_entropy_with_logits(q_continue, continue_target)


def _regret(log_policy: Tensor, q_values: Tensor) -> Tensor:
    """What the policy's best action gives up against the oracle's, bps [B]."""
    chosen = q_values.gather(1, log_policy.argmax(-1, keepdim=True)).squeeze(1)
    return q_values.amax(-1) - chosen
