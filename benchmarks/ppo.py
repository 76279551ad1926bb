"""Samples per second of the reference PPO beside stable-baselines3's, in one run, on one thread.

Both train two separate tanh networks of 64 and 64 units on the same lock-step market, observations flat, one of three
target positions as the action, and from the same hyper-parameters:

    defaults   stable-baselines3's own: 2,048 samples a rollout (here 64 sessions of 32 steps), minibatches of 64, ten
               epochs. What a minibatch costs beside its arithmetic decides.
    settings   training_params.ppo. Minibatches of thousands: matrix products decide, and both have the same ones.

`ratio` is of the medians; the runs take turns. `out_of_the_box` is stable-baselines3 as it is used by most: one
session at a time behind Gymnasium's interface. Its value loss has no half, so it is given half of vf_coef.

`incumbent` is what such a training is worth: our PPO with its own settings through all its samples, seed 0.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.agent import REWARD_SCALE
from baselines.ppo import Acted, ActorCritic, Arrays, Evaluated, Ppo, Step, Tensors, entropy, sampled, taken
from benchmarks.contenders import train_ppo
from benchmarks.intervals import named
from benchmarks.machine import described
from core.actions import ACTION_OF
from core.errors import ConfigError
from core.settings import PpoTraining, Settings
from trading.dataset import Dataset, build_dataset, random_walk, training_env
from trading.env import EndlessEnv
from trading.evaluation import evaluate, score_interval

RUNS = 5
HIDDEN_DIM = 64
TARGETS = 3
DEFAULTS = {"n_envs": 64, "n_steps": 32, "batch_size": 64, "n_epochs": 10, "ent_coef": 0.0}
OUT_OF_THE_BOX = {"n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10, "ent_coef": 0.0}
SAMPLES = 8_192  # of a run, at least
SESSIONS = 300  # of the market: speed does not depend on what there is to learn

Work = Callable[[], float]  # trains a little; samples per second


class CategoricalPolicy(nn.Module):
    """K actions, all of them always legal. Observation: x [B, D]. Action: int64 [B]."""

    def __init__(self, inputs: int, hidden_dim: int, actions: int, *, seed: int = 0) -> None:
        super().__init__()
        self.body = ActorCritic(inputs, hidden_dim, actions, seed=seed)

    def act(self, observation: Tensors, generator: torch.Generator) -> Acted:
        logits, value = self.body(observation[0])
        log_probs = torch.log_softmax(logits, dim=1)
        action = sampled(log_probs, generator)
        return Acted(action, taken(log_probs, action), value)

    def evaluate(self, observation: Tensors, action: Tensor) -> Evaluated:
        logits, value = self.body(observation[0])
        log_probs = torch.log_softmax(logits, dim=1)
        return Evaluated(taken(log_probs, action), entropy(log_probs), value)

    def value(self, observation: Tensors) -> Tensor:
        value: Tensor = self.body(observation[0])[1]
        return value


class Targets:
    """The endless market as a task: x [E, W * F + A] is seen, a target position chosen by its index."""

    def __init__(self, env: EndlessEnv) -> None:
        self.env = env
        self._position: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def observe(self) -> Arrays:
        bars, account, self._position, _ = self.env.observe()
        return (np.concatenate([bars.reshape(len(bars), -1), account], axis=1),)

    def step(self, action: NDArray[np.int64]) -> Step:
        reward_bps, _, terminated = self.env.step(ACTION_OF[self._position + 1, action])
        return Step(REWARD_SCALE * reward_bps, terminated, np.zeros_like(terminated))


def run(settings: Settings, *, runs: int = RUNS) -> dict[str, Any]:
    """The answer of `hrm bench ppo`. Raises ConfigError if stable-baselines3 is not installed."""
    try:
        from benchmarks import sb3
    except ModuleNotFoundError:
        raise ConfigError(
            "stable-baselines3 is what our PPO is measured against; install it with: pip install 'hrm-trading[dev]'",
            code="missing_extra",
        ) from None
    torch.set_num_threads(1)
    data, hyper = _market(settings), settings.training_params.ppo.model_copy(update={"hidden_dim": HIDDEN_DIM})
    works: dict[str, Work] = {}
    for name, hyper_of_name in {"defaults": hyper.model_copy(update=DEFAULTS), "settings": hyper}.items():
        works[name] = ours(_env(data, settings, hyper_of_name), hyper_of_name)
        works[f"sb3_{name}"] = sb3.trainer(_env(data, settings, hyper_of_name), hyper_of_name, samples=SAMPLES)
    box = hyper.model_copy(update=OUT_OF_THE_BOX)
    works["out_of_the_box"] = sb3.trainer(_env(data, settings, box), box, samples=box.n_steps)
    rates = _in_turns(works, runs)
    found = {name: _compared(rates[name], rates[f"sb3_{name}"]) for name in ("defaults", "settings")}
    box_rate = statistics.median(rates["out_of_the_box"])
    found["incumbent"] = incumbent(settings)
    answer = described(runs) | {
        "ratio": found["defaults"]["ratio"],
        **found,
        "sb3_out_of_the_box_samples_per_s": box_rate,
    }
    answer |= {"times_out_of_the_box": found["settings"]["samples_per_s"] / box_rate, "threads": 1}
    return answer | flat(found)


def flat(found: dict[str, Any]) -> dict[str, float]:
    """The rates and their ratio at stable-baselines3's defaults; `score` of the incumbent, 1 is the optimum."""
    defaults = found["defaults"]
    rates = {name: defaults[name] for name in ("samples_per_s", "sb3_samples_per_s")}
    return rates | {"ratio_vs_sb3": defaults["ratio"], "score": found["incumbent"]["score"]}


def incumbent(settings: Settings, seed: int = 0) -> dict[str, float]:
    """Trained as its settings say: share of the synthetic market's optimum on test sessions, its interval, seconds."""
    data = build_dataset(settings, None, seed)
    trained = train_ppo(data, settings, budget_s=None, seed=seed)
    found = evaluate(trained.policy, data.test, data.schema, data.cost_bps)
    return named("score", score_interval(found)) | {name: trained.facts[name] for name in ("train_s", "rows")}


def ours(env: Targets, hyper: PpoTraining) -> Work:
    policy = CategoricalPolicy(env.observe()[0].shape[1], hyper.hidden_dim, TARGETS)
    ppo = Ppo(policy, hyper, seed=0)
    iterations = -(-SAMPLES // (hyper.n_envs * hyper.n_steps))

    def work() -> float:
        started = time.process_time()
        for _ in range(iterations):
            ppo.iterate(env, done=0.0)
        return iterations * hyper.n_envs * hyper.n_steps / (time.process_time() - started)

    return work


def _market(settings: Settings) -> Dataset:
    law = {"train_sessions": SESSIONS, "validation_sessions": 1, "test_sessions": 1}
    market = settings.synthetic_market.model_copy(update=law)
    return random_walk(settings.model_copy(update={"synthetic_market": market}), seed=0)


def _env(data: Dataset, settings: Settings, hyper: PpoTraining) -> Targets:
    params = settings.training_params.model_copy(update={"ppo": hyper})
    return Targets(training_env(data, settings.model_copy(update={"training_params": params}), seed=0))


def _in_turns(works: dict[str, Work], runs: int) -> dict[str, list[float]]:
    """Samples per second of every run; the first of each is not counted, and what disturbs one disturbs all."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(runs + 1):
        for name, work in works.items():
            rate = work()
            if number:
                rates[name].append(rate)
    return rates


def _compared(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Medians and their ratio; `ratios` are of the runs that stood beside each other."""
    return {
        "samples_per_s": statistics.median(ours),
        "sb3_samples_per_s": statistics.median(theirs),
        "ratio": statistics.median(ours) / statistics.median(theirs),
        "ratios": [mine / its for mine, its in zip(ours, theirs, strict=True)],
    }
