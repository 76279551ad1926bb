"""A random walk with costs: nothing is to be earned, and the right thing to learn is to stay flat.

The synthetic market without its predictable return, its signal still shown; labels are what became of each plan, as a
file's are, so no oracle says that there is nothing. `hold_ratio`: share of the decisions after which nothing is held.
Every seed is a market and a training of its own; intervals as for `instrument`.
"""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from baselines import rules
from benchmarks.contenders import for_device, train
from benchmarks.intervals import named, over_seeds
from core.settings import Settings
from trading.bootstrap import mean_interval
from trading.dataset import random_walk
from trading.evaluation import Evaluation, evaluate
from trading.observations import Policy

CONTENDERS = ("hrm", "ppo")


def run(settings: Settings, names: tuple[str, ...], *, budget_s: float, seeds: int) -> dict[str, Any]:
    """The answer of `hrm bench learning --task random_walk` for the contenders `names`."""
    settings = for_device(settings)
    played: dict[str, list[Evaluation]] = {name: [] for name in (*names, "buy_and_hold", "hold")}
    facts: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(seeds):
        data = random_walk(settings, seed)
        policies: dict[str, Policy] = {"buy_and_hold": rules.buy_and_hold, "hold": rules.hold}
        for name in names:
            contender = train(name, data, settings, budget_s=budget_s, seed=seed)
            policies[name] = contender.policy
            facts[name].append(contender.facts)
        for name, policy in policies.items():
            played[name].append(evaluate(policy, data.test, data.schema, data.cost_bps))
    answer: dict[str, Any] = {name: _numbers(found) for name, found in played.items()}
    for name in names:
        answer[name] |= {key: median(fact[key] for fact in facts[name]) for key in ("train_s", "rows")}
    if "hrm" in names:
        answer["hold_ratio"] = answer["hrm"]["hold_ratio"]
    return answer


def _numbers(found: list[Evaluation]) -> dict[str, Any]:
    interval = over_seeds([mean_interval(one.return_bps) for one in found])
    return {
        **named("return_bps_per_day", interval),
        "turnover_per_day": fmean(float(one.turnover.mean()) for one in found),
        "hold_ratio": fmean(one.flat_ratio for one in found),
    }
