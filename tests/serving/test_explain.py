"""Explanations of models whose truth is known: what matters is found, what is ignored has no effect."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from explained import A, F, W, counting, linear, record_of, schema_of
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import settings_in

from core.actions import Action
from core.errors import DataError, ModelError
from core.settings import Settings
from serving.engine import Engine
from serving.explain import Explanation, explain, log_odds
from serving.occlusion import MOST_GROUPS, groups
from serving.record_format import Record

NO_BARS, NO_ACCOUNT = np.zeros((W, F, 5), np.float32), np.zeros((A, 5), np.float32)
WAYS = np.array([1.0, -1.0, 0.0, 0.0, 0.5], np.float32)  # that an input may speak for


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def of_account(settings: Settings) -> Engine:
    kernel = NO_ACCOUNT.copy()
    kernel[1] = WAYS
    return linear(settings, NO_BARS, kernel, "account/v1")


@pytest.fixture(scope="module")
def of_both(settings: Settings) -> Engine:
    rng = np.random.default_rng(3)
    kernels = (rng.normal(size=shape).astype(np.float32) for shape in ((W, F, 5), (A, 5)))
    return linear(settings, *kernels, "both/v1")


@pytest.fixture(scope="module")
def deep(settings: Settings) -> Engine:
    return counting(settings)


def told_of(engine: Engine, record: Record) -> Explanation:
    return explain(record, lambda _: engine)


@pytest.mark.parametrize(("bar", "feature"), [(0, 0), (3, 1)])
def test_of_a_model_that_sees_one_bar_only_that_bar_and_feature_have_an_effect(
    settings: Settings, bar: int, feature: int
) -> None:
    kernel = NO_BARS.copy()
    kernel[bar, feature] = WAYS
    engine = linear(settings, kernel, NO_ACCOUNT, f"bar{bar}/v1")
    told = told_of(engine, record_of(engine))
    cells = np.abs(told.cells)
    assert cells[bar, feature] > 1e-3
    assert cells.sum() == cells[bar, feature]
    assert [effect.log_odds != 0 for effect in told.bars] == [place == bar for place in range(len(told.bars))]
    assert [effect.log_odds for effect in told.account] == [0.0] * A
    assert told.checks.bars_sum == pytest.approx(told.checks.bars_together)


def test_of_a_model_that_sees_one_account_feature_only_that_one_has_an_effect(of_account: Engine) -> None:
    told = told_of(of_account, record_of(of_account))
    assert told.account[1].log_odds > 0.0  # without it all logits are 0: it spoke for what was chosen
    assert told.account[0].log_odds == 0.0
    assert not np.any(told.cells)
    assert told.checks.correlation_with_shuffled_bars is None
    assert told.account[1].log_odds == pytest.approx(told.log_odds - float(np.log(0.5)))  # a third each


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), position=st.integers(-1, 1), first=st.floats(0.1, 8.0))
def test_an_input_that_a_model_ignores_has_no_effect_on_its_belief(
    deep: Engine, seed: int, position: int, first: float
) -> None:
    """Its account tells only how deep it thinks, and every row thinks as deep as the decision did."""
    told = told_of(deep, record_of(deep, seed, first=first, position=position))
    assert [effect.log_odds for effect in told.account] == [0.0] * A
    assert not any(effect.flips for effect in told.account)
    assert np.any(told.cells)


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), position=st.integers(-1, 1))
def test_every_effect_is_what_the_engine_says_when_it_is_asked_so(of_both: Engine, seed: int, position: int) -> None:
    record = record_of(of_both, seed, position=position)
    told = told_of(of_both, record)
    bars, account = record.arrays["bars"].copy(), record.arrays["account"].copy()
    bars[1, 1] = bars[:, 1].mean(dtype=np.float64)
    changed = of_both.decide(bars[None], account[None], np.array([0.2]), np.array([position]))
    belief = log_odds(changed.probabilities, Action[told.action])[0]
    assert told.cells[1][1] == pytest.approx(told.log_odds - belief, abs=1e-6)
    account[0] = 0.0
    changed = of_both.decide(record.arrays["bars"][None], account[None], np.array([0.2]), np.array([position]))
    assert told.account[0].action == Action(int(changed.action[0])).name
    assert told.account[0].flips == (told.account[0].action != told.action)


def test_the_trajectory_is_the_decision_segment_by_segment(deep: Engine) -> None:
    record = record_of(deep, first=3.4)  # halts after four
    told = told_of(deep, record)
    assert [each.segment for each in told.trajectory] == [1, 2, 3, 4]
    assert [each.halted for each in told.trajectory] == [False, False, False, True]
    assert [each.q_halt for each in told.trajectory] == pytest.approx([-2.4, -1.4, -0.4, 0.6], abs=1e-6)
    assert {each.q_continue for each in told.trajectory} == {0.5}
    assert told.trajectory[0].state_change_ratio is None
    assert [each.state_change_ratio for each in told.trajectory[1:]] == pytest.approx([1.0, 1 / 2, 1 / 3])
    assert tuple(told.trajectory[-1].probabilities.values()) == record.facts.answer.probabilities
    assert [depth.segments for depth in told.depth] == [4, 4, 4]


def test_a_single_pass_has_no_halting_values_and_no_depth(of_both: Engine) -> None:
    told = told_of(of_both, record_of(of_both))
    (only,) = told.trajectory
    assert (only.q_halt, only.q_continue, only.state_change_ratio, told.depth) == (None, None, None, [])


def test_the_same_decision_is_explained_the_same(of_both: Engine) -> None:
    record = record_of(of_both)
    assert asdict(told_of(of_both, record)) == asdict(told_of(of_both, record))


def test_log_odds_are_finite_however_sure_a_model_is() -> None:
    sure = np.array([[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
    assert np.isfinite(log_odds(sure, 0)).all()
    assert log_odds(sure, 0)[0] == -log_odds(sure, 0)[1] > 0


def changed(record: Record, **of_answer: object) -> Record:
    facts = record.facts
    return Record(facts.model_copy(update={"answer": facts.answer.model_copy(update=of_answer)}), record.arrays)


@pytest.mark.parametrize(
    ("of_answer", "code"),
    [
        ({"onnx_sha256": "0" * 64}, "other_bytes"),
        ({"quantity": 7.0}, "differs"),
        ({"model": None}, "no_model_decided"),
    ],
)
def test_what_does_not_replay_the_same_is_not_explained(
    of_both: Engine, of_answer: dict[str, object], code: str
) -> None:
    with pytest.raises((ModelError, DataError)) as refused:
        told_of(of_both, changed(record_of(of_both), **of_answer))
    assert refused.value.code == code


def test_a_shadow_is_explained_on_its_own_account_and_by_its_own_model(deep: Engine, of_both: Engine) -> None:
    record, other = record_of(of_both, 1), record_of(deep, 1, first=2.4)
    facts = record.facts.model_copy(update={"shadow": other.facts.answer})
    both = Record(facts, dict(record.arrays) | {"shadow_account": other.arrays["account"]})
    engines = {each.id: each for each in (deep, of_both)}
    assert explain(both, engines.__getitem__, arm="shadow").segments == 3
    assert explain(both, engines.__getitem__).model == "both/v1"
    with pytest.raises(DataError, match="no shadow"):
        explain(record, engines.__getitem__, arm="shadow")


def test_it_gives_up_when_its_time_is_over(deep: Engine) -> None:
    with pytest.raises(ModelError, match="too long"):
        explain(record_of(deep, first=2.0), lambda _: deep, until=0.0)


@hypothesis_settings(max_examples=50, deadline=None)
@given(patch=st.integers(1, 4), base=st.integers(1, 200), coarse=st.lists(st.integers(1, 60), max_size=2))
def test_groups_cover_the_window_once_and_span_no_two_timeframes(patch: int, base: int, coarse: list[int]) -> None:
    timeframes = [{"name": name, "bars": n * patch} for name, n in zip(("day", "60min"), coarse, strict=False)]
    window = max(2, base * patch) + sum(coarse) * patch
    base = window - sum(coarse) * patch
    if base % patch:
        return
    found = groups(schema_of(window=window, patch=patch, timeframes=timeframes))
    assert [row for group in found for row in range(group.start, group.stop)] == list(range(window))
    assert len(found) <= MOST_GROUPS
    assert len({group.name for group in found}) == len(found)
    assert all(len({_block(row, coarse, patch) for row in (group.start, group.stop - 1)}) == 1 for group in found)
    assert found[-1].name.endswith(" -1")


def _block(row: int, coarse: list[int], patch: int) -> int:
    return int(np.searchsorted(np.cumsum(coarse) * patch, row, side="right"))
