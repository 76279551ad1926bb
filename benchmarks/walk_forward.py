"""Real bars: expanding folds, each trained on the past, chosen on what follows and tested on what follows that.

The tests of all folds together are the second half of the file, judged once, all costs on; intervals are over the
pooled test sessions. `trials`: how many sets of weights were judged on validation sessions to choose those tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from baselines import rules
from benchmarks.contenders import train
from benchmarks.intervals import named, scaled
from core.settings import Settings
from trading.bootstrap import mean_interval
from trading.dataset import Dataset, walk_forward
from trading.evaluation import Evaluation, advantage, evaluate
from trading.observations import Policy

CONTENDERS = ("hrm", "ppo")
FOLDS = 4


def run(settings: Settings, names: tuple[str, ...], *, budget_s: float, data: Path) -> dict[str, Any]:
    """The answer of `hrm bench learning --data FILE` for the contenders `names`. Raises DataError."""
    played: dict[str, list[Evaluation]] = {name: [] for name in (*names, "buy_and_hold", "hold")}
    trials = dict.fromkeys(played, 0)
    for fold, markets in enumerate(walk_forward(settings, data, FOLDS)):
        policies: dict[str, Policy] = {"buy_and_hold": rules.buy_and_hold, "hold": rules.hold}
        for name in names:
            contender = train(name, markets, settings, budget_s=budget_s, seed=fold)
            policies[name] = contender.policy
            trials[name] += len(contender.facts["looks"])
        for name, policy in policies.items():
            played[name].append(_on_test(policy, markets))
    answer: dict[str, Any] = {"folds": FOLDS, "test_sessions": sum(len(one.sessions) for one in played["hold"])}
    answer |= {name: _numbers(found) | {"trials": trials[name]} for name, found in played.items()}
    if {"hrm", "ppo"} <= set(names):
        pairs = zip(played["hrm"], played["ppo"], strict=True)
        answer["hrm_minus_ppo"] = _return_pct(np.concatenate([advantage(ours, theirs) for ours, theirs in pairs]))
    return answer


def _on_test(policy: Policy, markets: Dataset) -> Evaluation:
    return evaluate(policy, markets.test, markets.schema, markets.cost_bps)


def _numbers(found: list[Evaluation]) -> dict[str, Any]:
    return {
        **_return_pct(np.concatenate([one.return_bps for one in found])),
        "return_pct_by_fold": [float(one.return_bps.sum()) / 100 for one in found],
        "turnover_per_day": float(np.concatenate([one.turnover for one in found]).mean()),
        "hold_ratio": float(
            np.average([one.flat_ratio for one in found], weights=[len(one.sessions) for one in found])
        ),
    }


def _return_pct(return_bps: np.ndarray) -> dict[str, float]:
    """Sum of session returns in percent of the position, with the interval of its mean."""
    return named("return_pct", scaled(mean_interval(return_bps), len(return_bps) / 100))
