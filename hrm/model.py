"""HierarchicalReasoningModel: input network, recurrence, output network.

    tokens:  decision | account | W / patch patches of bars       each of width e, unit variance at the start
    z_H, z_L <- recurrence(z_H, z_L, tokens)                      one segment
    hidden  = silu(f_O z_H[:, 0]);  heads: policy (5 actions), quantity, value;  q head reads z_H[:, 0]

Shapes: B batch, W window in bars, F bar features, A account features, n = 2 + W / patch tokens,
h, l widths of the two levels, e width of a token.

The position reaches the model through the account only, so the policy head has one logit for each of the five
actions; whoever takes a softmax or an argmax masks the two that are illegal in the row's position
(core.actions). Market complexity is no input: it only bounds the number of segments.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

from core.actions import N_ACTIONS
from core.observation import ObservationSchema
from core.settings import HierarchicalReasoningModelSettings
from hrm.layers import linear, truncated_normal_
from hrm.recurrence import GradientApproximation, Recurrence

FIXED_TOKENS = 2  # decision, account
Q_BIAS = -5.0  # both Q-values start at sigmoid(-5) = 0.0067: begin by not halting


class Carry(NamedTuple):
    """What one segment hands to the next: z_H [B, n, h], z_L [B, n, l]."""

    z_H: Tensor  # noqa: N815 - the paper's symbol
    z_L: Tensor  # noqa: N815

    def detach(self) -> Carry:
        return Carry(self.z_H.detach(), self.z_L.detach())


class Outputs(NamedTuple):
    """What one segment says, float32."""

    action_logits: Tensor  # [B, 5], before masking
    log_quantity: Tensor  # [B], natural log of units, in (0, log quantity_max)
    value: Tensor  # [B], bps to the end of the session under the model's own policy
    q_halt: Tensor  # [B], logit: the answer is good enough
    q_continue: Tensor  # [B], logit: it will be after more segments


class InputNetwork(nn.Module):
    """f_I: observation -> tokens [B, n, e]."""

    def __init__(self, schema: ObservationSchema, width: int, *, learned_positions: bool) -> None:
        super().__init__()
        self.patch = schema.patch
        self.tokens = FIXED_TOKENS + schema.window // schema.patch
        self.decision = nn.Parameter(truncated_normal_(torch.empty(width), 1.0))
        self.account = linear(len(schema.account_features), width)
        self.patches = linear(schema.patch * len(schema.bar_features), width)
        self.positions = (
            nn.Parameter(truncated_normal_(torch.empty(self.tokens, width), 1.0)) if learned_positions else None
        )

    def forward(self, bars: Tensor, account: Tensor) -> Tensor:
        batch, window, features = bars.shape
        patches = self.patches(bars.reshape(batch, window // self.patch, self.patch * features))
        decision = self.decision.to(patches.dtype).expand(batch, 1, -1)
        x = torch.cat((decision, self.account(account).unsqueeze(1), patches), dim=1)
        return x if self.positions is None else (x + self.positions) * math.sqrt(0.5)


class OutputNetwork(nn.Module):
    """f_O: the decision token of z_H -> heads."""

    def __init__(self, width: int, hidden: int, quantity_max: float) -> None:
        super().__init__()
        self.log_quantity_max = math.log(quantity_max)
        self.hidden = linear(width, hidden)
        self.policy = linear(hidden, N_ACTIONS)
        self.quantity = linear(hidden, 1)
        self.value = linear(hidden, 1)
        self.q_head = nn.Linear(width, 2)
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, Q_BIAS)

    def forward(self, decision: Tensor) -> Outputs:
        decision = decision.float()
        hidden = F.silu(self.hidden(decision))
        q_halt, q_continue = self.q_head(decision).float().unbind(-1)
        log_quantity = torch.sigmoid(self.quantity(hidden).float().squeeze(-1)) * self.log_quantity_max
        value = self.value(hidden).float().squeeze(-1)
        return Outputs(self.policy(hidden).float(), log_quantity, value, q_halt, q_continue)


class HierarchicalReasoningModel(nn.Module):
    """The seed's model (2.1): one call is one segment."""

    def __init__(
        self,
        settings: HierarchicalReasoningModelSettings,
        schema: ObservationSchema,
        quantity_max: float,
        *,
        gradient: GradientApproximation = "one_step",
        seed: int = 0,
    ) -> None:
        """`quantity_max` > 1, in units. `seed` decides the initial weights; the global generator is untouched."""
        super().__init__()
        self.settings, self.schema, self.quantity_max = settings, schema, quantity_max
        architecture = settings.architecture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.input_network = InputNetwork(
                schema, architecture.embedding_dim, learned_positions=architecture.positions == "learned"
            )
            self.recurrence = Recurrence(
                architecture, settings.hierarchical, self.input_network.tokens, gradient=gradient
            )
            self.output_network = OutputNetwork(architecture.h_module_dim, architecture.hidden_dim, quantity_max)

    @property
    def tokens(self) -> int:
        return self.input_network.tokens

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def embed(self, bars: Tensor, account: Tensor) -> Tensor:
        """bars [B, W, F], account [B, A] -> x [B, n, e]."""
        x: Tensor = self.input_network(bars, account)
        return x

    def initial_carry(self, batch: int) -> Carry:
        return Carry(*self.recurrence.initial_state(batch))

    def forward(self, bars: Tensor, account: Tensor, carry: Carry) -> tuple[Outputs, Carry]:
        """One segment: bars [B, W, F], account [B, A] and a carry -> outputs and the next carry (not detached)."""
        z_H, z_L = self.recurrence(carry.z_H, carry.z_L, self.embed(bars, account))
        outputs: Outputs = self.output_network(z_H[:, 0])
        return outputs, Carry(z_H, z_L)
