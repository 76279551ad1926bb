"""PPO (Schulman et al. 2017), in one file: the algorithm, the network and its hybrid head.

    minimise  - min(r A, clip(r, 1 - c, 1 + c) A) + vf_coef / 2 (V - R)^2 - ent_coef H[pi] + auxiliary
    r = pi(action | observation) / pi_old(action | observation);  A by GAE (core/advantages.py), R = A + V_old

`Ppo` knows a `Policy` and an `Environment` and nothing else of either. Two policies share `PpoNetwork`: five masked
actions, and a quantity bounded by exp(log quantity_max * sigmoid(u)).

    TaughtSize   only the action is sampled; u is regressed on a target (docs/adr/0007): how the incumbent trades
    HybridSize   both are: u ~ N(mean, std), and log pi is the sum of the two; for rewards that depend on the size

Shapes: E environments in lock-step, T steps of one rollout, B rows of a minibatch out of N = T * E; D numbers of an
observation, W bars, F bar features, A account features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.actions import N_ACTIONS
from core.advantages import gae
from core.errors import DataError, ModelError
from core.observation import ObservationSchema
from core.settings import PpoTraining

Arrays = tuple[NDArray[Any], ...]
Tensors = tuple[Tensor, ...]

ADAM_EPS = 1e-5
ILLEGAL_LOGIT = -1e9
QUANTITY_COEF = 0.1  # of the regression that teaches the size
EDGE = 1e-6  # how close to its bounds a sampled size may come, so that u can be had back from it


class Step(NamedTuple):
    """What one step of E environments led to; those whose episode ended already show a new one."""

    reward: NDArray[np.floating]  # [E]
    terminated: NDArray[np.bool_]  # [E] over: nothing would follow
    truncated: NDArray[np.bool_]  # [E] cut short: the value of `last` is what would have followed
    last: Arrays = ()  # observations [E, ...] before the new episodes; read only where some were truncated


class Environment(Protocol):
    def observe(self) -> Arrays:
        """Observations: arrays [E, ...]."""
        ...

    def step(self, action: NDArray[Any]) -> Step:
        """Take the policy's actions [E, ...]."""
        ...


class Acted(NamedTuple):
    action: Tensor  # [E, ...]
    log_prob: Tensor  # [E]
    value: Tensor  # [E]


class Evaluated(NamedTuple):
    log_prob: Tensor  # [B] of the actions that were taken
    entropy: Tensor  # [B]
    value: Tensor  # [B]
    auxiliary: Tensor | None = None  # [], what else is to be minimised


class Policy(Protocol):
    """An actor and its critic."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def act(self, observation: Tensors, generator: torch.Generator) -> Acted:
        """Sampled actions."""
        ...

    def evaluate(self, observation: Tensors, action: Tensor) -> Evaluated:
        """Actions of old under the present weights, with gradient."""
        ...

    def value(self, observation: Tensors) -> Tensor:
        """[E] what is expected to come."""
        ...


class ActorCritic(nn.Module):
    """Two tanh MLPs of two layers, actor and critic. They share nothing, but a layer of both is one product.

    forward(x [B, D]) -> (the actor's outputs [B, K], value [B])
    """

    def __init__(self, inputs: int, hidden_dim: int, outputs: int, *, seed: int = 0) -> None:
        super().__init__()
        self.first = _unset(inputs, 2 * hidden_dim)  # the actor's rows, then the critic's
        self.second = nn.Parameter(torch.empty(2, hidden_dim, hidden_dim))  # of each: [in, out]
        self.second_bias = nn.Parameter(torch.zeros(2, 1, hidden_dim))
        self.actor_head = _unset(hidden_dim, outputs)
        self.value_head = nn.Parameter(torch.empty(hidden_dim))
        self.value_bias = nn.Parameter(torch.zeros(()))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (*torch.split(self.first.weight, hidden_dim), *self.second):
                nn.init.orthogonal_(weight, math.sqrt(2), generator)
            nn.init.orthogonal_(self.actor_head.weight, 0.01, generator)
            nn.init.orthogonal_(self.value_head[None], 1.0, generator)
            for layer in (self.first, self.actor_head):
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x).tanh_().unflatten(1, (2, -1)).transpose(0, 1)  # [2, B, hidden_dim]
        actor, critic = torch.baddbmm(self.second_bias, hidden, self.second).tanh_()
        return self.actor_head(actor), torch.mv(critic, self.value_head) + self.value_bias


def _unset(inputs: int, outputs: int) -> nn.Linear:
    """A layer without weights: torch would draw them from its one generator, and others train in this process."""
    return nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")


class PpoNetwork(nn.Module):
    """The actor's outputs are five action logits and u, of which the size is made.

    forward(bars [B, W, F], account [B, A]) -> (action logits [B, 5], log quantity [B], value [B])
    """

    def __init__(self, schema: ObservationSchema, hidden_dim: int, quantity_max: float, *, seed: int = 0) -> None:
        super().__init__()
        width = schema.window * len(schema.bar_features) + len(schema.account_features)
        self.log_quantity_max = math.log(quantity_max)
        self.body = ActorCritic(width, hidden_dim, N_ACTIONS + 1, seed=seed)

    def forward(self, bars: Tensor, account: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, u, value = self.read(torch.cat([bars.flatten(1), account], dim=1))
        return logits, self.log_quantity(u), value

    def read(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(action logits [B, 5], u [B], value [B]) of observations [B, W * F + A]."""
        outputs, value = self.body(x)
        return outputs[:, :N_ACTIONS], outputs[:, N_ACTIONS], value

    def log_quantity(self, u: Tensor) -> Tensor:
        """In (0, log quantity_max), with a gradient everywhere."""
        return self.log_quantity_max * torch.sigmoid(u)


def log_policy(logits: Tensor, legal: Tensor) -> Tensor:
    """Log-probabilities [B, K] over the actions that are legal [B, K]."""
    return torch.log_softmax(torch.where(legal, logits, ILLEGAL_LOGIT), dim=1)


def sampled(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """One action [B] of each row's log-probabilities [B, K]."""
    return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)


def taken(log_probs: Tensor, action: Tensor) -> Tensor:
    """Log-probability [B] of actions [B] among [B, K]."""
    return log_probs.gather(1, action[:, None]).squeeze(1)


def entropy(log_probs: Tensor) -> Tensor:
    """[B] of the distributions [B, K]."""
    return -(log_probs.exp() * log_probs).sum(dim=1)


class TaughtSize(nn.Module):
    """Learns when to trade from rewards and how much from a target.

    Observation: x [B, W * F + A], legal bool [B, 5], log quantity target [B]. Action: int64 [B].
    """

    def __init__(self, network: PpoNetwork) -> None:
        super().__init__()
        self.network = network

    def act(self, observation: Tensors, generator: torch.Generator) -> Acted:
        x, legal, _ = observation
        logits, _, value = self.network.read(x)
        log_probs = log_policy(logits, legal)
        action = sampled(log_probs, generator)
        return Acted(action, taken(log_probs, action), value)

    def evaluate(self, observation: Tensors, action: Tensor) -> Evaluated:
        x, legal, target = observation
        logits, u, value = self.network.read(x)
        log_probs = log_policy(logits, legal)
        size_loss = nn.functional.mse_loss(self.network.log_quantity(u), target)
        return Evaluated(taken(log_probs, action), entropy(log_probs), value, QUANTITY_COEF * size_loss)

    def value(self, observation: Tensors) -> Tensor:
        return self.network.read(observation[0])[2]


class HybridSize(nn.Module):
    """Learns both from rewards: log pi(action, quantity) = log pi(action) + log pi(quantity).

    Observation: x [B, W * F + A], legal bool [B, 5], and whatever follows is ignored. Action: float32 [B, 2], the
    action's number and log quantity, whose density is that of u ~ N(mean, std) behind the sigmoid.
    """

    def __init__(self, network: PpoNetwork) -> None:
        super().__init__()
        self.network = network
        self.log_std = nn.Parameter(torch.zeros(()))

    def act(self, observation: Tensors, generator: torch.Generator) -> Acted:
        logits, mean, value = self.network.read(observation[0])
        log_probs = log_policy(logits, observation[1])
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        ratio = torch.sigmoid(mean + self.log_std.exp() * noise).clamp(EDGE, 1.0 - EDGE)
        action = torch.stack([sampled(log_probs, generator).float(), self.network.log_quantity_max * ratio], dim=1)
        return Acted(action, self._log_prob(log_probs, mean, action), value)

    def evaluate(self, observation: Tensors, action: Tensor) -> Evaluated:
        logits, mean, value = self.network.read(observation[0])
        log_probs = log_policy(logits, observation[1])
        of_u = 0.5 + 0.5 * math.log(2 * math.pi) + self.log_std  # before the sigmoid, where it has a closed form
        return Evaluated(self._log_prob(log_probs, mean, action), entropy(log_probs) + of_u, value)

    def value(self, observation: Tensors) -> Tensor:
        return self.network.read(observation[0])[2]

    def _log_prob(self, log_probs: Tensor, mean: Tensor, action: Tensor) -> Tensor:
        ratio = action[:, 1] / self.network.log_quantity_max
        z = (torch.logit(ratio) - mean) * (-self.log_std).exp()
        of_u = -0.5 * (z.square() + math.log(2 * math.pi)) - self.log_std
        stretch = torch.log(self.network.log_quantity_max * ratio * (1.0 - ratio))  # d log quantity / d u
        return taken(log_probs, action[:, 0].long()) + of_u - stretch


class Rollout(NamedTuple):
    """N samples."""

    observation: Tensors  # [N, ...]
    action: Tensor  # [N, ...]
    numbers: Tensor  # [N, 3]: log-probability when it was taken, advantage, target of the value

    def at(self, rows: Tensor) -> Rollout:
        observation = tuple(column.index_select(0, rows) for column in self.observation)
        return Rollout(observation, self.action.index_select(0, rows), self.numbers.index_select(0, rows))


class Played(NamedTuple):
    """One step of all environments."""

    observation: Tensors
    acted: Acted
    step: Step
    final_value: NDArray[np.float32]  # [E] of the observations with which episodes were truncated, else 0


class Ppo:
    """A policy in training, on the device its weights are on. The same seed and thread count give the same weights."""

    def __init__(self, policy: Policy, hyper: PpoTraining, *, seed: int) -> None:
        self.policy, self.hyper = policy, hyper
        self.weights, self.gradient = as_one_vector(list(policy.parameters()))
        self.optimizer = torch.optim.Adam([self.weights], lr=hyper.learning_rate, eps=ADAM_EPS, fused=True)
        self.generator = torch.Generator(self.weights.device).manual_seed(seed)

    def iterate(self, env: Environment, *, done: float) -> float:
        """Play one rollout and learn from it; its mean reward per step.

        `done` is the share of the training that lies behind: the learning rate falls to 0 with it.
        Raises DataError for a reward that is not finite, and ModelError if the weights no longer are.
        """
        rollout, mean_reward = self.collect(env)
        self.optimizer.param_groups[0]["lr"] = self.hyper.learning_rate * (1.0 - done)
        self.update(rollout)
        if not self.weights.isfinite().all():
            raise ModelError(
                "PPO diverged: its weights are not finite; lower training_params.ppo.learning_rate",
                code="training_diverged",
            )
        return mean_reward

    @torch.inference_mode()
    def collect(self, env: Environment) -> tuple[Rollout, float]:
        """One rollout of `n_steps` in every environment, and its mean reward."""
        played = [self._play(env) for _ in range(self.hyper.n_steps)]
        values = torch.stack([*(one.acted.value for one in played), self.policy.value(self._observed(env.observe()))])
        rewards = np.stack([one.step.reward for one in played], dtype=np.float32)
        if not np.isfinite(rewards).all():
            raise DataError("the environment paid a reward that is not finite; nothing was learned from it")
        advantage = gae(
            rewards,
            values.cpu().numpy(),
            np.stack([one.step.terminated | one.step.truncated for one in played]),
            gamma=self.hyper.gamma,
            gae_lambda=self.hyper.gae_lambda,
            final_values=np.stack([one.final_value for one in played]),
        )
        advantages = torch.from_numpy(advantage).to(values.device)
        log_prob = torch.stack([one.acted.log_prob for one in played])
        numbers = torch.stack([log_prob, advantages, advantages + values[:-1]], dim=-1).flatten(0, 1)
        columns = zip(*(one.observation for one in played), strict=True)
        action = torch.cat([one.acted.action for one in played])
        return Rollout(tuple(torch.cat(column) for column in columns), action, numbers), float(rewards.mean())

    def _play(self, env: Environment) -> Played:
        observation = self._observed(env.observe())
        acted = self.policy.act(observation, self.generator)
        step = env.step(acted.action.cpu().numpy())
        final_value = np.zeros(len(step.reward), dtype=np.float32)
        if step.truncated.any():
            final_value = self.policy.value(self._observed(step.last)).cpu().numpy() * step.truncated
        return Played(observation, acted, step, final_value)

    def _observed(self, arrays: Arrays) -> Tensors:
        return tuple(torch.tensor(array, device=self.weights.device) for array in arrays)  # copies: they may be reused

    def update(self, rollout: Rollout) -> None:
        """`n_epochs` over the samples, each in an order of its own, a step of the optimiser per minibatch."""
        for _ in range(self.hyper.n_epochs):
            order = torch.randperm(len(rollout.numbers), generator=self.generator, device=self.weights.device)
            for rows in torch.split(order, self.hyper.batch_size):
                self.gradient.zero_()
                self._backward(rollout.at(rows))
                self.clip_gradient()
                self.optimizer.step()

    def clip_gradient(self) -> None:
        """Scale the gradient down to max_grad_norm: torch's clip_grad_norm_ without its search for devices."""
        self.gradient *= (self.hyper.max_grad_norm / (self.gradient.norm() + 1e-6)).clamp(max=1.0)

    def _backward(self, rows: Rollout) -> None:
        """The loss by its derivatives with respect to log pi, H and V: fewer operations than autograd makes of it."""
        found, hyper, count = self.policy.evaluate(rows.observation, rows.action), self.hyper, len(rows.numbers)
        with torch.no_grad():
            old_log_prob, advantage, target = rows.numbers.unbind(dim=1)
            std, mean = torch.std_mean(advantage, correction=0)  # of a lone row 0, not NaN
            advantage = (advantage - mean) / (std + 1e-8)
            ratio = (found.log_prob - old_log_prob).exp()
            free = ratio * advantage
            clipped = ratio.clamp(1.0 - hyper.clip_range, 1.0 + hyper.clip_range) * advantage
            by_log_prob = torch.where(free <= clipped, free / -count, 0.0)  # a smaller clipped term is a constant
            by_value = (found.value - target) * (hyper.vf_coef / count)
        told = [(found.log_prob, by_log_prob), (found.value, by_value)]
        if hyper.ent_coef:
            told.append((found.entropy, torch.full_like(by_value, -hyper.ent_coef / count)))
        if found.auxiliary is not None:
            told.append((found.auxiliary, torch.ones_like(found.auxiliary)))
        torch.autograd.backward([output for output, _ in told], [derivative for _, derivative in told])


def as_one_vector(parameters: list[nn.Parameter]) -> tuple[nn.Parameter, Tensor]:
    """All parameters as one, and its gradient: each becomes a view of it, its gradient a view of that gradient.

    Clipping and Adam are then one operation each, not one for each layer.
    """
    vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    vector.grad = gradient = torch.zeros_like(vector)
    sizes = [parameter.numel() for parameter in parameters]
    parts = zip(parameters, torch.split(vector.detach(), sizes), torch.split(gradient, sizes), strict=True)
    for parameter, weights_part, gradient_part in parts:
        parameter.data = weights_part.view_as(parameter)
        parameter.grad = gradient_part.view_as(parameter)
    return vector, gradient
