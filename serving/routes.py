"""The HTTP routes (docs/architecture.md, "Service"). Thin: parse, call, answer."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from serving.decisions import decide
from serving.health import health, ready
from serving.problems import problem
from serving.schemas import (
    DecisionRequest,
    DecisionResponse,
    EventsQuery,
    OutcomeRequest,
    OutcomeResponse,
    RolloutRequest,
    RolloutResponse,
    StartRequest,
)
from serving.scopes import Scope, needs
from serving.service import Live, Service
from serving.store import list_versions
from serving.transitions import Change, Command

router = APIRouter()


async def _service(request: Request) -> Service:  # async: a plain function would cost a thread hop
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


@router.post("/v1/decisions", response_model=DecisionResponse, tags=["decisions"])
@needs(Scope.DECIDE)
async def post_decision(service: ServiceOf, body: DecisionRequest) -> Response:
    answer = await decide(service, body.question())
    return Response(answer.model_dump_json(), media_type="application/json")  # validated already


@router.post("/v1/outcomes", tags=["decisions"])
@needs(Scope.DECIDE)
async def post_outcome(service: ServiceOf, body: OutcomeRequest) -> OutcomeResponse:
    service.guard.performance.add(body.champion_bps, body.challenger_bps)
    service.judge()
    return OutcomeResponse(outcomes=service.guard.performance.outcomes, phase=service.live.state.phase)


@router.get("/v1/models", tags=["models"])
@needs(Scope.MODELS_READ)
async def get_models(service: ServiceOf) -> dict[str, object]:
    loaded = {
        name: {"provider": model.engine.provider, "algorithm": model.engine.manifest.algorithm}
        for name, model in service.live.models.items()
    }
    return {"store": list_versions(service.settings.paths.state_dir / "models"), "loaded": loaded}


@router.get("/v1/rollout", tags=["rollout"])
@needs(Scope.ROLLOUT_READ)
async def get_rollout(service: ServiceOf) -> RolloutResponse:
    return _rollout(service, service.live)


@router.get("/v1/rollout/events", tags=["rollout"])
@needs(Scope.ROLLOUT_READ)
async def get_events(service: ServiceOf, query: Annotated[EventsQuery, Query()]) -> dict[str, object]:
    """Oldest first, at most 1000 with a version above `after`."""
    return {"events": [asdict(event) for event in service.events(query.after)]}


@router.post("/v1/rollout/start", tags=["rollout"])
@needs(Scope.ROLLOUT_PROMOTE)
async def post_start(service: ServiceOf, body: StartRequest) -> RolloutResponse:
    change = Change(Command.START, time.time(), body.reason, body.actor, body.champion, body.challenger)
    return _rollout(service, await service.command(change, body.version))


async def _command(service: Service, command: Command, body: RolloutRequest) -> RolloutResponse:
    change = Change(command, time.time(), body.reason, body.actor)
    return _rollout(service, await service.command(change, body.version))


OptionalBody = Annotated[RolloutRequest, Body(default_factory=RolloutRequest)]


@router.post("/v1/rollout/promote", tags=["rollout"])
@needs(Scope.ROLLOUT_PROMOTE)
async def post_promote(service: ServiceOf, body: OptionalBody) -> RolloutResponse:
    return await _command(service, Command.PROMOTE, body)


@router.post("/v1/rollout/pause", tags=["rollout"])
@needs(Scope.ROLLOUT_PROMOTE)
async def post_pause(service: ServiceOf, body: OptionalBody) -> RolloutResponse:
    return await _command(service, Command.PAUSE, body)


@router.post("/v1/rollout/resume", tags=["rollout"])
@needs(Scope.ROLLOUT_PROMOTE)
async def post_resume(service: ServiceOf, body: OptionalBody) -> RolloutResponse:
    return await _command(service, Command.RESUME, body)


@router.post("/v1/rollout/abort", tags=["rollout"])
@needs(Scope.ROLLOUT_ABORT)
async def post_abort(service: ServiceOf, body: OptionalBody) -> RolloutResponse:
    return await _command(service, Command.ABORT, body)


@router.post("/v1/rollout/rollback", tags=["rollout"])
@needs(Scope.ROLLOUT_ABORT)
async def post_rollback(service: ServiceOf, body: OptionalBody) -> RolloutResponse:
    return await _command(service, Command.ROLLBACK, body)


@router.get("/health/live", tags=["health"])
@needs(Scope.METRICS_READ, local=True)
async def get_live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/health/ready", tags=["health"])
@needs(Scope.METRICS_READ, local=True)
async def get_ready(service: ServiceOf) -> Response:
    if ready(service):
        return JSONResponse({"status": "ready"})
    return problem(503, "not_ready", "no champion is loaded; start the service with one, or a rollout")


@router.get("/health", tags=["health"])
@needs(Scope.METRICS_READ, local=True)
async def get_health(service: ServiceOf) -> Response:
    document = await health(service)
    return JSONResponse(document, 200 if document["overall_health"] == "healthy" else 503)


@router.get("/metrics", tags=["health"])
@needs(Scope.METRICS_READ, local=True)
async def get_metrics(service: ServiceOf) -> Response:
    return Response(service.telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


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
