"""Scores on the synthetic market, by seed: does HRM learn, and more than the PPO, on the same observations?

Score: fraction of the exact optimum on held-out sessions (0 always flat, 1 the oracle), along the agent's own path.
Confidence intervals are over seeds (t distribution), so they include the luck of training.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from baselines import rules
from benchmarks.machine import described
from core.settings import Settings
from flows.train import train_and_publish
from trading.dataset import build_dataset
from trading.evaluation import evaluate


def run(settings: Settings, seeds: int = 3) -> dict[str, Any]:
    results: dict[str, list[dict[str, Any]]] = {"hrm": [], "ppo": []}
    with tempfile.TemporaryDirectory(prefix="hrm-bench-") as folder:
        paths = settings.paths.model_copy(update={"state_dir": Path(folder)})
        settings = settings.model_copy(update={"paths": paths})
        for seed in range(seeds):
            for algorithm, found in results.items():
                found.append(train_and_publish(settings, algorithm, None, seed=seed, version=f"seed-{seed}"))
        data = build_dataset(settings, None, 0)
        hold = evaluate(rules.hold, data.test, data.schema, data.cost_bps)
    answers = {algorithm: _over_seeds(found) for algorithm, found in results.items()}
    better = [h["score"] > p["score"] for h, p in zip(results["hrm"], results["ppo"], strict=True)]
    return (
        described(seeds)
        | {"task": "instrument", "device": "cpu", "preset": settings.preset, "seeds": seeds}
        | answers
        | {"hold": {"score": hold.score}, "hrm_better_with_every_seed": all(better)}
    )


def _over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    scores = np.array([result["score"] for result in found])
    half = float("nan")
    if len(scores) > 1:
        half = float(stats.t.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores)))
    return {
        "score": float(scores.mean()),
        "ci95_low": float(scores.mean()) - half,
        "ci95_high": float(scores.mean()) + half,
        "scores": scores.tolist(),
        "train_s": float(np.median([result["train_s"] for result in found])),
    }
