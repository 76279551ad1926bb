"""One instrument, the synthetic market: shares of the exact optimum on held-out sessions after the same time each.

Score: 0 always flat, 1 the oracle that remembers everything; by regret along the agent's own path, not by noisy P&L.
`window_ceiling` is the oracle that knows the last `window` bars only. Our observations also carry information
coefficients from before the window, so a model may come out above it. Every seed is a market and a training of its
own; intervals are over seeds, for a single seed over sessions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from baselines import rules
from benchmarks.contenders import Contender, for_device, train
from benchmarks.depth import score_by_segments
from benchmarks.intervals import named, over_seeds, score_difference
from core.settings import Settings
from flows.training_clock import over_trainings
from hrm.distributed import training_device
from trading.dataset import Dataset, build_dataset, window_values
from trading.evaluation import Evaluation, best_targets, evaluate, evaluate_targets, score_interval

CONTENDERS = ("hrm", "ppo", "transformer", "transformer_same_compute")
CPU_DEPTH_SESSIONS = 150  # of the test sessions, for the curve over segments


@dataclass(frozen=True, eq=False)
class Seed:
    """What one seed found."""

    data_s: float
    window_ceiling: float
    hold: Evaluation
    played: dict[str, Evaluation]
    trained: dict[str, Contender]
    by_segments: list[float]


def run(settings: Settings, names: tuple[str, ...], *, budget_s: float, seeds: int) -> dict[str, Any]:
    """The answer of `hrm bench learning --task instrument` for the contenders `names`."""
    settings = for_device(settings)
    found = [_one_seed(settings, names, budget_s=budget_s, seed=seed) for seed in range(seeds)]
    ceiling = fmean(seed.window_ceiling for seed in found)
    answer: dict[str, Any] = {"window_ceiling": ceiling, "data_s": median(seed.data_s for seed in found)}
    answer |= {name: _of_contender(name, found) for name in names}
    answer["hold"] = named("score", over_seeds([score_interval(seed.hold) for seed in found]))
    answer["infeasible_ratio"] = None
    if "hrm" in names:
        answer |= _of_hrm(found) | {"share_of_ceiling": answer["hrm"]["score"] / ceiling}
    if {"hrm", "ppo"} <= set(names):
        differences = [score_difference(seed.played["hrm"], seed.played["ppo"]) for seed in found]
        by_seed = [named("score", interval) for interval in differences]
        answer["hrm_minus_ppo"] = named("score", over_seeds(differences)) | {"by_seed": by_seed}
        answer["hrm_better_with_every_seed"] = all(interval.value > 0 for interval in differences)
    return answer


def _one_seed(settings: Settings, names: tuple[str, ...], *, budget_s: float, seed: int) -> Seed:
    started = time.monotonic()
    data = build_dataset(settings, None, seed)
    data_s = time.monotonic() - started
    trained = {name: train(name, data, settings, budget_s=budget_s, seed=seed) for name in names}
    limited = best_targets(window_values(settings, seed), data.cost_bps)
    return Seed(
        data_s=data_s,
        window_ceiling=_score(evaluate_targets(limited, data.test, data.schema, data.cost_bps)),
        hold=evaluate(rules.hold, data.test, data.schema, data.cost_bps),
        played={n: evaluate(c.policy, data.test, data.schema, data.cost_bps) for n, c in trained.items()},
        trained=trained,
        by_segments=_by_segments(trained, data),
    )


def _by_segments(trained: dict[str, Contender], data: Dataset) -> list[float]:
    model = trained["hrm"].model if "hrm" in trained else None
    if model is None:
        return []
    on_gpu = training_device().type == "cuda"
    return score_by_segments(model, data, len(data.test.sessions) if on_gpu else CPU_DEPTH_SESSIONS)


def _of_contender(name: str, found: list[Seed]) -> dict[str, Any]:
    played = [seed.played[name] for seed in found]
    facts = [seed.trained[name].facts for seed in found]
    return {
        **named("score", over_seeds([score_interval(one) for one in played])),
        "scores": [_score(one) for one in played],
        **over_trainings(facts),
    }


def _of_hrm(found: list[Seed]) -> dict[str, Any]:
    """Depth: forced, and as the model chooses it."""
    played = [seed.played["hrm"] for seed in found]
    return {
        "score_by_segments": [fmean(depth) for depth in zip(*(seed.by_segments for seed in found), strict=True)],
        "act_score": fmean(_score(one) for one in played),
        "act_mean_segments": fmean(one.mean_segments for one in played),
        "hold_ratio": fmean(one.flat_ratio for one in played),
    }


def _score(evaluation: Evaluation) -> float:
    assert evaluation.score is not None  # noqa: S101 - the synthetic market knows its optimum
    return evaluation.score
