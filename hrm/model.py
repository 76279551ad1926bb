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
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch code is read with
from torch import Tensor, nn

from core.actions import N_ACTIONS
from core.observation import ObservationSchema
from core.settings import HierarchicalReasoningModelSettings
from hrm.layers import Level, Linear, truncated_normal_
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

    def __getitem__(self, key: Any) -> Any:
        """By the seed's names: action_type [B, 5], quantity [B, 1] in units, value [B, 1], q_values [B, 2]."""
        if not isinstance(key, str):
            return tuple.__getitem__(self, key)
        named = {
            "action_type": lambda: self.action_logits,
            "quantity": lambda: self.log_quantity.exp().unsqueeze(-1),
            "value": lambda: self.value.unsqueeze(-1),
            "q_values": lambda: torch.stack((self.q_halt, self.q_continue), -1),
        }
        return named[key]()


class InputNetwork(nn.Module):
    """f_I: observation -> tokens [B, n, e]."""

    def __init__(self, schema: ObservationSchema, width: int, *, learned_positions: bool) -> None:
        super().__init__()
        self.patch = schema.patch
        self.tokens = FIXED_TOKENS + schema.window // schema.patch
        self.decision = nn.Parameter(truncated_normal_(torch.empty(width), 1.0))
        self.account = Linear(len(schema.account_features), width)
        self.patches = Linear(schema.patch * len(schema.bar_features), width)
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
        self.hidden = Linear(width, hidden)
        self.policy = Linear(hidden, N_ACTIONS)
        self.quantity = Linear(hidden, 1)
        self.value = Linear(hidden, 1)

    def forward(self, decision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Action logits [B, 5], log quantity [B], value [B] from z_H's decision token [B, h]."""
        hidden = F.silu(self.hidden(decision))
        log_quantity = torch.sigmoid(self.quantity(hidden).squeeze(-1)) * self.log_quantity_max
        return self.policy(hidden), log_quantity, self.value(hidden).squeeze(-1)


class QHead(nn.Linear):
    """Two logits, halt and continue, in float32; both begin at -5: at first nobody halts early."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, Q_BIAS)

    def forward(self, decision: Tensor) -> Tensor:
        """z_H at the decision token [B, h] -> [B, 2]."""
        return F.linear(decision.float(), self.weight, self.bias)


class ReasoningModel(nn.Module, ABC):
    """An input network and an output network around a recurrence; one call is one segment.

    `embed(*inputs) -> x [B, n, e]` and `read(z_H [B, n, h]) -> outputs with q_halt and q_continue [B]` are a task's.
    """

    inputs: tuple[str, ...]  # of embed, as a training batch names them
    settings: HierarchicalReasoningModelSettings
    recurrence: Recurrence
    q_head: QHead

    @property
    def tokens(self) -> int:
        return self.recurrence.tokens

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @abstractmethod
    def embed(self, *inputs: Tensor) -> Tensor: ...

    @abstractmethod
    def read(self, z_H: Tensor) -> Any: ...

    def initial_carry(self, batch: int, dtype: torch.dtype = torch.float32) -> Carry:
        return Carry(*self.recurrence.initial_state(batch, dtype))

    def forward(self, *arguments: Any) -> tuple[Any, Carry]:
        """One segment: the inputs, then a carry -> outputs and the next carry (not detached).

        Without a carry it is the first segment. The recurrence computes in the carry's dtype; input and output
        networks in float32.
        """
        if not isinstance(arguments[-1], tuple):
            arguments = (*arguments, self.initial_carry(arguments[0].shape[0]))
        *inputs, carry = arguments
        x = self.embed(*inputs).to(carry.z_H.dtype)
        z_H, z_L = self.recurrence(carry.z_H, carry.z_L, x)
        return self.read(z_H), Carry(z_H, z_L)


class HierarchicalReasoningModel(ReasoningModel):
    """The seed's model (2.1) of one instrument."""

    inputs = ("bars", "account")

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
            self.q_head = QHead(architecture.h_module_dim)

    @property
    def observation_dim(self) -> int:
        """Numbers in one observation: W F + A."""
        return self.schema.window * len(self.schema.bar_features) + len(self.schema.account_features)

    def split(self, flat: Any) -> tuple[Any, Any]:
        """Observations as rows of numbers [B, W F + A] -> bars [B, W, F], oldest first, and account [B, A].

        An array or a tensor. The service's raw form has the same order.
        """
        account = flat.shape[1] - len(self.schema.account_features)
        return flat[:, :account].reshape(-1, self.schema.window, len(self.schema.bar_features)), flat[:, account:]

    def embed(self, *inputs: Tensor) -> Tensor:
        """bars [B, W, F] and account [B, A], or both in one [B, W F + A] -> x [B, n, e]."""
        x: Tensor = self.input_network(*(inputs if len(inputs) > 1 else self.split(inputs[0])))
        return x

    @property
    def config(self) -> HierarchicalReasoningModelSettings:
        """The settings; this and what follows are the seed's names (docs/adr/0043)."""
        return self.settings

    @property
    def h_module(self) -> Level:
        return self.recurrence.f_H

    @property
    def l_module(self) -> Level:
        return self.recurrence.f_L

    @property
    def policy_head(self) -> Linear:
        return self.output_network.policy

    @property
    def quantity_head(self) -> Linear:
        return self.output_network.quantity

    @property
    def value_head(self) -> Linear:
        return self.output_network.value

    @property
    def N(self) -> int:  # noqa: N802 - the seed's and the paper's, as the next
        """Cycles of the high level in a segment."""
        return self.recurrence.cycles

    @property
    def T(self) -> int:  # noqa: N802
        """Steps of the low level in a cycle."""
        return self.recurrence.steps

    def read(self, z_H: Tensor) -> Outputs:
        """z_H [B, n, h] -> what the segment says."""
        decision = z_H[:, 0].float()
        policy, log_quantity, value = self.output_network(decision)
        q_halt, q_continue = self.q_head(decision).unbind(-1)
        return Outputs(policy, log_quantity, value, q_halt, q_continue)
