"""Splits of sessions in time order for training, choosing and testing (skfolio's splitters), purged and embargoed.

Purging: a training label must not see a test session. Labels look LABEL_HORIZON bars ahead and never past their
session's end (trading/dataset.py), so parts made of whole sessions need none: the purge is 0 sessions.

Embargo: an observation remembers bars behind it, its window and the features' warm-up. Right after a part, training
rows would still contain the test's bars (or test rows the training's, whose outcome the model has learned), so that
many sessions between two parts belong to neither. What is older has faded from all but the slowest averages.

Positions of S sessions in time order, int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skfolio.model_selection import WalkForward

from core.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of the sessions of each part, ascending and apart from each other by the embargo."""

    train: Ints
    validation: Ints
    test: Ints


def walk_forward(sessions: int, folds: int, *, validation_ratio: float, embargo: int) -> list[Split]:
    """Expanding folds whose tests, of equal length and side by side, are the second half of the sessions.

    Of what precedes a test, the last `validation_ratio` is for choosing and the rest for training; `embargo` sessions
    before the validation and before the test belong to neither. Raises DataError if a part would be empty.
    """
    tested = (sessions - sessions // 2) // folds if folds > 0 else 0
    first = sessions - tested * folds - embargo  # sessions before the first test and its embargo
    if tested < 1 or first < 1:
        raise _empty(f"{sessions} sessions in {folds} folds with an embargo of {embargo}")
    splitter = WalkForward(test_size=tested, train_size=first, purged_size=embargo, expand_train=True)
    parts = [(past, test) for past, test in splitter.split(np.zeros((sessions, 1)))]
    return [
        _with_validation(past, test, int(validation_ratio * (len(past) + embargo)), embargo) for past, test in parts
    ]


def _with_validation(past: Ints, test: Ints, length: int, embargo: int) -> Split:
    start = len(past) - length
    split = Split(past[: max(0, start - embargo)], past[start:], test)
    if 0 in (len(split.train), length):
        raise _empty(f"{len(past)} sessions before a test, {length} of them for validation, embargo {embargo}")
    return split


def _empty(what: str) -> DataError:
    return DataError(
        f"{what}: a part of the split would be empty; ask for fewer folds, a shorter evaluation.embargo_sessions, or "
        f"bring more history",
        code="empty_split",
    )
