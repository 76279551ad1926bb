"""When reasoning stops: one rule for training and serving, torch tensors and numpy arrays alike.

    halt = segment >= max_segments  or  (segment >= minimum and q_halt > q_continue)

The minimum is `min_segments`, or what market complexity asks for where that is more (seed 2.2.1): 1, 2 above
`complexity_threshold - 0.1`, 3 above `complexity_threshold + 0.2`, which at the default threshold 0.5 are the
seed's 0.4 and 0.7.
Only operators that numpy and torch share are used, so there is no second copy of the rule.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

HaltReason = Literal[
    "max_segments_reached",
    "q_learning_decision",
    "continue_reasoning",
    "single_pass",
    "segments_capped",  # by whoever asked: the service under load, or a replay
    "deadline_reached",  # the answer is that of the best segment so far
]

MEDIUM_OFFSET = -0.1
HIGH_OFFSET = 0.2


class HaltingRule(BaseModel):
    """The part of the ACT settings that serving needs; travels in the model's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_segments: int = Field(ge=1, le=64)
    min_segments: int = Field(ge=1, le=64)
    complexity_threshold: float = Field(ge=0.0, le=1.0)
    halting: Literal["q_learning", "single_head"] = "q_learning"


def minimum_segments(complexity: Any, rule: HaltingRule) -> Any:
    """Lower bound on segments for each row: the larger of min_segments and {1, 2, 3} by complexity, up to max_segments.

    `complexity` is a float array or tensor of any shape; the result is an integer array of that shape.
    """
    medium = complexity > rule.complexity_threshold + MEDIUM_OFFSET
    high = complexity > rule.complexity_threshold + HIGH_OFFSET
    asked = 1 + medium * 1 + high * 1
    bound = asked + (rule.min_segments - asked) * (asked < rule.min_segments)
    return bound - (bound - rule.max_segments) * (bound > rule.max_segments)


def should_halt(segment: Any, q_halt: Any, q_continue: Any, minimum: Any, rule: HaltingRule) -> Any:
    """Boolean array: rows that stop after `segment` segments. With a single halt head, halt on q_halt > 0."""
    threshold = q_continue if rule.halting == "q_learning" else 0.0
    return (segment >= rule.max_segments) | ((segment >= minimum) & (q_halt > threshold))


def halt_reason(segment: int, halted: bool, rule: HaltingRule) -> HaltReason:
    """Why a row stopped, in the seed's words."""
    if segment >= rule.max_segments:
        return "max_segments_reached"
    return "q_learning_decision" if halted else "continue_reasoning"
