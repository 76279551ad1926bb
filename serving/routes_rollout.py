"""Who decides: the state of the rollout, its log, and the commands that change it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request

from serving import examples
from serving.openapi import failures
from serving.schemas import EventsQuery, EventsResponse, RolloutRequest, RolloutResponse, StartRequest
from serving.scopes import Scope, needs
from serving.service import Live, Service
from serving.transitions import Change, Command

router = APIRouter(prefix="/v1/rollout", tags=["rollout"])
REFUSALS = failures(409, 503)


async def _service(request: Request) -> Service:  # async: a plain function would cost a thread hop
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
StartBody = Annotated[StartRequest, Body(openapi_examples={"start": {"value": examples.START}})]
CommandBody = Annotated[
    RolloutRequest,
    Body(
        default_factory=RolloutRequest,
        openapi_examples={"by hand": {"value": examples.ABORT}, "fenced": {"value": examples.PROMOTE}},
    ),
]


@router.get("")
@needs(Scope.ROLLOUT_READ)
async def get_rollout(service: ServiceOf) -> RolloutResponse:
    """Phase, weight, champion and challenger, and what the guard has seen of them."""
    return _rollout(service, service.live)


@router.get("/events")
@needs(Scope.ROLLOUT_READ)
async def get_events(service: ServiceOf, query: Annotated[EventsQuery, Query()]) -> EventsResponse:
    """The append-only log: oldest first, at most 1000 with a version above `after`."""
    return EventsResponse.model_validate({"events": [asdict(event) for event in service.events(query.after)]})


@router.post("/start", responses=REFUSALS)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_start(service: ServiceOf, body: StartBody) -> RolloutResponse:
    """Load a challenger and evaluate it in the shadow; it decides nothing until `promote`."""
    change = Change(Command.START, time.time(), body.reason, body.actor, body.champion, body.challenger)
    return _rollout(service, await service.command(change, body.version))


@router.post("/promote", responses=REFUSALS)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_promote(service: ServiceOf, body: CommandBody) -> RolloutResponse:
    """One step further; after the last step the challenger becomes champion."""
    return await _command(service, Command.PROMOTE, body)


@router.post("/pause", responses=REFUSALS)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_pause(service: ServiceOf, body: CommandBody) -> RolloutResponse:
    """Stop advancing; the weight stays."""
    return await _command(service, Command.PAUSE, body)


@router.post("/resume", responses=REFUSALS)
@needs(Scope.ROLLOUT_PROMOTE)
async def post_resume(service: ServiceOf, body: CommandBody) -> RolloutResponse:
    """Advance again."""
    return await _command(service, Command.RESUME, body)


@router.post("/abort", responses=REFUSALS)
@needs(Scope.ROLLOUT_ABORT)
async def post_abort(service: ServiceOf, body: CommandBody) -> RolloutResponse:
    """Take all traffic from the challenger, now. Latched."""
    return await _command(service, Command.ABORT, body)


@router.post("/rollback", responses=REFUSALS)
@needs(Scope.ROLLOUT_ABORT)
async def post_rollback(service: ServiceOf, body: CommandBody) -> RolloutResponse:
    """Back to the last good champion, even after promotion. Latched."""
    return await _command(service, Command.ROLLBACK, body)


async def _command(service: Service, command: Command, body: RolloutRequest) -> RolloutResponse:
    change = Change(command, time.time(), body.reason, body.actor)
    return _rollout(service, await service.command(change, body.version))


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
