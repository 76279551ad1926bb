"""The tests of all folds as one record: what each contender would have earned, and how much of it may be luck.

Intervals are over the pooled test sessions. A Sharpe ratio is deflated by the trials of all contenders and by those on
record of earlier trainings on the same bars. No Prefect here: `hrm bench learning --data` pools its folds likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from baselines import rules
from core.settings import EvaluationSettings
from trading.bootstrap import best_of_many, mean_interval
from trading.comparison import Record, compare
from trading.dataset import Dataset
from trading.evaluation import evaluate
from trading.features import Floats
from trading.market import session_days
from trading.observations import Policy
from trading.significance import Trials, deflated_sharpe

RULES: dict[str, Policy] = {"buy_and_hold": rules.buy_and_hold, "hold": rules.hold}
KEPT = ("sharpe", "max_drawdown_bps", "break_even_cost_multiple", "return_bps_by_cost_multiple")


class Played(BaseModel):
    """One contender on the test sessions of one fold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    days: tuple[date, ...]
    return_bps: tuple[float, ...] = Field(description="by session, after costs, per unit of direction")
    turnover: tuple[int, ...] = Field(description="by session")
    cost_bps: float = Field(description="per unit of turnover")
    flat_ratio: float = Field(description="of the decisions after which nothing was held")
    trials: int = Field(default=0, description="sets of weights that were judged to choose this one")


Walk = Mapping[str, Sequence[Played]]  # by contender, in the order of the folds


def on_test(policy: Policy, data: Dataset, trials: int = 0) -> Played:
    """A policy on every test session of a fold."""
    found = evaluate(policy, data.test, data.schema, data.cost_bps)
    return Played(
        days=tuple(session_days(data.test)),
        return_bps=tuple(found.return_bps.tolist()),
        turnover=tuple(found.turnover.tolist()),
        cost_bps=data.cost_bps,
        flat_ratio=found.flat_ratio,
        trials=trials,
    )


def pooled(
    walk: Walk, tried: Trials, limits: EvaluationSettings, overfitting: Mapping[str, float | None] | None = None
) -> dict[str, Any]:
    """The numbers of every contender, and the HRM for the PPO where both walked, as JSON values.

    `overfitting`: of a contender's choice among its weights, where it was measured. Raises DataError if the folds are
    not in the order of time, or hold too few sessions for an interval.
    """
    chosen = overfitting or {}
    records = {name: _record(name, folds) for name, folds in walk.items()}
    answer: dict[str, Any] = {"folds": len(walk["hold"]), "test_sessions": len(records["hold"].sessions)}
    answer |= {"trials_on_record": tried.count, "trials_complete": tried.complete}
    for name, folds in walk.items():
        answer[name] = _numbers(folds) | _judged(records[name], tried) | {"overfitting_probability": chosen.get(name)}
    answer["best_of_all_p_value"] = _best_of(records)
    if {"hrm", "ppo"} <= walk.keys():
        answer["hrm_minus_ppo"] = _return_pct(return_bps(walk["hrm"]) - return_bps(walk["ppo"]))
        answer["hrm_for_ppo"] = compare(
            records["ppo"], records["hrm"], limits, trials=tried, overfitting_probability=chosen.get("hrm")
        ).to_dict()
    return answer


def return_bps(folds: Sequence[Played]) -> Floats:
    """Of the pooled test sessions, after costs [S]."""
    return np.concatenate([np.array(fold.return_bps) for fold in folds])


def _record(name: str, folds: Sequence[Played]) -> Record:
    """The pooled test sessions of one contender, per unit of direction."""
    net_bps = return_bps(folds)
    cost_bps = np.concatenate([np.array(fold.turnover) * fold.cost_bps for fold in folds])
    return Record(name, tuple(day for fold in folds for day in fold.days), net_bps + cost_bps, cost_bps)


def _judged(record: Record, tried: Trials) -> dict[str, Any]:
    summary = record.summary()
    return {key: summary[key] for key in KEPT} | {"deflated_sharpe": deflated_sharpe(record.net_bps, tried)}


def _best_of(records: Mapping[str, Record]) -> float:
    """p-value of "none of those that were trained earns more than staying flat"."""
    trained = [record.net_bps for name, record in records.items() if name not in RULES]
    return best_of_many(records["hold"].net_bps, np.stack(trained, axis=1))


def _numbers(folds: Sequence[Played]) -> dict[str, Any]:
    return {
        **_return_pct(return_bps(folds)),
        "return_pct_by_fold": [sum(fold.return_bps) / 100 for fold in folds],
        "turnover_per_day": float(np.concatenate([fold.turnover for fold in folds]).mean()),
        "hold_ratio": float(np.average([fold.flat_ratio for fold in folds], weights=[len(f.days) for f in folds])),
        "trials": sum(fold.trials for fold in folds),
    }


def _return_pct(per_session: Floats) -> dict[str, float]:
    """Sum of session returns in percent of the position, with the interval of its mean."""
    found, percent = mean_interval(per_session), len(per_session) / 100
    values = {"return_pct": found.value, "ci95_low": found.ci95_low, "ci95_high": found.ci95_high}
    return {name: value * percent for name, value in values.items()}
