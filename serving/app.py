"""Composition: settings in, an ASGI application out."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from core.errors import HrmSystemError
from core.settings import Settings
from serving import problems
from serving.auth import Door, read_or_create_token
from serving.outbox import prefect_api
from serving.routes import router
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

    token = read_or_create_token(settings.paths.state_dir)
    app = FastAPI(title="HRM trading: inference service", version="1", lifespan=lifespan)
    app.add_middleware(Door, token=token, max_body_kb=settings.serving.max_body_kb)
    app.include_router(router)
    problems.install(app)
    return app
