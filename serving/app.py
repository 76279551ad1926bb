"""Composition: settings in, an ASGI application out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import Scope

from core.errors import HrmSystemError
from core.settings import Settings
from serving import openapi, problems
from serving.auth import Authenticator
from serving.door import Door, Refusal
from serving.outbox import prefect_api
from serving.refusals import AT_THE_DOOR, command_of
from serving.routes import BODIES, ROUTES
from serving.service import Service


def create_app(settings: Settings, *, champion: str | None = None) -> FastAPI:
    """The service. `champion` (name/version) counts only while the rollout state names none.

    Raises ConfigError for an unusable token file. At start-up, ConfigError and ModelError are left in
    `app.state.startup_error` for the process to report.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings, champion, prefect_api(os.environ), os.environ)
        try:
            await service.open()
        except HrmSystemError as error:
            app.state.startup_error = error
            raise
        app.state.service = service
        yield
        await service.close()

    def refused(refusal: Refusal, scope: Scope) -> None:
        service: Service = app.state.service
        service.telemetry.refused(refusal.code)
        if refusal.status in AT_THE_DOOR and (command := command_of(scope)):
            service.refusals.at_the_door(command, refusal.code, refusal.detail, scope)

    authenticator = Authenticator(settings)
    app = FastAPI(title="HRM trading: inference service", version="1", lifespan=lifespan, routes=ROUTES)
    app.add_middleware(
        Door,
        authenticator=authenticator,
        serving=settings.serving,
        routes=app.routes,
        refused=refused,
    )
    problems.install(app)
    openapi.install(app, BODIES)
    return app
