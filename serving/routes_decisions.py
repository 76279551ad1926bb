"""What to do now: one decision, a batch of them, and what a decision earned."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from core.errors import DataError, HrmSystemError, ModelError
from core.observation import ObservationSchema
from serving import examples
from serving.decisions import decide
from serving.openapi import RAW_BODY, described, failures, json_of, query_of
from serving.plain import JSON, RAW, PlainRoute, found, json, media_type, parsed, query
from serving.problems import describe, describe_invalid, document
from serving.question import Question
from serving.schemas import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    DecisionRequest,
    DecisionResponse,
    OutcomeRequest,
    OutcomeResponse,
    Problem,
    RawFields,
)
from serving.scopes import Scope, needs
from serving.service import Service
from serving.wire import from_raw

log = structlog.get_logger()

router = APIRouter(route_class=PlainRoute, tags=["decisions"])
BODIES = (DecisionRequest, BatchRequest, OutcomeRequest)


@router.post(
    "/v1/decisions",
    response_model=DecisionResponse,
    responses=failures(415, 422, 503),
    openapi_extra=described(
        json_of(DecisionRequest, flat=examples.DECISION, both_arms=examples.BOTH_ARMS) | RAW_BODY,
        parameters=query_of(RawFields),
    ),
)
@needs(Scope.DECIDE)
async def post_decision(request: Request) -> Response:
    """Decide for one symbol.

    As JSON, or as `application/octet-stream`: `bars` [W, F], the champion's account features [A] and, if
    `challenger_position` is given, the challenger's [A], all little-endian float32. Query parameters belong to that
    form alone, which needs `symbol`, `complexity` and `position`.
    """
    service: Service = request.app.state.service
    kind = media_type(request, JSON, RAW)
    body = await request.body()
    if kind == RAW:
        question = from_raw(body, query(RawFields, request), _schema(service))
    elif request.url.query:
        raise DataError(f"query: parameters are for {RAW}; JSON says everything in its body", code="request_invalid")
    else:
        question = parsed(DecisionRequest, body).question()
    return json(await decide(service, question))


@router.post(
    "/v1/decisions/batch",
    response_model=BatchResponse,
    responses=failures(415, 422),
    openapi_extra=described(json_of(BatchRequest, two={"decisions": [examples.DECISION, examples.BOTH_ARMS]})),
)
@needs(Scope.DECIDE)
async def post_batch(request: Request) -> Response:
    """Decide for many symbols at once, each as if it were alone: one that cannot be decided takes none with it.

    A question whose `request_id` an earlier one of the batch has is refused.
    """
    service: Service = request.app.state.service
    media_type(request, JSON)
    questions = _questions(parsed(BatchRequest, await request.body()).decisions)
    return json(BatchResponse(results=await asyncio.gather(*(_item(service, question) for question in questions))))


@router.post(
    "/v1/outcomes",
    response_model=OutcomeResponse,
    responses=failures(415, 422),
    openapi_extra=described(json_of(OutcomeRequest, one=examples.OUTCOME)),
)
@needs(Scope.DECIDE)
async def post_outcome(request: Request) -> Response:
    """What one decision earned in each arm's own virtual portfolio: for the performance trigger and the loss limits."""
    service: Service = request.app.state.service
    media_type(request, JSON)
    outcome = service.outcomes.of_candidate(parsed(OutcomeRequest, await request.body()).earned(), service.live)
    durable = outcome is None or await service.outcomes.add(outcome)  # without a rollout there is no ledger
    outcomes, phase = service.guard.performance.outcomes, service.live.state.phase
    return json(OutcomeResponse(outcomes=outcomes, phase=phase, durable=durable))


def _schema(service: Service) -> ObservationSchema:
    """What is decided on. Every model of a rollout has the same."""
    champion = service.live.model(service.live.state.champion)
    if champion is None:
        raise ModelError("no champion is loaded; start the service with one, or a rollout", code="not_ready")
    return champion.engine.manifest.market


def _questions(items: list[Any]) -> list[Question | BatchItem]:
    """Each item as a question, or why it is none."""
    seen: set[str] = set()
    questions: list[Question | BatchItem] = []
    for item in items:
        question = _question(item)
        if isinstance(question, Question):
            if question.request_id in seen:
                question = _refused(
                    document(
                        422, "duplicate_request_id", f"request_id: '{question.request_id}' came earlier in the batch"
                    )
                )
            else:
                seen.add(question.request_id)
        questions.append(question)
    return questions


def _question(item: Any) -> Question | BatchItem:
    try:
        return DecisionRequest.model_validate(item).question()
    except ValidationError as error:
        return _refused(describe_invalid(found(error, "body")))
    except DataError as error:
        return _refused(describe(error))


async def _item(service: Service, question: Question | BatchItem) -> BatchItem:
    if isinstance(question, BatchItem):
        return question
    try:
        return BatchItem(decision=await decide(service, question))
    except HrmSystemError as error:
        return _refused(describe(error))
    except Exception:  # a fault of ours met by one question must not lose the answers to the others
        log.exception("unforeseen_error", request_id=question.request_id)
        return _refused(document(500, "internal_error", "unforeseen error; the service's log has the details"))


def _refused(content: dict[str, object]) -> BatchItem:
    return BatchItem(problem=Problem.model_validate(content))
