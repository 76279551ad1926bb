"""`hrm bench training`: whole training steps per second, and what share of the chip's matrix rate they reach.

A step is the forward pass, the bootstrap pass (with Q-learning halting), the one-step backward, clipping, the
optimiser and the moving average. Beside it, in the same run, the same step written plainly in eager torch.
Under torchrun every process trains `batch` rows and the rates are of all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.machine import described
from benchmarks.plain import PlainStep
from core.observation import ObservationSchema
from core.settings import Architecture, Settings
from hrm.batch import Batch, MarketSampler, MarketTable
from hrm.distributed import training_device
from hrm.layers import inner_width
from hrm.losses import Imitation
from hrm.model import FIXED_TOKENS, HierarchicalReasoningModel
from hrm.trainer import DeepSupervisionTrainer

PATCH, BAR_FEATURES, ACCOUNT_FEATURES, BARS = 4, 6, 14, 20_000
MATRIX = 8192  # side of the square product that stands for the chip's sustained matrix rate
COST_BPS = 1.5
LONG = 100_000  # optimiser steps: a training that is worth compiling
STEPS = {"cuda": 30, "cpu": 6}  # in one timed stretch

Step = Callable[[Batch], object]


def run(
    settings: Settings, *, tokens: int, batch: int, algorithm: str, runs: int = 5, total_steps: int = LONG
) -> dict[str, Any]:
    """Median rates over `runs` stretches, ours and the plain step's in turn. `algorithm`: published | single_head."""
    device = training_device()
    settings = with_algorithm(settings, algorithm)
    sampler = random_sampler(tokens, device)
    trainer = make_trainer(settings, tokens, device, total_steps)
    plain = PlainStep(make_model(settings, tokens), settings, device)
    ready = sampler.batch(batch)
    seconds: dict[str, list[float]] = {"ours": [], "waiting": [], "plain": []}
    for _ in range(runs + 1):  # the first stretch compiles
        seconds["ours"].append(stretch(trainer.train_step, lambda: sampler.batch(batch), device))
        seconds["waiting"].append(seconds["ours"][-1] - stretch(trainer.train_step, lambda: ready, device))
        seconds["plain"].append(stretch(plain.train_step, lambda: sampler.batch(batch), device))
    median = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    rows_per_s = trainer.world.size * batch / median["ours"]
    flop, matmul = rows_per_s * flop_per_row(settings, tokens), trainer.world.size * matmul_flop_per_s(device)
    return described(runs) | {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "processes": trainer.world.size,
        "preset": settings.preset,
        "algorithm": algorithm,
        "batch": batch,
        "tokens": tokens,
        "rows_per_s": rows_per_s,
        "tflops": flop / 1e12,
        "matmul_tflops": matmul / 1e12,
        "fraction_of_matmul": flop / matmul,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "data_wait_ratio": max(0.0, median["waiting"] / median["ours"]),
        "eager_rows_per_s": trainer.world.size * batch / median["plain"],
        "ratio_vs_eager": median["plain"] / median["ours"],
    }


def stretch(step: Step, next_batch: Callable[[], Batch], device: torch.device) -> float:
    """Seconds per step over one stretch."""
    steps = STEPS[device.type]
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step(next_batch())
    _synchronize(device)
    return (time.perf_counter() - started) / steps


def flop_per_row(settings: Settings, tokens: int) -> float:
    """Multiplications and additions of one row in one step: matrix products and attention of every block pass.

    A pass without gradient counts once, one with gradient three times.
    """
    model = settings.hierarchical_reasoning_model
    architecture, cycles, steps = model.architecture, model.hierarchical.N_cycles, model.hierarchical.T_timesteps
    low = architecture.l_layers * _block_flop(architecture, architecture.l_module_dim, tokens)
    high = architecture.h_layers * _block_flop(architecture, architecture.h_module_dim, tokens)
    forward = cycles * steps * low + cycles * high
    bootstrap = forward if model.act.halting == "q_learning" else 0.0
    differentiated = {
        "one_step": low + high,
        "last_cycle": steps * low + high,
        "full_bptt": forward,
    }[settings.deep_supervision.gradient_approximation]
    return forward + bootstrap + 2 * differentiated


def _block_flop(architecture: Architecture, width: int, tokens: int) -> float:
    weights = 4 * width * width + 3 * width * inner_width(width, architecture.expansion)
    return tokens * (2 * weights + 4 * tokens * width)


def matmul_flop_per_s(device: torch.device) -> float:
    """The rate of a large square product in the dtype that training computes in, median of 10."""
    side, dtype = (MATRIX, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(13):
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(a, b)
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(times[3:])


def with_algorithm(settings: Settings, algorithm: str) -> Settings:
    """`published`: Q-learning halting with its bootstrap pass; `single_head`: none. One-step gradient, AdamW."""
    model = settings.hierarchical_reasoning_model
    act = model.act.model_copy(update={"halting": "q_learning" if algorithm == "published" else "single_head"})
    supervision = settings.deep_supervision.model_copy(update={"gradient_approximation": "one_step"})
    hrm = settings.training_params.hrm.model_copy(update={"optimizer": "adamw"})
    return settings.model_copy(
        update={
            "hierarchical_reasoning_model": model.model_copy(update={"act": act}),
            "deep_supervision": supervision,
            "training_params": settings.training_params.model_copy(update={"hrm": hrm}),
        }
    )


def schema_of(tokens: int) -> ObservationSchema:
    """An observation that makes this many tokens."""
    return ObservationSchema(
        window=PATCH * (tokens - FIXED_TOKENS),
        patch=PATCH,
        bar_features=tuple(f"bar_{i}" for i in range(BAR_FEATURES)),
        account_features=tuple(f"account_{i}" for i in range(ACCOUNT_FEATURES)),
    )


def make_model(settings: Settings, tokens: int) -> HierarchicalReasoningModel:
    return HierarchicalReasoningModel(settings.hierarchical_reasoning_model, schema_of(tokens), 1e5)


def make_trainer(
    settings: Settings, tokens: int, device: torch.device, total_steps: int = LONG
) -> DeepSupervisionTrainer[HierarchicalReasoningModel]:
    objective = Imitation(cost_bps=COST_BPS, label_temperature=0.3, reward_shaping=True)
    return DeepSupervisionTrainer(
        make_model(settings, tokens), settings, objective, total_steps=total_steps, device=device
    )


def random_sampler(tokens: int, device: torch.device) -> MarketSampler:
    """Noise in the shape of a market: the speed of a step does not depend on what it learns."""
    random, window = np.random.default_rng(0), schema_of(tokens).window
    table = MarketTable(
        bar_features=random.standard_normal((BARS, BAR_FEATURES), dtype=np.float32),
        decision_bars=np.arange(window, BARS),
        account=random.standard_normal((BARS, 3, ACCOUNT_FEATURES), dtype=np.float32),
        complexity=random.random(BARS, dtype=np.float32),
        q_values=random.standard_normal((BARS, 3, 3), dtype=np.float32),
        log_quantity=random.random(BARS, dtype=np.float32),
    )
    return MarketSampler(table, window, seed=0, device=device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
