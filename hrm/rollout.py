"""What an agent did in an environment, and how it turned out: what PPO learns from.

The policy samples among the three legal actions; an action is kept with its log-probability, the segments it took (all
start from the model's fixed initial carry) and, once the rollout has ended, its advantage and return. It samples at
TEMPERATURE: what decides in use is the greedy answer, and what learns must do nearly the same. At 1 a stage A policy,
taught softmax(Q / tau), loses more by sampling than it has left to learn (docs/experiments.md).
GAMMA is 1: a session ends, what counts is its return, and stage A taught the critic just that, in bps.

Shapes: E environments in lock-step, T steps of one rollout, N = T * E decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.actions import ACTION_OF, legal_actions
from core.advantages import gae
from core.errors import DataError
from core.observation import Observation
from core.settings import PpoTraining
from hrm.act import AdaptiveComputationTime
from hrm.losses import target_logits
from hrm.model import HierarchicalReasoningModel
from hrm.thinking import think

GAMMA = 1.0
TEMPERATURE = 0.25


class VectorEnv(Protocol):
    """E rows, one episode each, replaced when they end."""

    @property
    def complexity(self) -> NDArray[np.float32]:
        """Market complexity [E] of what `observe` shows."""
        ...

    def observe(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """(bars [E, W, F], account [E, A], position [E], log quantity target [E])."""
        ...

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """(reward after costs in bps [E], the costs in it [E], terminated [E])."""
        ...


@dataclass(frozen=True, eq=False)
class Transition:
    """One decision that was taken, and how it turned out."""

    observation: Observation
    action: int  # core.actions.Action
    segments: int  # thought before it, from the initial carry
    log_prob: float  # of the action, among the legal ones
    advantage_bps: float
    return_bps: float  # what the value should have been


class Rollout(NamedTuple):
    """N decisions as tensors."""

    bars: Tensor  # [N, W, F]
    account: Tensor  # [N, A]
    position: Tensor  # int64 [N]
    action: Tensor  # int64 [N]
    segments: Tensor  # int64 [N]
    log_prob: Tensor  # [N]
    advantage_bps: Tensor  # [N]
    return_bps: Tensor  # [N]

    def at(self, rows: Tensor) -> Rollout:
        """The rows of an index or a mask."""
        return Rollout(*(tensor[rows] for tensor in self))


def log_policy(action_logits: Tensor, position: Tensor) -> Tensor:
    """Log-probabilities [B, 3] of the legal actions, by target position -1, 0, +1; no other action has any."""
    return (target_logits(action_logits, position, _ACTIONS.to(position.device)) / TEMPERATURE).log_softmax(-1)


def log_prob_of(action: Tensor, log_probs: Tensor, position: Tensor) -> Tensor:
    """Log-probability [B] of actions [B], which must be legal in their positions."""
    taken = _ACTIONS.to(position.device)[position + 1] == action[:, None]
    return log_probs[taken]


_ACTIONS = torch.as_tensor(ACTION_OF)


@torch.no_grad()
def collect(
    env: VectorEnv, model: HierarchicalReasoningModel, hyper: PpoTraining, generator: torch.Generator
) -> Rollout:
    """Play `n_steps` in every environment with sampled actions; advantages by GAE. Draws from `generator`."""
    act, device = AdaptiveComputationTime(model.settings), generator.device
    steps: list[tuple[Tensor, ...]] = []
    values, rewards, ends = [], [], []
    for _ in range(hyper.n_steps):
        bars, account, complexity, position = _observed(env, device)
        thought = think(model, act, (bars, account), complexity)
        log_probs = log_policy(thought.action_logits, position)
        target = torch.multinomial(log_probs.exp(), 1, generator=generator)
        action = _ACTIONS.to(device)[position + 1].gather(1, target).squeeze(1)
        reward, _, ended = env.step(action.cpu().numpy())
        steps.append((bars, account, position, action, thought.segments, log_probs.gather(1, target).squeeze(1)))
        values.append(thought.value.cpu().numpy())
        rewards.append(reward.astype(np.float32))
        ends.append(ended)
    bars, account, complexity, _ = _observed(env, device)
    values.append(think(model, act, (bars, account), complexity).value.cpu().numpy())
    value = np.stack(values)
    advantage = gae(np.stack(rewards), value, np.stack(ends), gamma=GAMMA, gae_lambda=hyper.gae_lambda)
    outcome = [torch.from_numpy(array.reshape(-1)).to(device) for array in (advantage, advantage + value[:-1])]
    return Rollout(*(torch.cat(column) for column in zip(*steps, strict=True)), *outcome)


def _observed(env: VectorEnv, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bars, account, position, _ = env.observe()
    return (
        _tensor(bars, np.float32, device),
        _tensor(account, np.float32, device),
        _tensor(env.complexity, np.float32, device),
        _tensor(position, np.int64, device),
    )


def rollout_of(transitions: Sequence[Transition], device: torch.device) -> Rollout:
    """Transitions as tensors."""
    seen = [one.observation for one in transitions]
    floats = {
        "bars": [one.bars for one in seen],
        "account": [one.account for one in seen],
        **{name: [getattr(one, name) for one in transitions] for name in ("log_prob", "advantage_bps", "return_bps")},
    }
    integers = {
        "position": [one.position for one in seen],
        **{name: [getattr(one, name) for one in transitions] for name in ("action", "segments")},
    }
    return Rollout(
        **{name: _tensor(column, np.float32, device) for name, column in floats.items()},
        **{name: _tensor(column, np.int64, device) for name, column in integers.items()},
    )


def require_valid(rollout: Rollout, max_segments: int) -> None:
    """Raises DataError naming what no update may be made from."""
    problems = [f"{name} is not finite" for name, t in rollout._asdict().items() if not t.isfinite().all()]
    position = rollout.position.cpu().numpy()
    if not np.isin(position, (-1, 0, 1)).all():
        problems.append("position must be -1, 0 or +1")
    elif not _are_legal(rollout.action.cpu().numpy(), position):
        problems.append("an action is illegal in its position")
    if not ((rollout.segments >= 1) & (rollout.segments <= max_segments)).all():
        problems.append(f"segments must be in 1..{max_segments}")
    if problems:
        raise DataError(f"experience cannot be learned from: {'; '.join(problems)}; nothing was changed")


def _are_legal(action: NDArray[np.int64], position: NDArray[np.int64]) -> bool:
    legal = legal_actions(position)
    known = (action >= 0) & (action < legal.shape[1])
    return bool(known.all() and legal[np.arange(len(action)), action].all())


def _tensor(values: Any, dtype: type, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype)).to(device)
