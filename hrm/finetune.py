"""Stage B: PPO (Schulman et al. 2017) from the imitation model on, held close to it by a KL term.

Every decision is thought anew, as many segments as it took, from the initial carry. Each segment has its own
one-step gradient and hands a detached carry on (deep supervision); the ratio is of the last one, which decided:

    last segment    - min(ratio A, clip(ratio) A) - ent_coef * entropy
    every segment   kl_coef * KL(policy_A || policy) + vf_coef * 0.5 ((value - return) / s)^2
                    + QUANTITY_WEIGHT * (log_quantity - log_quantity_A)^2

A is the rollout's advantage in units of s, its standard deviation, which also scales the critic's error; `_A` is
what a frozen copy of stage A says in the same segment. The q head is frozen: rewards do not say what is `right`, so
ACT's Q-values stay stage A's and never see the advantage. Quantities are not learned from rewards either.

Shapes: B rows of a minibatch; three columns are the legal actions by target -1, 0, +1.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from core.errors import ModelError
from hrm.losses import QUANTITY_WEIGHT
from hrm.model import Carry, HierarchicalReasoningModel, Outputs
from hrm.optimizer import Ema
from hrm.rollout import Rollout, VectorEnv, collect, log_policy, log_prob_of, require_valid
from hrm.trainer import DeepSupervisionTrainer

ADAM_EPS = 1e-5  # as the incumbent's
PARTS = ("surrogate", "entropy", "kl", "value", "quantity")


class FineTuner:
    """Improves the trainer's model on rewards; the trainer's moving average follows, and decides."""

    def __init__(self, trainer: DeepSupervisionTrainer[HierarchicalReasoningModel], *, seed: int = 0) -> None:
        """Begins at the averaged weights and keeps a frozen copy of them: that is stage A."""
        training = trainer.settings.training_params
        self.model, self.ppo = trainer.model, training.ppo
        self.model.load_state_dict(trainer.ema.state_dict())
        self.stage_a = copy.deepcopy(trainer.ema)
        self._ema = Ema(self.model, training.hrm.ema_decay, average=trainer.ema)
        self.generator = torch.Generator(trainer.device).manual_seed(seed)
        self.n_epochs = training.fine_tuning.n_epochs
        self.gradient_clip_norm = trainer.settings.performance.gradient_clip_norm
        self.weights = torch.tensor(
            [-1.0, -self.ppo.ent_coef, training.fine_tuning.kl_coef, self.ppo.vf_coef, QUANTITY_WEIGHT],
            device=trainer.device,
        )
        self.parameters = [p for name, p in self.model.named_parameters() if not name.startswith("q_head.")]
        self.optimizer = torch.optim.Adam(self.parameters, lr=training.fine_tuning.learning_rate, eps=ADAM_EPS)
        self.steps = 0

    def collect(self, env: VectorEnv) -> Rollout:
        """One rollout of the weights in training, with sampled actions."""
        return collect(env, self.model, self.ppo, self.generator)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """`n_epochs` over the rollout in minibatches; the parts of the loss, means over the minibatches.

        Raises DataError, changing nothing, for a rollout that cannot be learned from, and ModelError for a loss or
        gradient that is not finite: that step is not taken, those of earlier minibatches were.
        """
        require_valid(rollout, self.model.settings.halting_rule.max_segments)
        rollout, scale_bps = _normalised(rollout)
        seen: list[Tensor] = []
        for _ in range(self.n_epochs):
            order = torch.randperm(len(rollout.action), generator=self.generator, device=self.generator.device)
            for rows in torch.split(order, self.ppo.batch_size):
                parts = self._parts(rollout.at(rows), scale_bps)
                self._descend((self.weights * parts).sum())
                seen.append(parts.detach())
        return dict(zip(PARTS, torch.stack(seen).mean(0).tolist(), strict=True))

    def _parts(self, rows: Rollout, scale_bps: Tensor) -> Tensor:
        """PARTS: summed over a row's segments, means over the rows."""
        count = len(rows.action)
        total = torch.zeros(len(PARTS), device=scale_bps.device)
        carry, carry_a = self.model.initial_carry(count), self.stage_a.initial_carry(count)
        for segment in range(1, int(rows.segments.max()) + 1):
            outputs, carry = self.model(rows.bars, rows.account, carry.detach())
            with torch.no_grad():
                outputs_a, carry_a = self.stage_a(rows.bars, rows.account, carry_a)
            last = rows.segments == segment
            total = total + self._segment(outputs, outputs_a, rows, last=last, scale_bps=scale_bps)
            if not last.all():
                rows, carry, carry_a = rows.at(~last), _at(carry, ~last), _at(carry_a, ~last)
        return total / count

    def _segment(
        self, outputs: Outputs, outputs_a: Outputs, rows: Rollout, *, last: Tensor, scale_bps: Tensor
    ) -> Tensor:
        """PARTS of one segment, sums over its rows; only `last` rows have decided."""
        log_probs = log_policy(outputs.action_logits, rows.position)
        log_probs_a = log_policy(outputs_a.action_logits, rows.position)
        kl = (log_probs_a.exp() * (log_probs_a - log_probs)).sum()
        value = 0.5 * ((outputs.value - rows.return_bps) / scale_bps).square().sum()
        quantity = (outputs.log_quantity - outputs_a.log_quantity).square().sum()
        deciding = log_probs[last]
        surrogate = self._surrogate(deciding, rows.at(last)).sum()
        entropy = -(deciding.exp() * deciding).sum()
        return torch.stack((surrogate, entropy, kl, value, quantity))

    def _surrogate(self, log_probs: Tensor, rows: Rollout) -> Tensor:
        """The clipped objective [B] of decided rows, to be maximised; log_probs [B, 3]."""
        ratio = (log_prob_of(rows.action, log_probs, rows.position) - rows.log_prob).exp()
        clipped = ratio.clamp(1.0 - self.ppo.clip_range, 1.0 + self.ppo.clip_range)
        return torch.minimum(ratio * rows.advantage_bps, clipped * rows.advantage_bps)

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.gradient_clip_norm))
        if not (math.isfinite(norm) and loss.isfinite()):
            raise ModelError(
                f"fine-tuning diverged at step {self.steps} (gradient norm {norm:.4g}, loss {loss.item():.4g}); "
                f"lower training_params.fine_tuning.learning_rate",
                code="training_diverged",
            )
        self.optimizer.step()
        self._ema.update(self.steps)
        self.steps += 1


def _normalised(rollout: Rollout) -> tuple[Rollout, Tensor]:
    """With advantages of mean 0 and deviation 1; and the deviation they had, bps."""
    advantage = rollout.advantage_bps
    scale_bps = advantage.std(correction=0).clamp_min(1e-8)
    return rollout._replace(advantage_bps=(advantage - advantage.mean()) / scale_bps), scale_bps


def _at(carry: Carry, rows: Tensor) -> Carry:
    return Carry(carry.z_H[rows], carry.z_L[rows])
