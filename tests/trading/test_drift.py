"""Drift is told from chance at any sample size, and from the memory that market features have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from core.gates import Verdict
from trading.drift import ALPHA, MIN_SAMPLES, drift, effective_size


def ar(rng: np.random.Generator, rows: int, memory: float, shift: float = 0.0) -> np.ndarray:
    noise = rng.standard_normal(rows) * np.sqrt(1 - memory**2)
    values = np.empty(rows)
    values[0] = rng.standard_normal()
    for i in range(1, rows):
        values[i] = memory * values[i - 1] + noise[i]
    return values + shift


@pytest.mark.parametrize(("memory", "rows"), [(0.0, 300), (0.0, 3000), (0.8, 4000)])
def test_where_nothing_changed_hardly_ever_an_alarm(memory: float, rows: int) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(150):
        old, new = (np.column_stack([ar(rng, n, memory) for _ in range(3)]) for n in (8000, rows))
        alarms += any(one.verdict is Verdict.FAIL for one in drift(old, new, ("a", "b", "c")))
    assert alarms / 150 <= ALPHA + 0.03


@pytest.mark.parametrize(("memory", "shift"), [(0.0, 0.5), (0.8, 0.7)])
def test_what_moved_is_found_and_named(memory: float, shift: float) -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(40):
        old = np.column_stack([ar(rng, 20_000, memory), ar(rng, 20_000, memory)])
        new = np.column_stack([ar(rng, 4000, memory), ar(rng, 4000, memory, shift)])
        said = {one.feature: one.verdict for one in drift(old, new, ("still", "moved"))}
        found += said == {"still": Verdict.PASS, "moved": Verdict.FAIL}
    assert found >= 36


def test_a_spread_that_grew_with_the_same_mean_is_drift() -> None:
    rng = np.random.default_rng(2)
    (one,) = drift(rng.normal(size=(5000, 1)), rng.normal(scale=2, size=(2000, 1)), ("a",))
    assert one.verdict is Verdict.FAIL


def test_too_few_say_nothing_however_far_off() -> None:
    rng = np.random.default_rng(3)
    (few,) = drift(rng.normal(size=(5000, 1)), rng.normal(5, size=(MIN_SAMPLES - 50, 1)), ("a",))
    assert few.verdict is Verdict.INCONCLUSIVE and few.psi > few.psi_limit
    (calm_week,) = drift(ar(rng, 50_000, 0.5)[:, None], ar(rng, 750, 0.99, 1.0)[:, None], ("a",))
    assert calm_week.verdict is Verdict.INCONCLUSIVE and calm_week.samples < MIN_SAMPLES


def test_memory_makes_samples_fewer() -> None:
    rng = np.random.default_rng(4)
    assert effective_size(rng.normal(size=10_000)) > 7000
    assert effective_size(ar(rng, 10_000, 0.9)) == pytest.approx(10_000 / 19, rel=0.35)
    assert effective_size(np.ones(100)) == 1.0


@hypothesis_settings(max_examples=40)
@given(st.lists(st.sampled_from([0.0, 1.0, np.nan, np.inf, -1e9, 3.0]), min_size=1, max_size=60))
def test_whatever_comes_the_answer_is_finite(values: list[float]) -> None:
    old = np.random.default_rng(5).integers(0, 4, size=(500, 1)).astype(float)
    for one in drift(old, np.array(values)[:, None], ("a",)):
        assert np.isfinite([one.psi, one.psi_limit, one.ks, one.ks_p]).all()
        assert one.verdict is Verdict.INCONCLUSIVE  # fewer than it takes


def test_a_constant_is_left_out() -> None:
    rng = np.random.default_rng(6)
    old = np.column_stack([np.zeros(1000), rng.normal(size=1000)])
    assert [one.feature for one in drift(old, old, ("constant", "a"))] == ["a"]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ("moves", "stands still", Verdict.FAIL),  # the feed is stuck
        ("moves", "vanishes", Verdict.FAIL),
        ("stands still", "moves", Verdict.FAIL),
        ("stands still", "stands elsewhere", Verdict.FAIL),
        ("mostly stands still", "stands still", Verdict.INCONCLUSIVE),  # as it mostly did
    ],
)
def test_what_stands_still_on_one_side_only_is_drift_whatever_the_sample_says(
    old: str, new: str, verdict: Verdict
) -> None:
    rows = 2 * MIN_SAMPLES
    rng = np.random.default_rng(7)
    columns = {
        "moves": rng.normal(size=rows),
        "stands still": np.zeros(rows),
        "stands elsewhere": np.ones(rows),
        "vanishes": np.full(rows, np.nan),
        "mostly stands still": rng.normal(size=rows) * (rng.random(rows) < 0.3),
    }
    (one,) = drift(columns[old][:, None], columns[new][:, None], ("a",))
    assert one.verdict is verdict
    assert np.isfinite([one.psi, one.psi_limit, one.ks, one.ks_p]).all()
    (few,) = drift(columns[old][:, None], columns[new][: MIN_SAMPLES // 2, None], ("a",))
    assert few.verdict is Verdict.INCONCLUSIVE
