"""Parts of a split follow each other, keep their distance, and cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from trading.splits import combinatorial, walk_forward


@given(sessions=st.integers(40, 400), folds=st.integers(1, 6), embargo=st.integers(0, 5))
def test_folds_expand_test_the_second_half_once_and_keep_the_embargo(sessions: int, folds: int, embargo: int) -> None:
    splits = walk_forward(sessions, folds, validation_ratio=0.2, embargo=embargo)
    assert len(splits) == folds
    tests = np.concatenate([split.test for split in splits])
    assert (np.diff(tests) == 1).all()
    assert tests[-1] == sessions - 1
    assert sessions - sessions // 2 - folds < len(tests) <= sessions - sessions // 2
    assert len({len(split.test) for split in splits}) == 1
    for split in splits:
        assert split.train[0] == 0
        assert split.validation[0] - split.train[-1] == split.test[0] - split.validation[-1] == embargo + 1
        assert (np.diff(np.concatenate([split.train, split.validation])) >= 1).all()
        assert len(split.validation) == int(0.2 * split.test[0])


@pytest.mark.parametrize(
    ("sessions", "folds", "ratio", "embargo"),
    [
        (10, 6, 0.1, 0),  # more folds than test sessions
        (10, 0, 0.1, 0),
        (10, -1, 0.1, 0),
        (0, 1, 0.1, 0),
        (1, 1, 0.1, 0),
        (12, 2, 0.1, 0),  # a tenth of six sessions is none
        (40, 2, 0.1, 20),  # nothing before the embargo
        (40, 2, 0.1, 18),  # nothing left to train on
        (40, 2, 1.0, 2),
    ],
)
def test_a_split_with_an_empty_part_is_refused_with_a_remedy(sessions: int, folds: int, ratio: float, embargo: int):
    with pytest.raises(DataError, match="ask for fewer folds") as refused:
        walk_forward(sessions, folds, validation_ratio=ratio, embargo=embargo)
    assert refused.value.code == "empty_split"


@given(sessions=st.integers(100, 300), embargo=st.integers(0, 5))
def test_every_choice_of_test_folds_is_trained_on_the_rest_but_for_the_embargo(sessions: int, embargo: int) -> None:
    found = combinatorial(sessions, folds=6, test_folds=2, embargo=embargo)
    assert len(found.train) == len(found.test) == 15
    for train, test in zip(found.train, found.test, strict=True):
        assert len(train) > 0
        assert np.abs(train[:, None] - test).min() == embargo + 1
    counted = np.bincount(np.concatenate(found.test), minlength=sessions)
    assert (counted == 5).all()  # of 15 choices of two folds, five contain a given one


def test_paths_are_whole_histories_of_sessions_that_were_not_trained_on() -> None:
    found = combinatorial(120, folds=10, test_folds=2, embargo=3)
    tested = [1000.0 * split + test for split, test in enumerate(found.test)]
    paths = found.paths(tested)
    assert paths.shape == (9, 120)
    np.testing.assert_array_equal(paths % 1000, np.tile(np.arange(120.0), (9, 1)))
    for path in paths:
        for session, split in enumerate((path // 1000).astype(int)):
            assert session not in found.train[split]
    assert len(np.unique(np.concatenate([path // 1000 * 120 + np.arange(120) for path in paths]))) == 9 * 120


@pytest.mark.parametrize(
    ("sessions", "folds", "test_folds", "embargo"),
    [(5, 10, 2, 0), (50, 10, 2, 4), (50, 5, 5, 0), (50, 2, 2, 0), (0, 5, 2, 0), (50, 5, 2, -1)],
)
def test_combinations_without_sessions_to_train_on_are_refused(sessions, folds, test_folds, embargo) -> None:
    with pytest.raises(DataError, match="ask for fewer folds") as refused:
        combinatorial(sessions, folds=folds, test_folds=test_folds, embargo=embargo)
    assert refused.value.code == "empty_split"
