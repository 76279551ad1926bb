"""What a record asks of its model when it is decided again, and what of the answer must be the same: by kind of record.

    decision     action, quantity, depth; of its shadow too
    book         everything that was answered: actions, targets, probabilities, utility, whose they are, depth, reason
    inference    everything that was answered, of all rows

What a deadline or the ladder cut is cut at the same segment. Where no model had decided there is none to ask: the rule
decides once more.

Shapes: b rows of a case (one, of an inference B).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.actions import ACTION_OF, SAFE_DECISION, go_flat
from serving.book import BookObservation, targets_of, utility
from serving.reasoning import UNLIMITED, Decisions
from serving.record_format import NO_MODEL, Answer, BookFacts, DecisionFacts, InferenceFacts, Origin, Record

Arm = Literal["answer", "shadow"]
Outputs = dict[str, Any]  # by name: numbers and texts, and lists of them
Array = NDArray[Any]

CAPPED = "segments_capped"
CUT = frozenset({"deadline_reached", CAPPED})


@dataclass(frozen=True, eq=False)
class Case:
    """One arm of one record. `read` makes outputs of its rows' decisions, or of None where a rule decided."""

    decision_id: str
    arm: Arm
    by: Origin
    feeds: Mapping[str, Array]  # [b, ...] by the names of the graph's inputs
    complexity: Array  # [b]
    position: Array  # [b], of books [b, K]
    cap: Array  # [b] segments at most
    recorded: Outputs
    read: Callable[[Decisions | None], Outputs]

    @property
    def rows(self) -> int:
        return len(self.cap)


def cases(record: Record) -> list[Case]:
    """The answer of a record and, if it has one, its shadow."""
    facts = record.facts
    if isinstance(facts, BookFacts):
        return [_book(record, facts)]
    if isinstance(facts, InferenceFacts):
        return [_inference(record, facts)]
    answer = _decision(record, facts, "answer", facts.answer)
    return [answer] if facts.shadow is None else [answer, _decision(record, facts, "shadow", facts.shadow)]


def _decision(record: Record, facts: DecisionFacts, arm: Arm, answer: Answer) -> Case:
    account = record.arrays["account" if arm == "answer" else "shadow_account"]
    limit = UNLIMITED if answer.segment_cap is None else answer.segment_cap

    def read(made: Decisions | None) -> Outputs:
        if made is not None:
            return {name: getattr(made, name)[0].item() for name in ("action", "quantity", "segments")}
        action, quantity = go_flat(answer.position) if facts.rung == "rule" else SAFE_DECISION
        return {"action": int(action), "quantity": quantity, "segments": 0}

    return Case(
        decision_id=facts.decision_id,
        arm=arm,
        by=answer,
        feeds={"bars": record.arrays["bars"][None], "account": account[None]},
        complexity=np.array([facts.complexity], np.float32),
        position=np.array([answer.position]),
        cap=_caps([answer.halt_reason], [answer.segments], limit),
        recorded={"action": answer.action, "quantity": answer.quantity, "segments": answer.segments},
        read=read,
    )


def _book(record: Record, facts: BookFacts) -> Case:
    answer, arrays = facts.answer, record.arrays
    row = BookObservation(arrays["instruments"], arrays["limits"])
    seen = arrays["probabilities"].tolist() if "probabilities" in arrays else None
    told = {name: getattr(answer, name) for name in ("utility", "feasible_by", "segments", "halt_reason")}
    return Case(
        decision_id=facts.decision_id,
        arm="answer",
        by=answer,
        feeds={name: array[None] for name, array in row.feeds.items()},
        complexity=np.array([row.complexity], np.float32),
        position=row.position[None],
        cap=_caps([answer.halt_reason], [answer.segments]),
        recorded={"action": [*answer.action], "target": [*answer.target], "probabilities": seen, **told},
        read=partial(_book_outputs, row, answer.halt_reason),
    )


def _book_outputs(row: BookObservation, recorded_reason: str, made: Decisions | None) -> Outputs:
    targets, feasible_by = targets_of(row, None if made is None else made.action[0])
    return {
        "action": ACTION_OF[row.position + 1, targets + 1].tolist(),
        "target": targets.tolist(),
        "probabilities": None if made is None else made.probabilities[0].tolist(),
        "utility": utility(row, targets),
        "feasible_by": feasible_by,
        "segments": 0 if made is None else made.segments[0].item(),
        "halt_reason": NO_MODEL if made is None else _reason(made.halt_reason[0], recorded_reason),
    }


def _inference(record: Record, facts: InferenceFacts) -> Case:
    arrays, reasons = record.arrays, facts.answer.halt_reason
    numbers = ("action", "quantity", "probabilities", "value", "segments")

    def read(made: Decisions | None) -> Outputs:
        assert made is not None  # noqa: S101 - no rule answers an inference: its record always names a model
        again = map(_reason, made.halt_reason, reasons)
        return {name: getattr(made, name).tolist() for name in numbers} | {"halt_reason": [*again]}

    return Case(
        decision_id=facts.decision_id,
        arm="answer",
        by=facts.answer,
        feeds={"bars": arrays["bars"], "account": arrays["account"]},
        complexity=arrays["complexity"],
        position=arrays["position"],
        cap=_caps(reasons, arrays["segments"].tolist()),
        recorded={name: arrays[name].tolist() for name in numbers} | {"halt_reason": [*reasons]},
        read=read,
    )


def _caps(reasons: list[str] | tuple[str, ...], segments: list[int], limit: int = UNLIMITED) -> Array:
    """[b] the depth of a row that was cut, else the limit it had."""
    return np.array([depth if why in CUT else limit for why, depth in zip(reasons, segments, strict=True)])


def _reason(again: str, recorded: str) -> str:
    """A deadline is replayed as a cap: the reason is the deadline's again."""
    return recorded if again == CAPPED and recorded in CUT else again
