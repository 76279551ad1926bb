"""`hrm bench learning --task book` end to end, a second each: keys, and what must hold whatever was learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import book, learning
from core.settings import Settings
from flows import book_training
from flows.book_sampler import book_of
from tests.benchmarks.fixed_keys import fixed, measured
from trading.book import BookLaw, gains
from trading.book_exact import solve


@pytest.fixture(scope="module")
def answer(small: Settings) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(book, "TEST_ROWS", {"cpu": 128})
        patch.setattr(book_training, "VALIDATION_ROWS", {"cpu": 64})
        patch.setattr(book, "RULE_ROWS", 64)
        patch.setattr(book, "OTHER_SIZES", {12: 16})
        return learning.run(small, task="book", budget_s=1.0, seeds=1)


def test_every_model_and_every_heuristic_answers_with_a_score_and_its_interval(answer: dict[str, Any]) -> None:
    for name in (*book.CONTENDERS, *book.RULES, "hold"):
        assert answer[name]["ci95_low"] <= answer[name]["score"] <= answer[name]["ci95_high"] <= 1.01, name
    assert answer["hold"]["score"] == 0.0
    lacking = {"ppo", "window_ceiling", "hold_ratio"}  # of one instrument
    assert measured("learning", answer) == set(fixed("learning", answer)) - lacking
    assert answer["transformer"]["parameters"] == answer["hrm"]["parameters"]


def test_nothing_infeasible_is_left_after_the_repair_and_the_repair_costs_nothing(answer: dict[str, Any]) -> None:
    for name in book.CONTENDERS:
        assert answer[name]["infeasible_ratio_projected"] == 0.0
        assert answer[name]["projected_score"] >= answer[name]["score"] - 1e-6  # float32 against float64


def test_depth_is_reported_to_sixteen_segments_and_as_the_model_halts(answer: dict[str, Any]) -> None:
    assert len(answer["score_by_segments"]) == len(answer["infeasible_by_segments"]) == book.SEGMENTS
    assert answer["score_by_segments"][-1] == pytest.approx(answer["hrm"]["score"])
    assert 1 <= answer["act_mean_segments"] <= book.SEGMENTS
    assert len(answer["act_segments_by_difficulty"]) == 4
    assert set(answer["other_sizes"]) == {"12"}


def test_the_score_is_one_at_the_optimum_and_its_interval_covers_the_truth() -> None:
    test = book.Test.draw(BookLaw(instruments=4), 400, torch.device("cpu"))
    exact = book_of(test.batch)
    best = book.score_of(gains(exact, solve(exact).targets), test.attainable)
    assert best.value == pytest.approx(1.0, abs=1e-4)
    halves = np.where(np.arange(400) % 2, test.attainable, 0.0)  # every other instance is solved
    found = book.score_of(halves, test.attainable)
    assert found.ci95_low < 0.5 < found.ci95_high
