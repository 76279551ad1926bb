"""PPO (Schulman et al. 2017), the incumbent: clipped surrogate, GAE, masked categorical policy.

Shapes: E environments in lock-step, T steps of one rollout, B a minibatch of their E*T samples.
Costs are waived at first and ramp up (`cost_warmup_ratio` of the training): under full costs a random policy learns
to stop trading before it learns when to trade. Direction is learned from reward. Size is regressed on a
volatility-scaled target (the same for every model), so a comparison of two agents is a comparison of their
decisions, not of their leverage.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.actions import N_ACTIONS, SAFE_DECISION, legal_actions
from core.advantages import gae
from core.observation import Observation, ObservationSchema
from core.settings import PpoTraining, Settings

Floats = NDArray[np.float32]
REWARD_SCALE = 0.1  # rewards are in bps: a few tenths after scaling
QUANTITY_COEF = 0.1
ILLEGAL_LOGIT = -1e9
REPORT_S = 1.0
VALIDATIONS = 5  # as many looks as the HRM's training has in the compact preset


class VectorEnv(Protocol):
    """What the trainer needs of an environment: E rows, one episode each, replaced when they end."""

    def observe(self) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
        """(bars [E, W, F], account [E, A], position [E], log quantity target [E])."""
        ...

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """(reward after costs in bps [E], the costs in it [E], terminated [E])."""
        ...


class PpoNetwork(nn.Module):
    """Two tanh MLPs, one for the policy and the size, one for the value.

    forward(bars [B, W, F], account [B, A]) -> (action logits [B, 5], log quantity [B], value [B])
    """

    def __init__(self, schema: ObservationSchema, hidden_dim: int, quantity_max: float) -> None:
        super().__init__()
        width = schema.window * len(schema.bar_features) + len(schema.account_features)
        self.log_quantity_max = float(np.log(quantity_max))
        self.policy = _mlp(width, hidden_dim)
        self.critic = _mlp(width, hidden_dim)
        self.action_head = _linear(hidden_dim, N_ACTIONS, gain=0.01)
        self.quantity_head = _linear(hidden_dim, 1, gain=0.01)
        self.value_head = _linear(hidden_dim, 1, gain=1.0)

    def forward(self, bars: Tensor, account: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        flat = torch.cat([bars.flatten(1), account], dim=1)
        hidden = self.policy(flat)
        log_quantity = self.log_quantity_max * torch.sigmoid(self.quantity_head(hidden)).squeeze(-1)
        return self.action_head(hidden), log_quantity, self.value_head(self.critic(flat)).squeeze(-1)


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    gain = float(np.sqrt(2))
    return nn.Sequential(_linear(inputs, hidden, gain), nn.Tanh(), _linear(hidden, hidden, gain), nn.Tanh())


def _linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def log_policy(logits: Tensor, position: Tensor) -> Tensor:
    """Log-probabilities [B, 5] over the actions that are legal in `position` [B]."""
    return torch.log_softmax(logits.masked_fill(~_LEGAL[position + 1], ILLEGAL_LOGIT), dim=1)


_LEGAL = torch.from_numpy(legal_actions(np.array([-1, 0, 1])))


@dataclass(frozen=True)
class Decisions:
    """What the agent does in B rows."""

    action: NDArray[np.int64]
    quantity: NDArray[np.float64]  # units
    segments: NDArray[np.int64]  # always 1: a PPO thinks once


class PpoAgent:
    """A trained PPO behind the seed's agent interface."""

    def __init__(self, network: PpoNetwork, schema: ObservationSchema, quantity_max: float) -> None:
        self.network, self.schema, self.quantity_max = network.eval(), schema, quantity_max
        self.invalid_observations = 0

    @torch.no_grad()
    def select_action(self, observation: Observation) -> tuple[int, float]:
        """Greedy legal action and quantity in units; (HOLD, 1.0) for a non-finite observation."""
        if not (np.isfinite(observation.bars).all() and np.isfinite(observation.account).all()):
            self.invalid_observations += 1
            return int(SAFE_DECISION[0]), SAFE_DECISION[1]
        logits, log_quantity, _ = self.network(
            torch.from_numpy(observation.bars[None]), torch.from_numpy(observation.account[None])
        )
        logits = logits[0].masked_fill(~_LEGAL[observation.position + 1], ILLEGAL_LOGIT)
        return int(logits.argmax()), float(log_quantity[0].exp().clamp(1.0, self.quantity_max))

    @torch.no_grad()
    def decide_batch(self, bars: Floats, account: Floats, complexity: Floats, position: NDArray[np.int64]) -> Decisions:
        """Greedy legal decisions for B finite rows: bars [B, W, F], account [B, A], position [B]."""
        logits, log_quantity, _ = self.network(torch.from_numpy(bars), torch.from_numpy(account))
        action = log_policy(logits, torch.from_numpy(position)).argmax(dim=1)
        quantity = log_quantity.exp().clamp(1.0, self.quantity_max).double()
        return Decisions(action.numpy(), quantity.numpy(), np.ones(len(position), dtype=np.int64))


@dataclass(frozen=True)
class Rollout:
    """E*T samples, flattened; all tensors [E*T, ...]."""

    bars: Tensor
    account: Tensor
    position: Tensor
    log_quantity: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor


Progress = Callable[[int, int, float], None]  # samples done, samples in all, mean reward in bps per step
Validate = Callable[[PpoAgent], float]  # of held-out sessions, lower is better


def train(
    env: VectorEnv,
    schema: ObservationSchema,
    settings: Settings,
    *,
    seed: int,
    progress: Progress | None = None,
    validate: Validate | None = None,
    budget_s: float | None = None,
) -> PpoAgent:
    """Train from scratch for `total_timesteps` samples. The same seed and thread count give the same agent.

    With `budget_s` the training takes that many seconds instead, its schedules stretched over them.
    With `validate`, the weights that did best at VALIDATIONS moments since all costs are charged are kept, as an HRM's
    are; without, the last.
    """
    torch.manual_seed(seed)
    hyper = settings.training_params.ppo
    quantity_max = settings.trading.max_quantity
    network = PpoNetwork(schema, hyper.hidden_dim, quantity_max)
    optimizer = torch.optim.Adam(network.parameters(), lr=hyper.learning_rate, eps=1e-5)
    updates = max(1, hyper.total_timesteps // (hyper.n_envs * hyper.n_steps))
    reported, best = 0.0, _Best(validate, PpoAgent(network, schema, quantity_max))
    look_at = [1.0 - (1.0 - hyper.cost_warmup_ratio) * left / VALIDATIONS for left in range(VALIDATIONS)]
    started, update, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = hyper.learning_rate * (1.0 - done)
        waived = max(0.0, 1.0 - done / hyper.cost_warmup_ratio) if hyper.cost_warmup_ratio else 0.0
        rollout, mean_reward = _collect(network, env, hyper, waived)
        _update(network, optimizer, rollout, hyper)
        update += 1
        done = update / updates if budget_s is None else (time.monotonic() - started) / budget_s
        if done >= look_at[-1]:
            look_at = [share for share in look_at if share > done]
            best.look()
        if progress and (time.monotonic() - reported > REPORT_S or done >= 1.0):
            reported = time.monotonic()
            samples = update * hyper.n_envs * hyper.n_steps
            progress(samples, max(samples, round(samples / done)), mean_reward)
    return best.agent()


class _Best:
    """The weights with the lowest validation so far."""

    def __init__(self, validate: Validate | None, agent: PpoAgent) -> None:
        self._validate, self._agent = validate, agent
        self._lowest = float("inf")
        self._weights: dict[str, Tensor] = {}

    def look(self) -> None:
        if self._validate is None:
            return
        found = self._validate(self._agent)
        if found < self._lowest:
            self._lowest, self._weights = found, copy.deepcopy(self._agent.network.state_dict())

    def agent(self) -> PpoAgent:
        if self._weights:
            self._agent.network.load_state_dict(self._weights)
        return self._agent


@torch.no_grad()
def _collect(network: PpoNetwork, env: VectorEnv, hyper: PpoTraining, waived: float) -> tuple[Rollout, float]:
    """One rollout of T = n_steps in every environment, with advantages; a share `waived` of the costs is forgiven."""
    steps: list[tuple[Tensor, ...]] = []
    rewards: list[Tensor] = []
    dones: list[Tensor] = []
    values: list[Tensor] = []
    for _ in range(hyper.n_steps):
        bars, account, position, log_quantity = (torch.from_numpy(array) for array in env.observe())
        logits, _, value = network(bars, account)
        log_probs = log_policy(logits, position)
        action = torch.multinomial(log_probs.exp(), 1).squeeze(1)
        reward, cost, done = env.step(action.numpy())
        reward = reward + waived * cost
        steps.append((bars, account, position, log_quantity, action, _taken(log_probs, action)))
        values.append(value)
        rewards.append(torch.from_numpy(reward.astype(np.float32)))
        dones.append(torch.from_numpy(done))
    last_bars, last_account, *_ = env.observe()
    values.append(network(torch.from_numpy(last_bars), torch.from_numpy(last_account))[2])
    advantage = _advantages(torch.stack(rewards) * REWARD_SCALE, torch.stack(values), torch.stack(dones), hyper)
    target = advantage + torch.stack(values[:-1])
    bars, account, position, log_quantity, action, log_prob = (torch.cat(c) for c in zip(*steps, strict=True))
    rollout = Rollout(bars, account, position, log_quantity, action, log_prob, advantage.flatten(), target.flatten())
    return rollout, float(torch.stack(rewards).mean())


def _advantages(rewards: Tensor, values: Tensor, dones: Tensor, hyper: PpoTraining) -> Tensor:
    """[T, E] from rewards, dones [T, E] and values [T + 1, E]."""
    arrays = (rewards.numpy(), values.numpy(), dones.numpy())
    return torch.from_numpy(gae(*arrays, gamma=hyper.gamma, gae_lambda=hyper.gae_lambda))


def _update(network: PpoNetwork, optimizer: torch.optim.Optimizer, rollout: Rollout, hyper: PpoTraining) -> None:
    for _ in range(hyper.n_epochs):
        for rows in torch.split(torch.randperm(len(rollout.action)), hyper.batch_size):
            loss = _loss(network, rollout, rows, hyper)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), hyper.max_grad_norm)
            optimizer.step()


def _loss(network: PpoNetwork, rollout: Rollout, rows: Tensor, hyper: PpoTraining) -> Tensor:
    logits, log_quantity, value = network(rollout.bars[rows], rollout.account[rows])
    log_probs = log_policy(logits, rollout.position[rows])
    advantage = rollout.advantage[rows]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    ratio = (_taken(log_probs, rollout.action[rows]) - rollout.log_prob[rows]).exp()
    clipped = ratio.clamp(1.0 - hyper.clip_range, 1.0 + hyper.clip_range)
    surrogate = torch.min(ratio * advantage, clipped * advantage).mean()
    value_loss = 0.5 * (value - rollout.target[rows]).square().mean()
    size_loss = (log_quantity - rollout.log_quantity[rows]).square().mean()
    entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
    total: Tensor = -surrogate + hyper.vf_coef * value_loss - hyper.ent_coef * entropy + QUANTITY_COEF * size_loss
    return total


def _taken(log_probs: Tensor, action: Tensor) -> Tensor:
    return log_probs.gather(1, action[:, None]).squeeze(1)
