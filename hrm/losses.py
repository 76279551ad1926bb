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

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor

from core.actions import ACTION_OF
from hrm.model import Outputs

POLICY_WEIGHT = 1.0
QUANTITY_WEIGHT = 0.1
VALUE_WEIGHT = 0.1
HALTING_WEIGHT = 0.5  # published code


@dataclass(frozen=True)
class Labels:
    """What the oracle knows about B rows."""

    position: Tensor  # int64 [B] in {-1, 0, +1}
    q_values: Tensor  # float32 [B, 3], bps by target -1, 0, +1
    log_quantity: Tensor  # float32 [B], natural log of units


@dataclass(frozen=True)
class SegmentLoss:
    """The parts of one segment's loss, each a mean over the batch; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    quantity: Tensor
    value: Tensor
    halting: Tensor
    regret_bps: Tensor
    right_ratio: Tensor


@dataclass(frozen=True)
class LossScale:
    """The two lengths, in bps, that turn money into losses."""

    cost_bps: float  # of one unit of turnover
    label_temperature: float  # of the cost
    reward_shaping: bool

    @property
    def tau_bps(self) -> float:
        return self.label_temperature * self.cost_bps

    @property
    def tolerance_bps(self) -> float:
        """Half a round trip: two units of turnover, halved."""
        return self.cost_bps


def target_logits(action_logits: Tensor, position: Tensor) -> Tensor:
    """Logits of the three legal actions [B, 3], ordered by target position, from [B, 5] and position [B]."""
    actions = torch.as_tensor(ACTION_OF, device=position.device)[position + 1]
    return action_logits.gather(1, actions)


def segment_loss(outputs: Outputs, labels: Labels, scale: LossScale, continue_target: Tensor | None) -> SegmentLoss:
    """Loss of one segment's outputs; `continue_target` [B] in (0, 1), or None with a single halt head."""
    log_policy = target_logits(outputs.action_logits, labels.position).log_softmax(-1)
    oracle = F.log_softmax(labels.q_values / scale.tau_bps, -1)
    policy = (oracle.exp() * (oracle - log_policy)).sum(-1).mean()
    quantity = (outputs.log_quantity - labels.log_quantity).square().mean()
    value = _value_loss(outputs.value, log_policy.detach(), labels.q_values, scale)
    regret = _regret(log_policy.detach(), labels.q_values)
    right = (regret <= (scale.tolerance_bps if scale.reward_shaping else 0.0)).float()
    halting = F.binary_cross_entropy_with_logits(outputs.q_halt, right)
    if continue_target is not None:
        halting = halting + F.binary_cross_entropy_with_logits(outputs.q_continue, continue_target)
    total = POLICY_WEIGHT * policy + QUANTITY_WEIGHT * quantity + VALUE_WEIGHT * value + HALTING_WEIGHT * halting
    return SegmentLoss(
        total,
        policy.detach(),
        quantity.detach(),
        value.detach(),
        halting.detach(),
        regret.mean(),
        right.mean(),
    )


def _value_loss(value: Tensor, log_policy: Tensor, q_values: Tensor, scale: LossScale) -> Tensor:
    earned = (log_policy.exp() * q_values).sum(-1)
    return F.huber_loss(value / scale.cost_bps, earned / scale.cost_bps)


def _regret(log_policy: Tensor, q_values: Tensor) -> Tensor:
    """What the policy's best action gives up against the oracle's, bps [B]."""
    chosen = q_values.gather(1, log_policy.argmax(-1, keepdim=True)).squeeze(1)
    return q_values.amax(-1) - chosen
