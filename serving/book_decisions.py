"""One decision on a book: which model, its answer, and the safe one where that breaks a limit (serving/book.py).

Models of books stand beside the rollout: they are loaded by name (`serving.book_model`, POST /v1/models/.../load), and
answer books of the size they were trained on. Neither guard nor ladder has a part here: what stands in for an answer
needs no model.
"""

from __future__ import annotations

import time

import structlog

from core.actions import ACTION_OF, TARGET_OF, Action
from core.errors import DataError, ModelError
from core.observation import BookSchema
from serving.answers import NO_MODEL
from serving.batcher import Batcher, Run
from serving.book import BookQuestion, FeasibleBy, Ints, feasible, safe_targets, utility
from serving.decisions import SHED
from serving.schemas_book import BookResponse, InstrumentDecision
from serving.service import Service

log = structlog.get_logger()

ROLE = "book"  # what runs and answers are counted as


async def decide_book(service: Service, question: BookQuestion) -> BookResponse:
    """Raises ModelError if no loaded model takes the book or its answer would come too late, DataError if the model
    that is named takes another.
    """
    started = time.perf_counter()
    model = _model(service, question)
    run = await model.run(question.row, question.deadline)
    service.telemetry.ran(run, ROLE)
    if run.error is not None:
        log.warning("run_without_answer", model=run.model_id, code=run.error_code, error=run.error)
    if run.error_code in SHED:
        raise ModelError(str(run.error), code=run.error_code, retryable=True)
    response = _response(question, run, started)
    _tell(service, response)
    return response


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


def _answer(question: BookQuestion, run: Run) -> tuple[Ints, FeasibleBy]:
    """Targets [K] that keep the limits, and whose they are."""
    if run.decisions is not None:
        targets = TARGET_OF[question.row.position + 1, run.decisions.action[0]]
        if feasible(targets, question.row.limits):
            return targets, "model"
    return safe_targets(question.row)


def _response(question: BookQuestion, run: Run, started: float) -> BookResponse:
    made = run.decisions
    targets, feasible_by = _answer(question, run)
    name, version = run.model_id.split("/") if made is not None else ("none", "none")
    return BookResponse(
        request_id=question.request_id,
        book_id=question.book_id,
        decisions=_by_instrument(question, run, targets),
        utility=utility(question.row, targets),
        feasible=True,
        feasible_by=feasible_by,
        segments=int(made.segments[0]) if made is not None else 0,
        halt_reason=made.halt_reason[0] if made is not None else NO_MODEL,
        model=name,
        model_version=version,
        provider=run.provider if made is not None else None,
        latency_ms=(time.perf_counter() - started) * 1e3,
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


def _tell(service: Service, answer: BookResponse) -> None:
    model_id = f"{answer.model}/{answer.model_version}"
    service.telemetry.answered(model_id, ROLE, fallback=answer.feasible_by != "model")
    log.info(
        "book_decision",
        request_id=answer.request_id,
        book_id=answer.book_id,
        model=model_id,
        targets={decision.symbol: decision.target for decision in answer.decisions},
        feasible_by=answer.feasible_by,
        segments=answer.segments,
        halt_reason=answer.halt_reason,
        latency_ms=round(answer.latency_ms, 3),
    )
