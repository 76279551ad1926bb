"""Segments until every row has halted, for decisions and for rollouts; rows leave the batch as they halt."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from core.actions import N_ACTIONS
from hrm.act import AdaptiveComputationTime
from hrm.model import Carry, HierarchicalReasoningModel


class Thought(NamedTuple):
    """What each of B rows said in its last segment, and how many it took."""

    action_logits: Tensor  # [B, 5], before masking
    log_quantity: Tensor  # [B]
    value: Tensor  # [B], bps
    segments: Tensor  # int64 [B]


@torch.no_grad()
def think(
    model: HierarchicalReasoningModel, act: AdaptiveComputationTime, observed: tuple[Tensor, Tensor], complexity: Tensor
) -> Thought:
    """From the initial carry on. `observed`: bars [B, W, F] and account [B, A]; complexity [B] bounds the segments."""
    rows, device = len(complexity), complexity.device
    alive = torch.arange(rows, device=device)
    answer = [torch.empty(rows, *tail, device=device) for tail in ((N_ACTIONS,), (), ())]
    segments = torch.zeros_like(alive)
    (bars, account), carry = observed, model.initial_carry(rows)
    for segment in range(1, act.rule.max_segments + 1):
        outputs, carry = model(bars, account, carry)
        halted = act.halted(segment, outputs.q_halt, outputs.q_continue, complexity)
        done = alive[halted]
        for kept, said in zip(answer, (outputs.action_logits, outputs.log_quantity, outputs.value), strict=True):
            kept[done] = said[halted]
        segments[done] = segment
        if len(done) == len(alive):
            break
        if len(done):
            alive, bars, account, complexity = (tensor[~halted] for tensor in (alive, bars, account, complexity))
            carry = Carry(carry.z_H[~halted], carry.z_L[~halted])
    return Thought(answer[0], answer[1], answer[2], segments)
