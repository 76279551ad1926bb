"""One model that decides all instruments of a book jointly: one token per instrument, one for the limits.

    tokens    limits | memory x M | instrument x K         no positions: the order of instruments means nothing
    answer    logits [B, K, 3] of each instrument's target -1, 0, +1, read from its own token of z_H; argmax
    policy    mean over instruments of KL( softmax(M / tau) || answer )
    halting   BCE(q_halt, the answer is feasible and within `tolerance` of the optimum), as hrm/losses.py

M are the max-marginals: the best feasible utility with one instrument fixed at one target. Their argmax is the exact
optimum, and their softmax says how much each target matters, which the optimum alone does not.

Shapes: B instances, K instruments, F factors. A model of one K decides any other: nothing in it depends on K.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

from core.observation import BookSchema
from core.settings import HierarchicalReasoningModelSettings
from hrm.batch import Batch
from hrm.layers import Linear, truncated_normal_
from hrm.losses import HALTING_WEIGHT, Objective, SegmentLoss, halting_loss
from hrm.model import QHead, ReasoningModel
from hrm.recurrence import GradientApproximation, Recurrence

MEMORY_TOKENS = 3


class BookOutputs(NamedTuple):
    """What one segment says of a book, float32."""

    logits: Tensor  # [B, K, 3] by target -1, 0, +1
    q_halt: Tensor  # [B]
    q_continue: Tensor  # [B]

    @property
    def targets(self) -> Tensor:
        """The answer, int64 [B, K] in {-1, 0, +1}."""
        return self.logits.argmax(-1) - 1


class BookModel(ReasoningModel):
    """instruments [B, K, 4 + F] (mu, loadings, variance, cost, position) and limits [B, 2] (gross, net) -> answer."""

    inputs = ("instruments", "limits")

    def __init__(
        self,
        settings: HierarchicalReasoningModelSettings,
        instruments: int,
        factors: int,
        *,
        gradient: GradientApproximation = "one_step",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings, self.instruments, self.factors = settings, instruments, factors
        architecture, width = settings.architecture, settings.architecture.embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.instrument = Linear(4 + factors, width)
            self.limits = Linear(2, width)
            self.learned = nn.Parameter(truncated_normal_(torch.empty(1 + MEMORY_TOKENS, width), 1.0))
            self.recurrence = Recurrence(
                architecture, settings.hierarchical, 1 + MEMORY_TOKENS + instruments, gradient=gradient
            )
            self.answer = Linear(architecture.h_module_dim, 3)
            self.q_head = QHead(architecture.h_module_dim)

    @property
    def schema(self) -> BookSchema:
        return BookSchema(instruments=self.instruments, factors=self.factors)

    def of(self, instruments: int) -> Self:
        """The same weights for books of another size."""
        other = type(self)(self.settings, instruments, self.factors, gradient=self.recurrence.gradient)
        other.load_state_dict(self.state_dict())
        return other.to(self.learned.device).train(self.training)

    def embed(self, *inputs: Tensor) -> Tensor:
        instruments, limits = inputs
        learned = self.learned.expand(instruments.shape[0], -1, -1)  # len() is a constant to the exporter
        first = learned[:, :1] + self.limits(limits).unsqueeze(1)
        return torch.cat((first, learned[:, 1:], self.instrument(instruments)), dim=1)

    def read(self, z_H: Tensor) -> BookOutputs:
        logits = self.answer(z_H[:, 1 + MEMORY_TOKENS :].float())
        q_halt, q_continue = self.q_head(z_H[:, 0]).unbind(-1)
        return BookOutputs(logits, q_halt, q_continue)


class BookImitation(Objective):
    """Imitate the exact optimum. A batch holds the inputs and `max_marginals` [B, K, 3], -inf where infeasible."""

    def __init__(self, *, temperature: float, tolerance: float) -> None:
        """Both in units of utility: of the soft labels, and what an answer may miss and still be right."""
        super().__init__()
        self.temperature, self.tolerance = temperature, tolerance

    def forward(self, outputs: BookOutputs, batch: Batch, continue_target: Tensor | None) -> SegmentLoss:
        marginals = batch["max_marginals"]
        labels = F.softmax(marginals / self.temperature, -1)
        policy = _divergence(labels, outputs.logits.log_softmax(-1)).mean()
        best = marginals.amax((1, 2))
        gain, feasible = book_utility(batch, outputs.targets)
        right = (feasible & (gain >= best - self.tolerance)).float()
        halting = halting_loss(outputs.q_halt, outputs.q_continue, right, continue_target)
        parts = {"policy": policy, "halting": halting, "right_ratio": right.mean()}
        parts |= {"infeasible_ratio": 1 - feasible.float().mean()}
        return SegmentLoss(policy + HALTING_WEIGHT * halting, {name: part.detach() for name, part in parts.items()})


def book_utility(batch: Batch, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Utility [B] and feasibility (bool [B]) of answers [B, K]:

    mu'p - |L'p|^2 / 2 - variance'p^2 / 2 - cost'|p - position|,  with sum |p| <= gross and |sum p| <= net.
    """
    mu, loadings, rest = batch["instruments"].tensor_split((1, -3), -1)
    variance, cost, position = rest.unbind(-1)
    p = targets.to(mu.dtype)
    exposure = (loadings * p.unsqueeze(-1)).sum(1)
    own = mu.squeeze(-1) * p - 0.5 * variance * p.square() - cost * (p - position).abs()
    gross, net = batch["limits"].unbind(-1)
    feasible = (p.abs().sum(1) <= gross) & (p.sum(1).abs() <= net)
    return own.sum(1) - 0.5 * exposure.square().sum(1), feasible


def _divergence(labels: Tensor, log_answer: Tensor) -> Tensor:
    """KL(labels || answer) over the last axis; labels may be 0."""
    return (torch.xlogy(labels, labels) - labels * log_answer).sum(-1)
