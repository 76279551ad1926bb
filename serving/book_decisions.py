"""One decision on a book: which model, its answer, and the safe one where that breaks a limit (serving/book.py).

Models of books stand beside the rollout: they are loaded by name (`serving.book_model`, POST /v1/models/.../load), and
answer books of the size they were trained on. Neither guard nor ladder has a part here: what stands in for an answer
needs no model, and a model of books that fails says nothing of those that the two judge. Metrics show it under the
role `book`. Like every decision it is on record before it is answered (serving/records.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import structlog

from core.actions import ACTION_OF, Action
from core.errors import DataError, ModelError
from core.observation import BookSchema
from serving.answers import deadline_ms, origin
from serving.batcher import Batcher, Run
from serving.book import BookQuestion, Ints, targets_of, utility
from serving.decisions import SHED
from serving.engine import Engine
from serving.record_format import NO_MODEL, BookAnswer, BookFacts, Record
from serving.schemas_book import BookDecision, BookResponse, InstrumentDecision
from serving.service import Service

log = structlog.get_logger()

ROLE = "book"  # what runs and answers are counted as


@dataclass(frozen=True)
class _Outcome:
    """A question, and the run of the model that it was put to."""

    question: BookQuestion
    started: float  # perf_counter, s
    model: Batcher
    run: Run

    @property
    def by(self) -> Engine | None:
        """Who answered."""
        return self.model.engine if self.run.decisions is not None else None


async def decide_book(service: Service, question: BookQuestion) -> BookResponse:
    """Raises ModelError if no loaded model takes the book or its answer would come too late, DataError if the model
    that is named takes another.
    """
    outcome = await _ask(service, question)
    if outcome.run.error_code in SHED:
        raise ModelError(str(outcome.run.error), code=outcome.run.error_code, retryable=True)
    decision = _decision(outcome)
    decision_id, at = service.records.new_id()
    recorded = await service.turns.write(_record(outcome, decision, decision_id=decision_id, at=at))
    service.telemetry.recorded(recorded)
    response = BookResponse.model_construct(**dict(decision), decision_id=decision_id, recorded=recorded)
    _tell(service, response)
    return response


async def _ask(service: Service, question: BookQuestion) -> _Outcome:
    started = time.perf_counter()
    model = _model(service, question)
    run = await model.run(question.row, question.deadline)
    service.telemetry.ran(run, ROLE)
    if run.error is not None:
        log.warning("run_without_answer", model=run.model_id, code=run.error_code, error=run.error)
    return _Outcome(question, started, model, run)


def _model(service: Service, question: BookQuestion) -> Batcher:
    """The one that is named, or of the loaded ones that take the book the newest."""
    models, wanted = service.live.models, question.schema
    if question.model_id is not None:
        return _named(models.get(question.model_id), question)
    able = [model for model in models.values() if model.engine.manifest.observation == wanted]
    if not able:
        raise ModelError(
            f"no loaded model decides books of {_size(wanted)}; `hrm book train --instruments {wanted.instruments} "
            f"--factors {wanted.factors}` makes one, POST /v1/models/NAME/VERSION/load loads it",
            code="no_book_model",
        )
    return max(able, key=lambda model: model.engine.manifest.created_at)


def _named(model: Batcher | None, question: BookQuestion) -> Batcher:
    name = question.model_id
    if model is None:
        raise ModelError(f"{name} is not loaded; POST /v1/models/{name}/load loads it", code="model_not_loaded")
    takes = model.engine.manifest.observation
    if not isinstance(takes, BookSchema):
        raise ModelError(f"{name} decides single instruments; ask it over /v1/decisions", code="not_a_book_model")
    if takes != question.schema:
        message = f"instruments: {name} takes books of {_size(takes)}, got {_size(question.schema)}"
        raise DataError(message, code="shape_mismatch")
    return model


def _size(schema: BookSchema) -> str:
    return f"{schema.instruments} instruments with {schema.factors} loadings each"


def _decision(outcome: _Outcome) -> BookDecision:
    question, made = outcome.question, outcome.run.decisions
    targets, feasible_by = targets_of(question.row, None if made is None else made.action[0])
    name, version = outcome.run.model_id.split("/") if made is not None else ("none", "none")
    return BookDecision(
        request_id=question.request_id,
        book_id=question.book_id,
        decisions=_by_instrument(question, outcome.run, targets),
        utility=utility(question.row, targets),
        feasible=True,
        feasible_by=feasible_by,
        segments=int(made.segments[0]) if made is not None else 0,
        halt_reason=made.halt_reason[0] if made is not None else NO_MODEL,
        model=name,
        model_version=version,
        provider=outcome.run.provider if made is not None else None,
        latency_ms=(time.perf_counter() - outcome.started) * 1e3,
    )


def _by_instrument(question: BookQuestion, run: Run, targets: Ints) -> list[InstrumentDecision]:
    """In the order of the request."""
    actions = ACTION_OF[question.row.position + 1, targets + 1]
    seen = run.decisions.probabilities[0].tolist() if run.decisions is not None else [None] * len(targets)
    decisions = [
        InstrumentDecision(
            symbol=symbol,
            target=int(target),
            action=int(action),
            action_name=Action(int(action)).name,
            probabilities=probabilities,
        )
        for symbol, target, action, probabilities in zip(question.symbols, targets, actions, seen, strict=True)
    ]
    return [decisions[place] for place in question.places]


def _record(outcome: _Outcome, decision: BookDecision, **facts: Any) -> Record:
    """`facts` are the decision's id and time."""
    question, run = outcome.question, outcome.run
    by_symbol = sorted(decision.decisions, key=lambda each: each.symbol)
    answer = BookAnswer(
        **origin(outcome.by),
        action=tuple(each.action for each in by_symbol),
        target=tuple(each.target for each in by_symbol),
        utility=decision.utility,
        feasible_by=decision.feasible_by,
        segments=decision.segments,
        halt_reason=decision.halt_reason,
    )
    kept = BookFacts(
        deadline_ms=deadline_ms(question.deadline, outcome.started),
        latency_ms=decision.latency_ms,
        request_id=question.request_id,
        book_id=question.book_id,
        symbols=question.symbols,
        errors={run.model_id: run.error_code} if run.error_code is not None else {},
        answer=answer,
        **facts,
    )
    seen = {"probabilities": run.decisions.probabilities[0]} if run.decisions is not None else {}
    return Record(kept, {**question.row.feeds, **seen})


def _tell(service: Service, answer: BookResponse) -> None:
    model_id = f"{answer.model}/{answer.model_version}"
    service.telemetry.answered(model_id, ROLE, fallback=answer.feasible_by != "model")
    log.info(
        "book_decision",
        decision_id=answer.decision_id,
        request_id=answer.request_id,
        book_id=answer.book_id,
        model=model_id,
        targets={decision.symbol: decision.target for decision in answer.decisions},
        feasible_by=answer.feasible_by,
        segments=answer.segments,
        halt_reason=answer.halt_reason,
        latency_ms=round(answer.latency_ms, 3),
        recorded=answer.recorded,
    )
