"""The incumbent: a PPO (baselines/ppo.py) that trades, behind the seed's agent interface, and how it is trained.

Costs are waived at first and ramp up over `cost_warmup_ratio` of the training: under full costs a random policy learns
to stop trading before it learns when to trade. Direction is learned from reward. Size is regressed on a
volatility-scaled target (the same for every model), so a comparison of two agents is a comparison of their decisions,
not of their leverage.

Shapes: E environments in lock-step, B rows; W bars, F bar features, A account features.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.ppo import Arrays, Ppo, PpoNetwork, Step, TaughtSize, log_policy
from core.actions import SAFE_DECISION, legal_actions
from core.observation import Observation, ObservationSchema
from core.settings import Settings

Floats = NDArray[np.float32]
REWARD_SCALE = 0.1  # rewards are in bps: a few tenths after scaling
REPORT_S = 1.0
LOOKS = 5  # at held-out sessions while costs ramp up, and as many afterwards: the HRM's training has as many


class VectorEnv(Protocol):
    """What the agent trades in: E rows, one episode each, replaced when they end."""

    def observe(self) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
        """(bars [E, W, F], account [E, A], position [E], log quantity target [E])."""
        ...

    def step(self, action: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """(reward after costs in bps [E], the costs in it [E], terminated [E])."""
        ...


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

    def select_action(self, observation: Observation) -> tuple[int, float]:
        """Greedy legal action and quantity in units; (HOLD, 1.0) for a non-finite observation."""
        if not (np.isfinite(observation.bars).all() and np.isfinite(observation.account).all()):
            self.invalid_observations += 1
            return int(SAFE_DECISION[0]), SAFE_DECISION[1]
        complexity, position = np.array([observation.complexity], np.float32), np.array([observation.position])
        decided = self.decide_batch(observation.bars[None], observation.account[None], complexity, position)
        return int(decided.action[0]), float(decided.quantity[0])

    @torch.inference_mode()
    def decide_batch(self, bars: Floats, account: Floats, complexity: Floats, position: NDArray[np.int64]) -> Decisions:
        """Greedy legal decisions for B finite rows: bars [B, W, F], account [B, A], position [B]."""
        device = self.network.body.first.weight.device
        logits, log_quantity, _ = self.network(*(torch.from_numpy(part).to(device) for part in (bars, account)))
        action = log_policy(logits, torch.from_numpy(legal_actions(position)).to(device)).argmax(dim=1)
        quantity = log_quantity.exp().clamp(1.0, self.quantity_max).double()
        return Decisions(action.cpu().numpy(), quantity.cpu().numpy(), np.ones(len(position), dtype=np.int64))


class CostRamp:
    """A trading environment to learn in: of the costs a share `waived` is forgiven, rewards are scaled.

    Observations are (x [E, W * F + A], legal [E, 5], log quantity target [E]).
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env, self.waived = env, 1.0

    def observe(self) -> Arrays:
        bars, account, position, log_quantity = self.env.observe()
        return np.concatenate([bars.reshape(len(bars), -1), account], axis=1), legal_actions(position), log_quantity

    def step(self, action: NDArray[np.int64]) -> Step:
        reward_bps, cost_bps, terminated = self.env.step(action)
        return Step(REWARD_SCALE * (reward_bps + self.waived * cost_bps), terminated, np.zeros_like(terminated))


class Look(NamedTuple):
    """A moment at which the agent is validated."""

    samples: int  # seen so far
    candidate: bool  # all costs are charged: its weights may be the ones that are kept


Progress = Callable[[int, int, float], None]  # samples done, samples in all, mean reward in bps per step
Validate = Callable[[PpoAgent, Look], float]  # of held-out sessions, lower is better


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
    With `validate`, the weights that did best at LOOKS moments since all costs are charged are kept, as an HRM's are;
    without, the last. Raises ModelError if the training diverges.
    """
    hyper, quantity_max = settings.training_params.ppo, settings.trading.max_quantity
    agent = PpoAgent(PpoNetwork(schema, hyper.hidden_dim, quantity_max, seed=seed), schema, quantity_max)
    ppo, ramp = Ppo(TaughtSize(agent.network), hyper, seed=seed), CostRamp(env)
    best = _Best(agent, validate, hyper.cost_warmup_ratio)
    per_update = hyper.n_envs * hyper.n_steps
    updates = max(1, hyper.total_timesteps // per_update)
    started, reported, update, done = time.monotonic(), 0.0, 0, 0.0
    while done < 1.0:
        ramp.waived = max(0.0, 1.0 - done / hyper.cost_warmup_ratio) if hyper.cost_warmup_ratio else 0.0
        mean_reward = ppo.iterate(ramp, done=done)
        update += 1
        done = update / updates if budget_s is None else (time.monotonic() - started) / budget_s
        samples = update * per_update
        best.look(done, samples)
        if progress and (time.monotonic() - reported > REPORT_S or done >= 1.0):
            reported = time.monotonic()
            progress(samples, max(samples, round(samples / done)), mean_reward / REWARD_SCALE)
    best.restore()
    return agent


class _Best:
    """The weights that validated best since all costs are charged."""

    def __init__(self, agent: PpoAgent, validate: Validate | None, warm_up: float) -> None:
        self._agent, self._validate = agent, validate
        ramp = [(warm_up * (number + 0.5) / LOOKS, False) for number in range(LOOKS) if warm_up]
        after = [(1.0 - (1.0 - warm_up) * left / LOOKS, True) for left in range(LOOKS)]
        self._due = sorted(ramp + after)
        self._lowest = float("inf")
        self._weights: dict[str, Tensor] = {}

    def look(self, done: float, samples: int) -> None:
        """Validate if a look is due; several that are due at once are one."""
        due = [candidate for share, candidate in self._due if share <= done]
        self._due = self._due[len(due) :]
        if not due or self._validate is None:
            return
        loss = self._validate(self._agent, Look(samples, due[-1]))
        if due[-1] and loss < self._lowest:
            self._lowest, self._weights = loss, copy.deepcopy(self._agent.network.state_dict())

    def restore(self) -> None:
        if self._weights:
            self._agent.network.load_state_dict(self._weights)
