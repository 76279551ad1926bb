"""Who is compared on one instrument: the HRM, the incumbent PPO and two plain transformers, each given the same time.

All see the same observations of the same sessions and are chosen on the same validation sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from baselines import agent as incumbent
from core.settings import Settings
from flows.progress import report
from flows.training_clock import fit, guessed_steps
from hrm import control
from hrm.batch import MarketSampler, MarketTable
from hrm.decide import decide
from hrm.distributed import training_device
from hrm.losses import Imitation
from hrm.model import HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer
from trading.dataset import Dataset, training_env, training_table
from trading.evaluation import Evaluation, evaluate
from trading.features import Floats
from trading.observations import Policy

VALIDATION_SESSIONS = 100  # enough to rank weights, few enough to leave the time to training
GPU_TRAIN_SESSIONS = 40_000  # in minutes a GPU sees some thousand sessions dozens of times
PPO_THREADS = 4  # small matrices: more threads wait more than they compute

SETTINGS_OF: dict[str, Callable[[Settings], Settings]] = {
    "hrm": lambda settings: settings,
    "transformer": control.same_size,
    "transformer_same_compute": control.same_compute,
}


@dataclass(frozen=True, eq=False)
class Contender:
    """What a training left: how it decides and what it took. `model` is None for the PPO."""

    policy: Policy
    model: HierarchicalReasoningModel | None
    # train_s, and of a model its steps, rows, parameters and validation looks; of the PPO its curve
    facts: dict[str, Any]
    judged: list[Floats]  # returns of the validation sessions in bps, [S] for each set of weights to choose from


def for_device(settings: Settings) -> Settings:
    """The settings with enough training sessions for the device."""
    if training_device().type == "cpu":
        return settings
    law = settings.synthetic_market.model_copy(update={"train_sessions": GPU_TRAIN_SESSIONS})
    return settings.model_copy(update={"synthetic_market": law})


def train(name: str, data: Dataset, settings: Settings, *, budget_s: float, seed: int) -> Contender:
    """Train `hrm`, `ppo`, `transformer` or `transformer_same_compute` for `budget_s` seconds."""
    if name == "ppo":
        return train_ppo(data, settings, budget_s=budget_s, seed=seed)
    return _train_model(name, data, SETTINGS_OF[name](settings), budget_s=budget_s, seed=seed)


def _train_model(name: str, data: Dataset, settings: Settings, *, budget_s: float, seed: int) -> Contender:
    device = training_device()
    torch.set_num_threads(1)
    torch.compiler.reset()  # else torch gives up compiling after eight models
    model = HierarchicalReasoningModel(
        settings.hierarchical_reasoning_model, data.schema, settings.trading.max_quantity, seed=seed
    )
    objective = Imitation(
        cost_bps=data.label_cost_bps,
        label_temperature=data.label_temperature_bps / data.label_cost_bps,
        reward_shaping=settings.hierarchical_reasoning_model.act.reward_shaping,
    )
    trainer = DeepSupervisionTrainer(
        model, settings, objective, total_steps=guessed_steps(budget_s), seed=seed, device=device
    )
    table = MarketTable(**training_table(data, settings))
    sampler = MarketSampler(table, data.schema.window, seed=seed, device=device)
    policy = partial(decide, trainer.ema)
    judged: list[Floats] = []

    def validate() -> float:
        found = _validated(policy, data)
        judged.append(found.return_bps)
        return found.loss_bps

    done = fit(
        trainer,
        sampler.batches(settings.performance.batch_size),
        validate,
        budget_s=budget_s,
        report=lambda ratio, note: report(f"{name}, seed {seed}", ratio, note),
    )
    return Contender(policy, trainer.ema, done.facts(trainer, settings), judged)


def train_ppo(data: Dataset, settings: Settings, *, budget_s: float | None, seed: int) -> Contender:
    """The incumbent after `budget_s` seconds, or after `total_timesteps` samples of its settings if that is None."""
    torch.set_num_threads(PPO_THREADS if training_device().type == "cuda" else 1)
    started = time.monotonic()
    samples, looks, curve = 0, [], []
    judged: list[Floats] = []

    def validate(candidate: incumbent.PpoAgent, look: incumbent.Look) -> float:
        found = _validated(candidate.decide_batch, data)
        curve.append({"samples": look.samples, "loss_bps": found.loss_bps, "score": found.score})
        if look.candidate:
            looks.append(found.loss_bps)
            judged.append(found.return_bps)
        return found.loss_bps

    def watch(done: int, total: int, reward_bps: float) -> None:
        nonlocal samples
        samples = done
        report(f"ppo, seed {seed}", done / total, f"{reward_bps:+.2f} bps a step")

    agent = incumbent.train(
        training_env(data, settings, seed),
        data.schema,
        settings,
        seed=seed,
        progress=watch,
        validate=validate,
        budget_s=budget_s,
    )
    facts = {"train_s": time.monotonic() - started, "rows": samples, "looks": looks, "curve": curve}
    return Contender(agent.decide_batch, None, facts, judged)


def _validated(policy: Policy, data: Dataset) -> Evaluation:
    sessions = data.validation.sessions[:VALIDATION_SESSIONS]
    return evaluate(policy, data.validation, data.schema, data.cost_bps, sessions)
