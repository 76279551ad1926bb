"""The network of an archive in torch, answering in our contract (docs/architecture.md, "Model files").

forward(bars [B, W, F], account [B, A]) -> (action_logits [B, 5], log_quantity [B], value [B])

Its observation is bars and account laid end to end as the archive has them, normalized as VecNormalize did. What its
outputs mean depends on the position held, which is the account feature of that name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.ppo import ILLEGAL_LOGIT
from baselines.sb3.actions import Actions, Bins, Choices, Constant
from baselines.sb3.archive import refused

MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU}
ACTOR, CRITIC = "mlp_extractor.policy_net", "mlp_extractor.value_net"

Vectors = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Layout:
    """What the agent sees of an observation."""

    parts: tuple[str, ...]  # "bars" and "account", in the order in which they are laid end to end
    position: int  # which number of the account is the position held


class ImportedPolicy(nn.Module):
    def __init__(
        self,
        actor: nn.Sequential,
        critic: nn.Sequential,
        layout: Layout,
        actions: Actions,
        normalization: Vectors | None,
    ) -> None:
        super().__init__()
        self.actor, self.critic, self.layout, self.actions = actor, critic, layout, actions
        self.normalization = None if normalization is None else tuple(map(torch.from_numpy, normalization))
        penalty = torch.from_numpy(actions.action.table)  # [3, 5, K]: 0 where a choice comes to an action
        self.penalty = torch.where(penalty, 0.0, ILLEGAL_LOGIT)

    def forward(self, bars: Tensor, account: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = {"bars": bars.flatten(1), "account": account}
        x = self.normalized(torch.cat([seen[part] for part in self.layout.parts], dim=1))
        outputs = self.actor(x)
        position = account[:, self.layout.position].round().clamp(-1.0, 1.0).long()
        logits = (self.scores(outputs)[:, None, :] + self.penalty[position + 1]).amax(dim=2)
        return logits, self.log_quantity(outputs), self.critic(x).squeeze(1)

    def normalized(self, x: Tensor) -> Tensor:
        """In double precision, as VecNormalize does it: a price less its mean loses digits in single."""
        if self.normalization is None:
            return x
        mean, std, limit = self.normalization
        return torch.minimum(torch.maximum((x.double() - mean) / std, -limit), limit).float()

    def scores(self, outputs: Tensor) -> Tensor:
        """[B, K] of the choices."""
        action = self.actions.action
        if isinstance(action, Choices):
            return outputs[:, : action.table.shape[2]]
        toward = torch.tensor([-1.0, 0.0, 1.0])
        return outputs[:, :1] * toward - action.dead_zone * toward.abs()

    def log_quantity(self, outputs: Tensor) -> Tensor:
        """[B], natural log of units."""
        quantity = self.actions.quantity
        if isinstance(quantity, Constant):
            return torch.full((len(outputs),), math.log(quantity.quantity))
        if isinstance(quantity, Bins):
            scores = outputs[:, self.actions.outputs - len(quantity.quantities) :]
            return torch.tensor(quantity.quantities).log()[scores.argmax(dim=1)]
        share = (outputs[:, 1].clamp(quantity.low, quantity.high) - quantity.low) / (quantity.high - quantity.low)
        return (share * self.actions.quantity_max).clamp(min=1.0).log()


def build_policy(
    weights: Mapping[str, Tensor],
    *,
    inputs: int,
    activation: str,
    layout: Layout,
    actions: Actions,
    normalization: Vectors | None,
) -> ImportedPolicy:
    """Raises ModelError, naming what was expected and found, for weights that are no MlpPolicy of these spaces."""
    _require_mlp(weights)
    actor = _chain(weights, (*_layers(weights, ACTOR), "action_net"), inputs, actions.outputs)
    critic = _chain(weights, (*_layers(weights, CRITIC), "value_net"), inputs, 1)
    made = [_sequential(chain, MODULES[activation]) for chain in (actor, critic)]
    return ImportedPolicy(made[0], made[1], layout, actions, normalization).eval()


def _require_mlp(weights: Mapping[str, Tensor]) -> None:
    parts = {"action_net", "value_net", "log_std", ACTOR, CRITIC}
    strange = sorted(name for name in weights if not any(name == part or name.startswith(part + ".") for part in parts))
    if not strange:
        return
    if any("lstm" in name for name in strange):
        raise refused("a RecurrentPPO carries a state from bar to bar, which a model of one pass has no place for")
    raise refused(f"its network is no MlpPolicy of PPO: it has {', '.join(strange[:3])}")


def _layers(weights: Mapping[str, Tensor], prefix: str) -> tuple[str, ...]:
    """Names of the linear layers in order: every second module, an activation follows each."""
    names = {name.rpartition(".")[0] for name in weights if name.startswith(prefix + ".")}
    expected = tuple(f"{prefix}.{2 * number}" for number in range(len(names)))
    if names != set(expected):
        raise refused(f"{prefix} is not made of linear layers with an activation after each: {sorted(names)}")
    return expected


def _chain(weights: Mapping[str, Tensor], names: tuple[str, ...], inputs: int, outputs: int) -> list[nn.Linear]:
    chain = []
    for name in names:
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise refused(f"{name} is no linear layer with a weight and a bias")
        if weight.shape[1] != inputs:
            raise refused(f"{name} takes {weight.shape[1]} numbers, {inputs} were expected from what comes before it")
        chain.append(_linear(weight, bias))
        inputs = weight.shape[0]
    if inputs != outputs:
        raise refused(f"{names[-1]} answers {inputs} numbers, its actions or its value need {outputs}")
    return chain


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _sequential(chain: list[nn.Linear], activation: type[nn.Module]) -> nn.Sequential:
    hidden = [module for layer in chain[:-1] for module in (layer, activation())]
    return nn.Sequential(*hidden, chain[-1])
