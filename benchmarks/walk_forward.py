"""Real bars: expanding folds, each trained on the past, chosen on what follows and tested on what follows that.

Between the parts of a fold lies an embargo (trading/splits.py). The tests of all folds together are the second half of
the file, judged once, all costs on, and pooled as `hrm walk-forward` pools them (flows/walk_forward_pooled.py). Here
every contender is given the same time, one after the other; there the ordinary trainings run beside each other.
`trials`: how many sets of weights were judged on validation sessions to choose those tested; they are on record after
this, too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import train
from core.settings import Settings
from flows.tracking import DATASET_TAG, LOOK, Description, tracked, trials
from flows.walk_forward_pooled import RULES, Played, on_test, pooled
from trading.bootstrap import sharpe
from trading.dataset import Dataset, walk_forward
from trading.features import Floats
from trading.significance import BLOCKS, Trials, overfitting_probability

CONTENDERS = ("hrm", "ppo")
FOLDS = 4

Judged = list[list[Floats]]  # by fold, by set of weights: returns of the validation sessions


def run(settings: Settings, names: tuple[str, ...], *, budget_s: float, data: Path) -> dict[str, Any]:
    """The answer of `hrm bench learning --data FILE` for the contenders `names`. Raises DataError."""
    played: dict[str, list[Played]] = {name: [] for name in (*names, *RULES)}
    judged: dict[str, Judged] = {name: [] for name in names}
    folds = walk_forward(settings, data, FOLDS)
    for fold, markets in enumerate(folds):
        for name in names:
            contender = train(name, markets, settings, budget_s=budget_s, seed=fold)
            judged[name].append(contender.judged)
            played[name].append(on_test(contender.policy, markets, trials=len(contender.judged)))
        for name, policy in RULES.items():
            played[name].append(on_test(policy, markets))
    tried = _on_record(settings, folds[-1], judged)
    overfitting = {name: overfitted(found) for name, found in judged.items()}
    return pooled(played, tried, settings.evaluation, overfitting)


def overfitted(judged: Judged) -> float | None:
    """Mean over the folds of the probability that choosing among a fold's weights was overfitting.

    None where no fold has several sets of weights and sessions enough to tell.
    """
    tables = [np.stack(fold, axis=1) for fold in judged if len(fold) > 1]
    found = [overfitting_probability(table) for table in tables if len(table) >= 2 * BLOCKS]
    return float(np.mean(found)) if found else None


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
