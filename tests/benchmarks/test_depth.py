"""The curve over segments is what the model would really have earned at each depth."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.depth import SEGMENTS, score_by_segments
from core.settings import Settings
from hrm.decide import decide
from hrm.model import HierarchicalReasoningModel
from trading.dataset import Dataset
from trading.evaluation import evaluate


def _forced(model: HierarchicalReasoningModel, segments: int) -> HierarchicalReasoningModel:
    act = model.settings.act.model_copy(update={"enabled": False, "min_segments": segments, "max_segments": segments})
    model.settings = model.settings.model_copy(update={"act": act})
    return model


def test_each_depth_scores_as_a_model_forced_to_it(small: Settings, small_data: Dataset) -> None:
    torch.set_num_threads(1)
    model = HierarchicalReasoningModel(small.hierarchical_reasoning_model, small_data.schema, 1000.0, seed=1).eval()
    sessions = small_data.test.sessions[:10]
    scores = score_by_segments(model, small_data, len(sessions))
    assert len(scores) == SEGMENTS
    for segments in (1, 2, 5, 16):
        policy = partial(decide, _forced(model, segments))
        played = evaluate(policy, small_data.test, small_data.schema, small_data.cost_bps, sessions)
        assert played.mean_segments == segments
        assert scores[segments - 1] == pytest.approx(played.score, abs=1e-9)
    assert scores[0] != scores[1]  # an untrained model changes its mind: the depths are not all the same one
