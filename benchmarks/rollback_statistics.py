"""The statistics of a rollback: how often one is wrong, how soon one is right, and which losses mean nothing.

false_aborts   of months in which nothing is wrong (benchmarks/rollback_aborts.py)
detection      of a fault, in samples and seconds, beside what theory promises (benchmarks/rollback_detection.py)
losses         limits that a healthy challenger keeps in 99 of 100 months: smaller ones abort for nothing
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.rollback_aborts import false_aborts
from benchmarks.rollback_detection import FAULTS, RATES_PER_S, WORSE_BPS, detection
from benchmarks.rollback_month import BARS, WORLDS, Floats, Month, World, month
from benchmarks.serving_goals import Goal
from core.settings import Settings
from delivery.losses import BPS_PER_PCT

SEED = 22
OF_MONEY = (*WORSE_BPS, "drawdown_2_pct")  # found by outcomes, whatever the rate of requests
DETECTED = (*FAULTS, *OF_MONEY)
GOALS = (
    Goal("statistics.false_aborts.all.ci95_high", most=0.01),
    *(Goal(f"statistics.false_aborts.{world.name}.ci95_low", most=0.01) for world in WORLDS),  # of each not refuted
    *(Goal(f"statistics.detection.{fault}.{rate}.late_ratio", most=0.05) for fault in FAULTS for rate in RATES_PER_S),
    *(Goal(f"statistics.detection.{fault}.market.late_ratio", most=0.05) for fault in OF_MONEY),
)


def statistics(settings: Settings, *, months: int, trials: int) -> dict[str, Any]:
    """`months` of all worlds together, `trials` of each fault at each rate."""
    return {
        "false_aborts": false_aborts(settings, months),
        "detection": detection(settings, trials),
        "losses": {world.name: healthy_losses(world, months) for world in WORLDS},
    }


def healthy_losses(world: World, months: int) -> dict[str, dict[str, float]]:
    """By the names of delivery.plan.Limits, percent of the capital; `symbol` is the worst of all."""
    seen = [_worst_bps(month(world, np.random.default_rng([SEED, run]))) for run in range(months)]
    kept = np.quantile(np.array(seen), 0.99, axis=0) / BPS_PER_PCT
    names = ("max_drawdown_pct", "max_daily_loss_pct")
    return {arm: dict(zip(names, row, strict=True)) for arm, row in zip(("symbol", "book"), kept.tolist(), strict=True)}


def _worst_bps(seen: Month) -> list[tuple[float, float]]:
    """Of a symbol and of the book: the largest drawdown since the start, the largest loss since a session's start."""
    own = seen.outcomes_bps[1]
    return [worst_losses_bps(own), worst_losses_bps(own.mean(axis=1, keepdims=True))]


def worst_losses_bps(outcomes_bps: Floats) -> tuple[float, float]:
    """Of outcomes [T, K] the worst of K."""
    equity = np.cumsum(outcomes_bps, axis=0)
    drawdown = np.maximum(np.maximum.accumulate(equity, axis=0), 0.0) - equity
    of_the_day = np.cumsum(outcomes_bps.reshape(-1, BARS, outcomes_bps.shape[1]), axis=1)
    return float(drawdown.max()), float(max(0.0, -of_the_day.min()))
