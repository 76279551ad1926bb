"""Real bars: expanding folds, each trained on the past, chosen on what follows and tested on what follows that.

Between the parts of a fold lies an embargo (trading/splits.py). The tests of all folds together are the second half of
the file, judged once, all costs on; intervals are over the pooled test sessions. `trials`: how many sets of weights
were judged on validation sessions to choose those tested; a Sharpe ratio is deflated by those of all contenders and by
those on record of earlier trainings on the same bars, and then these are on record, too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from baselines import rules
from benchmarks.contenders import train
from benchmarks.intervals import named, scaled
from core.settings import Settings
from flows.tracking import DATASET_TAG, LOOK, Description, tracked, trials
from trading.bootstrap import best_of_many, mean_interval, sharpe
from trading.comparison import Record, compare
from trading.dataset import Dataset, walk_forward
from trading.evaluation import Evaluation, advantage, evaluate
from trading.features import Floats
from trading.market import session_days
from trading.observations import Policy
from trading.significance import BLOCKS, Trials, deflated_sharpe, overfitting_probability

CONTENDERS = ("hrm", "ppo")
FOLDS = 4

Judged = list[list[Floats]]  # by fold, by set of weights: returns of the validation sessions


def run(settings: Settings, names: tuple[str, ...], *, budget_s: float, data: Path) -> dict[str, Any]:
    """The answer of `hrm bench learning --data FILE` for the contenders `names`. Raises DataError."""
    played: dict[str, list[Evaluation]] = {name: [] for name in (*names, "buy_and_hold", "hold")}
    judged: dict[str, Judged] = {name: [] for name in played}
    folds = walk_forward(settings, data, FOLDS)
    for fold, markets in enumerate(folds):
        policies: dict[str, Policy] = {"buy_and_hold": rules.buy_and_hold, "hold": rules.hold}
        for name in names:
            contender = train(name, markets, settings, budget_s=budget_s, seed=fold)
            policies[name] = contender.policy
            judged[name].append(contender.judged)
        for name, policy in policies.items():
            played[name].append(_on_test(policy, markets))
    tried = _on_record(settings, folds[-1], judged)
    records = {name: _record(name, found, folds) for name, found in played.items()}
    answer: dict[str, Any] = {"folds": FOLDS, "test_sessions": len(records["hold"].sessions)}
    answer |= {"trials_on_record": tried.count, "trials_complete": tried.complete}
    for name, found in played.items():
        answer[name] = _numbers(found) | {"trials": sum(map(len, judged[name]))} | _judged(records[name], tried)
        answer[name]["overfitting_probability"] = overfitted(judged[name])
    answer["best_of_all_p_value"] = _best_of(records, names)
    if {"hrm", "ppo"} <= set(names):
        pairs = zip(played["hrm"], played["ppo"], strict=True)
        answer["hrm_minus_ppo"] = _return_pct(np.concatenate([advantage(ours, theirs) for ours, theirs in pairs]))
        answer["hrm_for_ppo"] = compare(
            records["ppo"],
            records["hrm"],
            settings.evaluation,
            trials=tried,
            overfitting_probability=answer["hrm"]["overfitting_probability"],
        ).to_dict()
    return answer


def overfitted(judged: Judged) -> float | None:
    """Mean over the folds of the probability that choosing among a fold's weights was overfitting.

    None where no fold has several sets of weights and sessions enough to tell.
    """
    tables = [np.stack(fold, axis=1) for fold in judged if len(fold) > 1]
    found = [overfitting_probability(table) for table in tables if len(table) >= 2 * BLOCKS]
    return float(np.mean(found)) if found else None


def _on_test(policy: Policy, markets: Dataset) -> Evaluation:
    return evaluate(policy, markets.test, markets.schema, markets.cost_bps)


def _record(name: str, found: list[Evaluation], folds: list[Dataset]) -> Record:
    """The pooled test sessions of one contender, per unit of direction."""
    costs = [one.turnover * markets.cost_bps for one, markets in zip(found, folds, strict=True)]
    net_bps, cost_bps = np.concatenate([one.return_bps for one in found]), np.concatenate(costs)
    days = tuple(day for markets in folds for day in session_days(markets.test))
    return Record(name, days, net_bps + cost_bps, cost_bps)


def _on_record(settings: Settings, data: Dataset, judged: dict[str, Judged]) -> Trials:
    """All trials: those the tracking store knows of earlier trainings, and these, which it learns now."""
    earlier = trials(settings.paths.state_dir, data.digest)
    ours = tuple(sharpe(returns) for folds in judged.values() for fold in folds for returns in fold)
    name = f"walk-forward-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder, tags = settings.paths.state_dir.resolve() / "benchmarks" / name, {DATASET_TAG: data.digest}
    with tracked(settings.paths.state_dir, Description(name, folder, {}, tags)) as record:
        for step, ratio in enumerate(ours):
            record(step, {LOOK: ratio})
    return earlier.more(ours)


def _judged(record: Record, tried: Trials) -> dict[str, Any]:
    summary = record.summary()
    kept = ("sharpe", "max_drawdown_bps", "break_even_cost_multiple", "return_bps_by_cost_multiple")
    return {key: summary[key] for key in kept} | {"deflated_sharpe": deflated_sharpe(record.net_bps, tried)}


def _best_of(records: dict[str, Record], names: tuple[str, ...]) -> float:
    """p-value of "none of the contenders earns more than staying flat"."""
    return best_of_many(records["hold"].net_bps, np.stack([records[name].net_bps for name in names], axis=1))


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
