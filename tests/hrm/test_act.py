"""Halting: one rule for torch and numpy, the seed's interface, and what training adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hrm_planted import HRM, settings
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from core.halting import minimum_segments, should_halt
from hrm.act import AdaptiveComputationTime

SEED = {f"{HRM}ACT__MAX_SEGMENTS": "8", f"{HRM}ACT__HALTING": "q_learning"}
logits = st.floats(-8, 8, width=32)


def act(environ: dict[str, str] | None = None, max_segments: int | None = None) -> AdaptiveComputationTime:
    hrm = settings(SEED | (environ or {})).hierarchical_reasoning_model
    return AdaptiveComputationTime(hrm, max_segments=max_segments)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("complexity", "minimum"), [(0.0, 1), (0.4, 1), (0.41, 2), (0.7, 2), (0.71, 3), (1.0, 3)])
def test_the_minimum_grows_with_complexity_as_in_the_seed(complexity: float, minimum: int) -> None:
    assert act().compute_dynamic_min(complexity) == minimum


def test_the_minimum_never_exceeds_the_maximum() -> None:
    assert act({f"{HRM}ACT__MAX_SEGMENTS": "2"}).compute_dynamic_min(1.0) == 2


def test_the_three_reasons_are_the_seeds() -> None:
    rule = act()
    assert rule.should_halt((-9.0, 9.0), 8, 0.0) == (True, "max_segments_reached")
    assert rule.should_halt((1.0, 0.0), 1, 0.0) == (True, "q_learning_decision")
    assert rule.should_halt((1.0, 0.0), 1, 0.9) == (False, "continue_reasoning")
    assert rule.should_halt((0.0, 1.0), 5, 0.0) == (False, "continue_reasoning")


@pytest.mark.parametrize("halting", ["q_learning", "single_head"])
@examples(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(logits, logits, st.floats(0, 1, width=32)), min_size=1, max_size=20),
    segment=st.integers(1, 9),
)
def test_torch_numpy_and_one_row_at_a_time_agree(
    halting: str, rows: list[tuple[float, float, float]], segment: int
) -> None:
    rule = act({f"{HRM}ACT__HALTING": halting})
    q_halt, q_continue, complexity = np.array(rows, dtype=np.float32).T
    by_numpy = should_halt(segment, q_halt, q_continue, minimum_segments(complexity, rule.rule), rule.rule)
    by_torch = rule.halted(segment, *(torch.tensor(column) for column in (q_halt, q_continue, complexity)))
    one_by_one = [
        rule.should_halt((float(h), float(c)), segment, float(m))[0]
        for h, c, m in zip(q_halt, q_continue, complexity, strict=True)
    ]
    assert by_torch.tolist() == by_numpy.tolist() == one_by_one


def test_training_stops_at_its_own_maximum() -> None:
    rule = act(max_segments=4)
    never = torch.full((4,), -9.0)
    halted = rule.training_halts(torch.tensor([1, 3, 4, 5]), never, -never, torch.tensor(0))
    assert halted.tolist() == [False, False, True, True]


def test_without_exploration_the_q_values_alone_decide() -> None:
    rule = act({f"{HRM}ACT__EXPLORATION": "0.0"})
    drawn = rule.exploration_minimum(2, generator())
    halted = rule.training_halts(torch.tensor([1, 1]), torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.0]), drawn)
    assert halted.tolist() == [True, False]


def test_exploration_keeps_some_rows_thinking_for_a_uniform_minimum() -> None:
    rule, rows = act({f"{HRM}ACT__EXPLORATION": "0.5"}), 40_000
    eager = torch.ones(rows)

    def kept_ratio(steps: int) -> float:
        halted = rule.training_halts(
            torch.full((rows,), steps), eager, -eager, rule.exploration_minimum(rows, generator())
        )
        return 1 - halted.float().mean().item()

    for steps in (1, 2, 5, 8):  # a minimum uniform in 2..8 keeps a row at `steps` in (8 - steps) / 7 of the cases
        assert kept_ratio(steps) == pytest.approx(0.5 * min(1.0, (8 - steps) / 7), abs=0.015)


def test_disabled_act_thinks_the_full_training_depth() -> None:
    rule = act({f"{HRM}ACT__ENABLED": "false"}, max_segments=3)
    eager = torch.ones(3)
    assert rule.training_halts(torch.tensor([1, 2, 3]), eager, -eager, torch.tensor(0)).tolist() == [
        False,
        False,
        True,
    ]
    assert not rule.bootstraps


def test_the_continue_target_is_the_best_of_the_next_segment_and_at_the_end_its_halting() -> None:
    rule = act(max_segments=4)
    target = rule.continue_target(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]), torch.tensor([2, 4]))
    torch.testing.assert_close(target, torch.sigmoid(torch.tensor([2.0, 1.0])))


def test_a_single_halt_head_needs_no_bootstrap() -> None:
    assert act({f"{HRM}ACT__HALTING": "q_learning"}).bootstraps
    assert not act({f"{HRM}ACT__HALTING": "single_head"}).bootstraps
