"""What a decision is answered with, and what is kept of it: by a model's run, or by a rule where none decided."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from core.actions import SAFE_DECISION, Action, go_flat
from delivery.routing import Role
from serving.attempts import Attempt
from serving.batcher import Run
from serving.engine import Engine
from serving.ladder import Rung
from serving.question import Question
from serving.reasoning import UNLIMITED
from serving.record_format import NO_MODEL, Answer, DecisionFacts, Record
from serving.schemas import Decision

Facts = dict[str, Any]  # fields of a Decision

# Why a rule decided, by the rung: on the upper three it is the last resort.
REASONS = {Rung.RULE: "ladder_rule", Rung.HOLD: "ladder_hold"}


def by_model(run: Run, role: Role, facts: Facts) -> Decision:
    """`run` has decisions."""
    assert run.decisions is not None  # noqa: S101 - callers checked; for the type checker
    made = run.decisions
    name, version = run.model_id.split("/")
    action = Action(int(made.action[0]))
    answer: Facts = {
        "action": int(action),
        "action_name": action.name,
        "quantity": float(made.quantity[0]),
        "probabilities": made.probabilities[0].tolist(),
        "value": float(made.value[0]),
        "segments": int(made.segments[0]),
        "halt_reason": made.halt_reason[0],
        "model": name,
        "model_version": version,
        "provider": run.provider,
        "role": role,
    }
    return Decision.model_validate(answer | facts)


def by_rule(rung: Rung, position: int, facts: Facts) -> Decision:
    """Go flat on rung RULE; else HOLD, 1.0 (seed 2.4.1). It names no model, because none decided."""
    action, quantity = go_flat(position) if rung is Rung.RULE else SAFE_DECISION
    answer: Facts = {
        "action": int(action),
        "action_name": action.name,
        "quantity": quantity,
        "probabilities": [float(other is action) for other in Action],
        "value": 0.0,
        "segments": 0,
        "halt_reason": REASONS.get(rung, NO_MODEL),
        "model": "none",
        "model_version": "none",
        "provider": None,
        "role": "safe",
    }
    return Decision.model_validate(answer | facts)


@dataclass(frozen=True)
class Arm:
    """One arm's answer, who gave it, on whose account, in at most how many segments."""

    decision: Decision
    by: Attempt | None
    at_stake: Role
    cap: int = UNLIMITED


def record(question: Question, answer: Arm, shadow: Arm | None, **facts: Any) -> Record:
    """`facts` are those of a record that neither the question nor the answers tell."""
    given = answer.decision
    arrays = {"bars": question.bars, "account": question.account(answer.at_stake).features}
    if shadow is not None:
        arrays["shadow_account"] = question.account(shadow.at_stake).features
    kept = DecisionFacts(
        request_id=question.request_id,
        symbol=question.symbol,
        acting=question.acting,
        complexity=question.complexity,
        epoch=given.epoch,
        latency_ms=given.latency_ms,
        fallback=given.fallback,
        answer=_kept(answer, question),
        shadow=_kept(shadow, question) if shadow is not None else None,
        **facts,
    )
    return Record(kept, arrays)


def deadline_ms(deadline: float, started: float) -> float | None:
    """Of two perf_counters, s: how long there was; None for an infinite deadline."""
    return None if deadline == math.inf else (deadline - started) * 1e3


def origin(engine: Engine | None) -> dict[str, str | None]:
    """The fields of an Origin: which bytes decided, and on what; of nobody, None each."""
    return {
        "model": engine.id if engine else None,
        "manifest_sha256": engine.manifest_sha256 if engine else None,
        "onnx_sha256": engine.onnx_sha256 if engine else None,
        "provider": engine.provider if engine else None,
        "storage": engine.manifest.storage if engine else None,
    }


def _kept(arm: Arm, question: Question) -> Answer:
    decision = arm.decision
    return Answer(
        **origin(arm.by.model.engine if arm.by is not None else None),
        role=decision.role,
        position=question.account(arm.at_stake).position,
        segment_cap=None if arm.cap == UNLIMITED else arm.cap,
        action=decision.action,
        quantity=decision.quantity,
        probabilities=tuple(decision.probabilities),
        value=decision.value,
        segments=decision.segments,
        halt_reason=decision.halt_reason,
    )
