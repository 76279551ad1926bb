"""Composition: settings in, an ASGI application out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from core.errors import HrmSystemError
from core.settings import Settings
from serving import openapi, problems
from serving.auth import Authenticator
from serving.door import Door
from serving.outbox import prefect_api
from serving.routes import BODIES, ROUTES
from serving.scopes import needs
from serving.service import Service


def create_app(settings: Settings, *, champion: str | None = None) -> FastAPI:
    """The service. `champion` (name/version) counts only while the rollout state names none.

    Raises ConfigError for an unusable token file. At start-up, ConfigError and ModelError are left in
    `app.state.startup_error` for the process to report.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings, champion, prefect_api(os.environ))
        try:
            await service.open()
        except HrmSystemError as error:
            app.state.startup_error = error
            raise
        app.state.service = service
        yield
        await service.close()

    def refused(code: str) -> None:
        app.state.service.telemetry.refused(code)

    authenticator = Authenticator(settings)
    app = FastAPI(title="HRM trading: inference service", version="1", lifespan=lifespan, routes=ROUTES)
    pages = {app.openapi_url, app.docs_url, app.redoc_url, app.swagger_ui_oauth2_redirect_url}  # FastAPI's own
    for route in app.routes:
        if isinstance(route, Route) and route.path in pages:
            needs(None)(route.endpoint)
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
