"""How a model reasoned during a backtest: the seed's hierarchical metrics (3.1.2 and 7.1.2).

Depth is the number of segments a decision took. D decisions, as in trading/journal.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.halting import HaltingRule, halt_reason
from trading.journal import UNKNOWN, Journal

QUARTERS = 4


@dataclass(frozen=True)
class Quarter:
    """The decisions of a quarter of the range of complexity; `depth` is their mean."""

    complexity_from: float
    complexity_to: float
    decisions: int
    depth: float


@dataclass(frozen=True)
class HrmMetrics:
    """Over all decisions.

    avg_reasoning_depth        mean depth
    computation_efficiency     1 - (mean depth - 1) / (max_segments - 1): the share of the computation allowed beyond
                               the first segment that was not needed; 1 for a model of one segment
    hierarchical_convergence   share of decisions that stopped by themselves, below the limit on depth; 1 for a model
                               of one segment
    hrm_convergence_stability  of the decisions of two segments or more, the share whose last segment left the action
                               as the one before had it; None if there is none, or the policy does not say
    halting_reasons            number of decisions by core/halting.py's reasons
    depth_by_complexity        a row per quarter of the decisions, from the least complex bars to the most; fewer
                               where complexities are equal
    """

    avg_reasoning_depth: float
    computation_efficiency: float
    hierarchical_convergence: float
    hrm_convergence_stability: float | None
    halting_reasons: dict[str, int]
    depth_by_complexity: tuple[Quarter, ...]


def hrm_metrics(journal: Journal, complexity: NDArray[np.floating], rule: HaltingRule | None) -> HrmMetrics:
    """Of a journal's decisions, made at market complexities [D], by a model with this rule; None: of one pass."""
    depth = journal.segments.astype(np.int64)
    limit = 1 if rule is None else rule.max_segments
    mean = float(depth.mean())
    compared = (depth > 1) & (journal.stable != UNKNOWN)
    return HrmMetrics(
        avg_reasoning_depth=mean,
        computation_efficiency=1.0 if limit == 1 else 1.0 - (mean - 1.0) / (limit - 1),
        hierarchical_convergence=1.0 if limit == 1 else float((depth < limit).mean()),
        hrm_convergence_stability=float(journal.stable[compared].mean()) if compared.any() else None,
        halting_reasons=_reasons(np.bincount(depth).tolist(), rule),
        depth_by_complexity=_quarters(depth, np.asarray(complexity, dtype=np.float64)),
    )


def _reasons(decisions_of_depth: Sequence[int], rule: HaltingRule | None) -> dict[str, int]:
    """A decision's depth and the rule say why it stopped: every answered decision has halted."""
    found: dict[str, int] = {}
    for depth, decisions in enumerate(decisions_of_depth):
        if decisions:
            reason = "single_pass" if rule is None else halt_reason(depth, True, rule)
            found[reason] = found.get(reason, 0) + decisions
    return found


def _quarters(depth: NDArray[np.int64], complexity: NDArray[np.float64]) -> tuple[Quarter, ...]:
    edges = np.quantile(complexity, np.linspace(0.0, 1.0, QUARTERS + 1))
    quarter = np.searchsorted(edges[1:-1], complexity, side="left")
    found = []
    for number in range(QUARTERS):
        inside = quarter == number
        if inside.any():
            low, high = float(complexity[inside].min()), float(complexity[inside].max())
            found.append(Quarter(low, high, int(inside.sum()), float(depth[inside].mean())))
    return tuple(found)
