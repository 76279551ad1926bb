"""Who decides: the state of the rollout, its log, and the commands that change it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving import examples
from serving.openapi import described, failures, json_of, query_of
from serving.plain import JSON, PlainRoute, json, media_type, parsed, query
from serving.schemas import EventsQuery, EventsResponse, RolloutRequest, RolloutResponse, StartRequest
from serving.scopes import Scope, needs
from serving.service import Live, Service
from serving.transitions import Change, Command

router = APIRouter(prefix="/v1/rollout", tags=["rollout"], route_class=PlainRoute)
BODIES = (RolloutRequest, StartRequest)
REFUSALS = failures(409, 415, 422, 503)
COMMAND_BODY = described(json_of(RolloutRequest, by_hand=examples.ABORT, fenced=examples.PROMOTE), required=False)


@router.get("", response_model=RolloutResponse)
@needs(Scope.ROLLOUT_READ)
async def get_rollout(request: Request) -> Response:
    """Phase, weight, champion and challenger, and what the guard has seen of them."""
    service: Service = request.app.state.service
    return json(_rollout(service, service.live))


@router.get(
    "/events",
    response_model=EventsResponse,
    responses=failures(422),
    openapi_extra=described(parameters=query_of(EventsQuery)),
)
@needs(Scope.ROLLOUT_READ)
async def get_events(request: Request) -> Response:
    """The append-only log: oldest first, at most 1000 with a version above `after`."""
    service: Service = request.app.state.service
    events = await asyncio.to_thread(service.store.events, query(EventsQuery, request).after)
    return json(EventsResponse.model_validate({"events": [asdict(event) for event in events]}))


@router.post(
    "/start",
    response_model=RolloutResponse,
    responses=REFUSALS,
    openapi_extra=described(json_of(StartRequest, start=examples.START)),
)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_start(request: Request) -> Response:
    """Load a challenger and evaluate it in the shadow; it decides nothing until `promote`."""
    service: Service = request.app.state.service
    media_type(request, JSON)
    start = parsed(StartRequest, await request.body())
    change = Change(Command.START, time.time(), start.reason, start.actor, start.champion, start.challenger)
    return json(_rollout(service, await service.command(change, start.version)))


@router.post("/promote", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=COMMAND_BODY)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_promote(request: Request) -> Response:
    """One step further; after the last step the challenger becomes champion."""
    return await _command(request, Command.PROMOTE)


@router.post("/pause", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=COMMAND_BODY)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_pause(request: Request) -> Response:
    """Stop advancing; the weight stays."""
    return await _command(request, Command.PAUSE)


@router.post("/resume", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=COMMAND_BODY)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_resume(request: Request) -> Response:
    """Advance again."""
    return await _command(request, Command.RESUME)


@router.post("/abort", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=COMMAND_BODY)
@needs(Scope.ROLLOUT_ABORT)
async def post_abort(request: Request) -> Response:
    """Take all traffic from the challenger, now. Latched."""
    return await _command(request, Command.ABORT)


@router.post("/rollback", response_model=RolloutResponse, responses=REFUSALS, openapi_extra=COMMAND_BODY)
@needs(Scope.ROLLOUT_ABORT)
async def post_rollback(request: Request) -> Response:
    """Back to the last good champion, even after promotion. Latched."""
    return await _command(request, Command.ROLLBACK)


async def _command(request: Request, command: Command) -> Response:
    service: Service = request.app.state.service
    media_type(request, JSON)
    said = parsed(RolloutRequest, await request.body() or b"{}")
    change = Change(command, time.time(), said.reason, said.actor)
    return json(_rollout(service, await service.command(change, said.version)))


def _rollout(service: Service, live: Live) -> RolloutResponse:
    state = live.state
    return RolloutResponse(
        phase=state.phase,
        champion=state.champion,
        challenger=state.challenger,
        fallback=state.fallback,
        weight=state.weight,
        step=state.step,
        steps=list(service.settings.rollout.steps),
        epoch=state.epoch,
        version=state.version,
        paused=state.paused,
        latched=state.latched,
        durable=live.durable,
        reason=state.reason,
        statistics=service.guard.statistics(),
    )
