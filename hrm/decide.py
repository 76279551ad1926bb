"""The decision in torch, arrays in, arrays out: what the portable file and every stored variant are held against."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from core.actions import legal_actions
from hrm.act import AdaptiveComputationTime
from hrm.model import HierarchicalReasoningModel
from hrm.thinking import think


class Decided(NamedTuple):
    """B decisions; the names are those of the portable file's outputs."""

    action: NDArray[np.int64]  # [B]
    quantity: NDArray[np.float32]  # [B], units
    action_logits: NDArray[np.float32]  # [B, 5], before masking
    log_quantity: NDArray[np.float32]  # [B]
    value: NDArray[np.float32]  # [B], bps
    segments: NDArray[np.int64]  # [B]


def decide(
    model: HierarchicalReasoningModel,
    bars: NDArray[np.float32],
    account: NDArray[np.float32],
    complexity: NDArray[np.float32],
    position: NDArray[np.integer],
) -> Decided:
    """Decide B finite observations: bars [B, W, F], account [B, a], complexity [B], position [B] in {-1, 0, +1}."""
    device = model.recurrence.H_init.device
    seen = [torch.from_numpy(array).to(device) for array in (bars, account, complexity)]
    thought = think(model, AdaptiveComputationTime(model.settings), (seen[0], seen[1]), seen[2])
    logits, log_quantity, value, segments = (tensor.cpu().numpy() for tensor in thought)
    action = np.where(legal_actions(position), logits, -np.inf).argmax(1)
    quantity = np.exp(log_quantity).clip(1.0, model.quantity_max)
    return Decided(action, quantity, logits, log_quantity, value, segments)
