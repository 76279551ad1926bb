import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from core.actions import ACTION_OF, LEGAL, TARGET_OF, Action, legal_actions
from core.gates import Limit, Verdict, judge
from core.halting import HaltingRule, minimum_segments, should_halt


def test_each_position_has_three_legal_actions_one_for_each_target() -> None:
    for position in (-1, 0, 1):
        assert LEGAL[position + 1].sum() == 3
        for target in (-1, 0, 1):
            assert TARGET_OF[position + 1, ACTION_OF[position + 1, target + 1]] == target


def test_what_is_not_held_cannot_be_closed() -> None:
    assert not legal_actions(0)[[Action.CLOSE_LONG, Action.CLOSE_SHORT]].any()
    assert not legal_actions(1)[Action.CLOSE_SHORT]
    assert not legal_actions(-1)[Action.CLOSE_LONG]
    assert legal_actions(np.array([-1, 0, 1]))[:, Action.HOLD].all()


AT_MOST = Limit(metric="p99_ms", max=50, why="fast enough")
AT_LEAST = Limit(metric="gain", min=0, why="worth it")


@pytest.mark.parametrize(
    ("metrics", "verdict"),
    [
        ({"p99_ms": 50.0, "gain": 0.0}, Verdict.PASS),
        ({"p99_ms": 50.1, "gain": 0.0}, Verdict.FAIL),
        ({"p99_ms": 1.0}, Verdict.INCONCLUSIVE),
        ({"p99_ms": 1.0, "gain": None}, Verdict.INCONCLUSIVE),
        ({"p99_ms": 1.0, "gain": math.nan}, Verdict.INCONCLUSIVE),
        ({"p99_ms": 99.0, "gain": math.nan}, Verdict.FAIL),
        ({}, Verdict.INCONCLUSIVE),
    ],
)
def test_a_gate_passes_only_on_data_within_every_limit(metrics, verdict) -> None:
    assert judge(metrics, [AT_MOST, AT_LEAST]).verdict is verdict


def test_an_empty_gate_is_no_pass() -> None:
    assert judge({"p99_ms": 1.0}, []).verdict is Verdict.INCONCLUSIVE


def test_the_reason_names_the_metric_the_value_and_the_limit() -> None:
    reason = judge({"p99_ms": 51.0, "gain": 1.0}, [AT_MOST, AT_LEAST]).reason
    assert "p99_ms" in reason
    assert "51" in reason
    assert "<= 50" in reason
    assert "fast enough" in reason


def test_a_strict_bound_is_not_met_by_what_equals_it() -> None:
    strict = Limit(metric="gain", above=0, why="two models that never trade have shown nothing")
    assert judge({"gain": 0.0}, [strict]).verdict is Verdict.FAIL
    assert judge({"gain": 1e-9}, [strict]).verdict is Verdict.PASS
    assert judge({}, [strict]).verdict is Verdict.INCONCLUSIVE


def test_a_limit_must_bound_something() -> None:
    with pytest.raises(ValidationError, match="min, a max or an above"):
        Limit(metric="x", why="nothing")


RULE = HaltingRule(max_segments=8, min_segments=1, complexity_threshold=0.5)


def test_the_minimum_follows_the_seeds_complexity_rule() -> None:
    complexity = np.array([0.0, 0.4, 0.41, 0.7, 0.71, 1.0])
    assert minimum_segments(complexity, RULE).tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize(("least", "minimum"), [(1, [1, 2, 3]), (2, [2, 2, 3]), (3, [3, 3, 3]), (5, [5, 5, 5])])
def test_the_minimum_is_the_larger_of_the_settings_and_what_complexity_asks_for(kind, least, minimum) -> None:
    rule = RULE.model_copy(update={"min_segments": least})
    bound = minimum_segments(kind([0.1, 0.5, 0.9]), rule)
    assert bound.tolist() == minimum
    assert bound.dtype in (np.int64, torch.int64)
    assert (
        minimum_segments(kind([0.1, 0.5, 0.9]), rule.model_copy(update={"max_segments": least})).tolist() == [least] * 3
    )


def test_the_minimum_never_exceeds_the_maximum() -> None:
    shallow = RULE.model_copy(update={"max_segments": 2})
    assert minimum_segments(np.array([0.1, 0.5, 0.9]), shallow).tolist() == [1, 2, 2]


@given(
    segment=st.integers(1, 10),
    q_halt=st.floats(-5, 5),
    q_continue=st.floats(-5, 5),
    complexity=st.floats(0, 1),
)
def test_torch_and_numpy_halt_alike(segment: int, q_halt: float, q_continue: float, complexity: float) -> None:
    ours = should_halt(
        segment, np.array([q_halt]), np.array([q_continue]), minimum_segments(np.array([complexity]), RULE), RULE
    )
    theirs = should_halt(
        segment,
        torch.tensor([q_halt], dtype=torch.float64),
        torch.tensor([q_continue], dtype=torch.float64),
        minimum_segments(torch.tensor([complexity], dtype=torch.float64), RULE),
        RULE,
    )
    assert bool(ours[0]) == bool(theirs[0])


def test_a_single_head_halts_on_its_own_sign() -> None:
    rule = RULE.model_copy(update={"halting": "single_head"})
    q = np.array([-0.1, 0.1])
    assert should_halt(1, q, np.array([9.0, 9.0]), np.array([1, 1]), rule).tolist() == [False, True]
