"""Adaptive computation time: when a row stops thinking, in training and in use (seed 2.2.1).

The rule itself is core.halting, shared with the inference service. Training replaces the complexity-dependent
minimum by a random one (paper, section 2): 0, or with probability eps uniform in {2..M_max}, per row and segment.

Q-learning targets: q_halt learns whether halting now would be right; q_continue learns what one more segment
promises, sigmoid(max(q'_halt, q'_continue)) of the next segment, or sigmoid(q'_halt) if this was the last one.
With a single halt head there is no q_continue to learn and no second forward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.halting import HaltingRule, HaltReason, halt_reason, minimum_segments, should_halt
from core.settings import HierarchicalReasoningModelSettings


class AdaptiveComputationTime:
    """The seed's interface over the one halting rule."""

    def __init__(self, settings: HierarchicalReasoningModelSettings, *, max_segments: int | None = None) -> None:
        """`max_segments` replaces the setting's maximum (training may think less long than inference)."""
        rule = settings.halting_rule
        limit = rule.max_segments if max_segments is None else max_segments
        self.rule: HaltingRule = rule.model_copy(
            update={"max_segments": limit, "min_segments": min(rule.min_segments, limit)}
        )
        self.enabled = settings.act.enabled
        self.exploration = settings.act.exploration

    @property
    def M_max(self) -> int:  # noqa: N802 - the seed's name, as the next
        """Segments at most."""
        return self.rule.max_segments

    @property
    def M_min(self) -> int:  # noqa: N802
        """Segments at least, however simple the market."""
        return self.rule.min_segments

    @property
    def epsilon(self) -> float:
        """Probability of a random minimum, in training only."""
        return self.exploration

    @property
    def bootstraps(self) -> bool:
        """Whether training needs the Q-values of the next segment."""
        return self.enabled and self.rule.halting == "q_learning"

    def compute_dynamic_min(self, market_complexity: float) -> int:
        """Segments every decision takes at this market complexity (in [0, 1])."""
        return int(minimum_segments(market_complexity, self.rule))

    def should_halt(
        self, q_values: tuple[float, float] | Tensor, segment_count: int, market_complexity: float
    ) -> tuple[bool, HaltReason]:
        """(halt, reason) for one row with `q_values` = (q_halt, q_continue) after `segment_count` segments.

        As a tensor they are [2] or one row's [1, 2], as the model's outputs have them.
        """
        q_halt, q_continue = q_values.flatten().tolist() if isinstance(q_values, Tensor) else q_values
        minimum = self.compute_dynamic_min(market_complexity)
        halted = bool(should_halt(segment_count, q_halt, q_continue, minimum, self.rule))
        return halted, halt_reason(segment_count, halted, self.rule)

    def halted(self, segment: int, q_halt: Tensor, q_continue: Tensor, complexity: Tensor) -> Tensor:
        """Rows (bool [B]) that stop after `segment` segments in use; all arguments but `segment` are [B]."""
        minimum = minimum_segments(complexity, self.rule)
        mask: Tensor = should_halt(segment, q_halt, q_continue, minimum, self.rule)
        return mask

    def exploration_minimum(self, rows: int, generator: torch.Generator) -> Tensor:
        """Segments (int64 [rows]) a row must take in training: 0, or with probability eps uniform in {2..M_max}."""
        low, high = min(2, self.rule.max_segments), self.rule.max_segments + 1
        drawn = torch.randint(low, high, (rows,), generator=generator, device=generator.device)
        explores = torch.rand(rows, generator=generator, device=generator.device) < self.exploration
        return drawn * explores

    def training_halts(self, steps: Tensor, q_halt: Tensor, q_continue: Tensor, minimum: Tensor) -> Tensor:
        """Rows (bool [B]) that stop in training after `steps` (int [B]) segments, `minimum` [B] being drawn."""
        if not self.enabled:
            return steps >= self.rule.max_segments
        mask: Tensor = should_halt(steps, q_halt, q_continue, minimum, self.rule)
        return mask

    def continue_target(self, next_q_halt: Tensor, next_q_continue: Tensor, steps: Tensor) -> Tensor:
        """Target probability [B] of q_continue from the next segment's logits [B]."""
        last = steps >= self.rule.max_segments
        return torch.sigmoid(torch.where(last, next_q_halt, torch.maximum(next_q_halt, next_q_continue)))
