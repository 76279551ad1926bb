"""The HTTP interface (docs/architecture.md, "Service"). Here: what is stored and loaded, and how the service is."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from serving import routes_books, routes_decisions, routes_inference, routes_rollout
from serving.batcher import Batcher
from serving.health import health, ready
from serving.openapi import failures
from serving.plain import PlainRoute
from serving.problems import problem
from serving.schemas import PLAIN_NAME, HealthResponse, LoadedModel, ModelsResponse, Status
from serving.scopes import Scope, needs
from serving.service import Service
from serving.store import list_versions

NOT_READY = "no champion is loaded; start the service with one, or a rollout"
METRICS = "text/plain; version=0.0.4; charset=utf-8"

models = APIRouter(prefix="/v1/models", tags=["models"])
states = APIRouter(route_class=PlainRoute, tags=["health"])
Name = Annotated[str, Path(pattern=PLAIN_NAME)]


@models.get("")
@needs(Scope.MODELS_READ)
async def get_models(request: Request) -> ModelsResponse:
    """What the store holds, and what is loaded."""
    service: Service = request.app.state.service
    stored = await asyncio.to_thread(list_versions, service.settings.paths.state_dir / "models")
    return ModelsResponse(
        store=stored,
        loaded={name: _described(model) for name, model in service.live.models.items()},
    )


@models.post("/{name}/{version}/load", responses=failures(409, 503))
@needs(Scope.MODELS_WRITE)
async def post_load(request: Request, name: Name, version: Name) -> LoadedModel:
    """Have a published version loaded beside the rollout's models, until it is unloaded. Loading twice is no error."""
    service: Service = request.app.state.service
    return _described(await service.load(f"{name}/{version}"))


@models.post("/{name}/{version}/unload", responses=failures(409, 503))
@needs(Scope.MODELS_WRITE)
async def post_unload(request: Request, name: Name, version: Name) -> Status:
    """Let go of a model that the rollout does not need; what it was asked is still answered."""
    service: Service = request.app.state.service
    await service.unload(f"{name}/{version}")
    return Status(status="unloaded")


@states.get("/health/live", response_model=Status)
@needs(Scope.METRICS_READ, local=True)
async def get_live(_request: Request) -> Response:
    """Whether the process answers."""
    return JSONResponse({"status": "live"})


@states.get("/health/ready", response_model=Status, responses=failures(503))
@needs(Scope.METRICS_READ, local=True)
async def get_ready(request: Request) -> Response:
    """Whether the model that decides is loaded, warm, and matches its golden outputs."""
    if ready(request.app.state.service):
        return JSONResponse({"status": "ready"})
    return problem(503, "not_ready", NOT_READY)


@states.get("/health", response_model=HealthResponse, responses={503: {"model": HealthResponse}})
@needs(Scope.METRICS_READ, local=True)
async def get_health(request: Request) -> Response:
    """The five health checks, run now. 503 unless all pass."""
    document = await health(request.app.state.service)
    return JSONResponse(document, 200 if document["overall_health"] == "healthy" else 503)


@states.get("/metrics", response_class=Response, responses={200: {"content": {METRICS: {}}}})
@needs(Scope.METRICS_READ, local=True)
async def get_metrics(request: Request) -> Response:
    """For Prometheus to scrape."""
    service: Service = request.app.state.service
    return Response(await asyncio.to_thread(service.telemetry.exposition.text), media_type=METRICS)


def _described(model: Batcher) -> LoadedModel:
    manifest = model.engine.manifest
    return LoadedModel(
        provider=model.engine.provider,
        algorithm=manifest.algorithm,
        observation=manifest.observation.model_dump(mode="json"),
    )


# In a row, as the app matches them: what is asked most comes first. An included router would cost 80 us a request.
ROUTES = [
    *routes_decisions.router.routes,
    *routes_books.router.routes,
    *states.routes,
    *routes_rollout.router.routes,
    *models.routes,
    *routes_inference.router.routes,
]
BODIES = (*routes_decisions.BODIES, *routes_books.BODIES, *routes_rollout.BODIES, *routes_inference.BODIES)
