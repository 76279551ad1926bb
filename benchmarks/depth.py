"""The same model at every depth: what it would do after 1, 2, ... segments, whatever its halting rule says.

All decisions of a market are computed once, from each of the three positions, through all segments; to play one
depth is then to look decisions up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.observation import ObservationSchema
from hrm.losses import ACTIONS, target_logits
from hrm.model import HierarchicalReasoningModel
from trading.dataset import Dataset
from trading.evaluation import evaluate_targets
from trading.market import Market
from trading.observations import observe

SEGMENTS = 16
ROWS_AT_ONCE = {"cuda": 32_768, "cpu": 4096}


def score_by_segments(model: HierarchicalReasoningModel, data: Dataset, sessions: int) -> list[float]:
    """Scores at 1..16 segments on the first test `sessions`. The optimum must be known."""
    ids = data.test.sessions[:sessions]
    market = data.test.restricted_to(int(ids[0]), int(ids[-1]))
    targets = _targets(model, market, data.schema)
    scores = [evaluate_targets(planned, market, data.schema, data.cost_bps).score for planned in targets]
    return [score for score in scores if score is not None]


def _targets(model: HierarchicalReasoningModel, market: Market, schema: ObservationSchema) -> NDArray[np.int64]:
    """Target positions [SEGMENTS, n, 3] by depth, bar and position index p + 1; zeros where nothing is decided."""
    planned = np.zeros((SEGMENTS, len(market.bars), 3), dtype=np.int64)
    chunk = ROWS_AT_ONCE[model.recurrence.H_init.device.type]
    for start in range(0, len(market.decision_bars), chunk):
        at = market.decision_bars[start : start + chunk]
        for position in (-1, 0, 1):
            planned[:, at, position + 1] = _thoughts(model, observe(market, schema, at, np.full(len(at), position)))
    return planned


@torch.inference_mode()
def _thoughts(model: HierarchicalReasoningModel, seen: Any) -> NDArray[np.int64]:
    """The preferred target [SEGMENTS, B] after each segment."""
    device = model.recurrence.H_init.device
    bars, account, position = (torch.from_numpy(array).to(device) for array in (seen.bars, seen.account, seen.position))
    carry = model.initial_carry(len(bars))
    actions = ACTIONS.to(device)
    preferred = []
    for _ in range(SEGMENTS):
        outputs, carry = model(bars, account, carry)
        preferred.append(target_logits(outputs.action_logits, position, actions).argmax(1) - 1)
    return torch.stack(preferred).cpu().numpy()
