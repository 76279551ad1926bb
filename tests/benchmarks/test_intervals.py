"""Intervals: over seeds where there are several."""

from __future__ import annotations

import pytest

from baselines import rules
from benchmarks.intervals import over_seeds, score_difference
from trading.bootstrap import Interval
from trading.dataset import Dataset
from trading.evaluation import evaluate, score_interval


def test_one_seed_keeps_its_own_interval() -> None:
    own = Interval(0.5, 0.4, 0.6)
    assert over_seeds([own]) == own


def test_the_interval_over_seeds_is_students() -> None:
    found = over_seeds([Interval(value, 0.0, 1.0) for value in (1.0, 2.0, 3.0)])
    assert found.value == pytest.approx(2.0)
    assert found.ci95_high - found.value == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # t(0.975, 2) * std / sqrt(3)
    assert found.value - found.ci95_low == pytest.approx(found.ci95_high - found.value)


def test_a_policy_differs_from_itself_by_nothing(small_data: Dataset) -> None:
    def played(rule: rules.Rule) -> object:
        return evaluate(rule, small_data.test, small_data.schema, small_data.cost_bps)

    long, flat = played(rules.buy_and_hold), played(rules.hold)
    assert score_difference(long, long) == Interval(0.0, 0.0, 0.0)
    difference = score_difference(flat, long)
    assert difference.value == pytest.approx(score_interval(flat).value - score_interval(long).value)
    assert difference.ci95_low < difference.value < difference.ci95_high
