"""Parts of a split follow each other, keep their distance, and cover what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from trading.splits import walk_forward


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
