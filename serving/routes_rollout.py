"""Who decides: the state of the rollout, its plan and log, and the commands that change it.

`advance` has no route: whether a gate is passed is the controller's to say, and nobody else's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from core.errors import RolloutError
from delivery.plan import Plan
from delivery.transitions import UNSTOPPABLE, Change, Command
from serving import examples, fence
from serving.live import Live
from serving.openapi import described, failures, json_of, query_of
from serving.plain import JSON, PlainRoute, json, media_type, parsed, query
from serving.rollout_answers import rollout
from serving.schemas_rollout import (
    AnalysisQuery,
    AnalysisResponse,
    EventsQuery,
    EventsResponse,
    RefusalsResponse,
    RolloutRequest,
    RolloutResponse,
    StartRequest,
    last_words,
)
from serving.scopes import Principal, Scope, needs
from serving.service import Service

router = APIRouter(prefix="/v1/rollout", tags=["rollout"], route_class=PlainRoute)
BODIES = (RolloutRequest, StartRequest)
REFUSALS = failures(409, 412, 415, 422, 503)
Answer = TypeVar("Answer")
ABORT_REFUSALS = failures(409, 503)
FENCED = described(json_of(RolloutRequest, fenced=examples.PROMOTE), parameters=[fence.IF_MATCH], required=False)
IN_ANY_WORDS = {JSON: {"schema": {}, "examples": {"by_hand": {"value": examples.ABORT}}}}
UNFENCED = described(IN_ANY_WORDS, required=False)


@router.get("", response_model=RolloutResponse)
@needs(Scope.ROLLOUT_READ)
async def get_rollout(request: Request) -> Response:
    """Phase, weight, champion and challenger, what is waited for, and what the guard has seen. ETag: the version."""
    service: Service = request.app.state.service
    return _answer(service, service.live)


@router.get("/plan", response_model=Plan)
@needs(Scope.ROLLOUT_READ)
async def get_plan(request: Request) -> Response:
    """The frozen plan of the current or latest attempt, else the one a start without a plan takes.

    Canonical: the SHA-256 of the body is `plan_sha256`, and its ETag.
    """
    service: Service = request.app.state.service
    plan = service.live.plan
    return Response(plan.canonical, headers={"ETag": f'"{plan.sha256}"'}, media_type=JSON)


@router.get(
    "/analysis",
    response_model=AnalysisResponse,
    responses=failures(422, 503),
    openapi_extra=described(parameters=query_of(AnalysisQuery)),
)
@needs(Scope.ROLLOUT_READ)
async def get_analysis(request: Request) -> Response:
    """What was measured in the current or latest attempt, by run and metric, and what it comes to."""
    service: Service = request.app.state.service
    last = query(AnalysisQuery, request).last
    live = service.live
    return json(await _read(lambda: service.analyses.told(service.store, live.state, live.plan, last)))


@router.get(
    "/events",
    response_model=EventsResponse,
    responses=failures(422, 503),
    openapi_extra=described(parameters=query_of(EventsQuery)),
)
@needs(Scope.ROLLOUT_READ)
async def get_events(request: Request) -> Response:
    """The append-only log: oldest first, at most 1000 with a version above `after`."""
    service: Service = request.app.state.service
    after = query(EventsQuery, request).after
    events = await _read(lambda: service.store.events(after))
    return json(EventsResponse.model_validate({"events": [asdict(event) for event in events]}))


@router.get(
    "/refusals",
    response_model=RefusalsResponse,
    responses=failures(422, 503),
    openapi_extra=described(parameters=query_of(EventsQuery)),
)
@needs(Scope.ROLLOUT_READ)
async def get_refusals(request: Request) -> Response:
    """Commands that were refused, oldest first: at most 1000 with a number above `after`. A second late."""
    service: Service = request.app.state.service
    after = query(EventsQuery, request).after
    refusals = await _read(lambda: service.refusals.read(after))
    return json(RefusalsResponse.model_validate({"refusals": [asdict(refusal) for refusal in refusals]}))


@router.post(
    "/start",
    response_model=RolloutResponse,
    responses=REFUSALS,
    openapi_extra=described(
        json_of(StartRequest, start=examples.START, with_a_plan=examples.START_WITH_PLAN), parameters=[fence.IF_MATCH]
    ),
)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_start(request: Request) -> Response:
    """Load a challenger and evaluate it in the shadow. `plan` is frozen with the attempt; null: the settings' own."""
    media_type(request, JSON)
    start = parsed(StartRequest, await request.body())
    change = Change(
        Command.START,
        time.time(),
        start.noted_reason,
        _caller(request),
        champion=start.champion,
        challenger=start.challenger,
        plan=start.plan,
    )
    return await _carried_out(request, change, start.version)


@router.post("/approve", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=FENCED)
@needs(Scope.ROLLOUT_APPROVE)
async def post_approve(request: Request) -> Response:
    """Speak for the promotion, where the plan asks for approvals: one for each caller, and none of who started."""
    return await _command(request, Command.APPROVE)


@router.post("/promote", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=FENCED)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_promote(request: Request) -> Response:
    """One step further; after the last step the challenger becomes champion."""
    return await _command(request, Command.PROMOTE)


@router.post("/pause", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=FENCED)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_pause(request: Request) -> Response:
    """Stop advancing; the weight stays."""
    return await _command(request, Command.PAUSE)


@router.post("/resume", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=FENCED)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_resume(request: Request) -> Response:
    """Advance again."""
    return await _command(request, Command.RESUME)


@router.post("/abort", response_model=RolloutResponse, responses=ABORT_REFUSALS, openapi_extra=UNFENCED)
@needs(Scope.ROLLOUT_ABORT)
async def post_abort(request: Request) -> Response:
    """Take all traffic from the challenger, now, whatever `version` or If-Match say. Latched."""
    return await _command(request, Command.ABORT)


@router.post("/rollback", response_model=RolloutResponse, responses=ABORT_REFUSALS, openapi_extra=UNFENCED)
@needs(Scope.ROLLOUT_ABORT)
async def post_rollback(request: Request) -> Response:
    """Back to the last good champion, even after promotion, whatever `version` or If-Match say. Latched."""
    return await _command(request, Command.ROLLBACK)


async def _command(request: Request, command: Command) -> Response:
    said = await _said(request, command)
    return await _carried_out(request, Change(command, time.time(), said.noted_reason, _caller(request)), said.version)


async def _said(request: Request, command: Command) -> RolloutRequest:
    body = await request.body()
    if command in UNSTOPPABLE:
        return last_words(body)
    media_type(request, JSON)
    return parsed(RolloutRequest, body or b"{}")


async def _carried_out(request: Request, change: Change, version: int | None) -> Response:
    service: Service = request.app.state.service
    with service.refusals.noted(change):
        return await _obeyed(service, request, change, version)


async def _obeyed(service: Service, request: Request, change: Change, version: int | None) -> Response:
    tags = None if change.command in UNSTOPPABLE else fence.if_match(request)
    if tags is None:
        return _answer(service, await service.command(change, version))
    await service.sync()  # another process may know better
    try:
        return _answer(service, await service.command(change, fence.require(tags, version, service.live.state.version)))
    except RolloutError as error:
        raise fence.stale(service.live.state.version) if error.code == "stale_version" else error from None


async def _read(question: Callable[[], Answer]) -> Answer:
    """From the state database, beside the event loop. Raises RolloutError (503) while it cannot be read."""
    try:
        return await asyncio.to_thread(question)
    except SQLAlchemyError as error:
        raise RolloutError(
            f"the rollout's state cannot be read: {getattr(error, 'orig', error)}; see to its database and retry",
            code="state_unreadable",
            retryable=True,
        ) from error


def _caller(request: Request) -> str:
    """Who acts, for the log: as the door has authenticated it, never as the body claims."""
    principal: Principal = request.user
    return principal.id


def _answer(service: Service, live: Live) -> Response:
    return json(rollout(service, live), ETag=fence.etag(live.state.version))
