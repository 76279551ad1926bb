"""`GET /docs`: every route of the backend in words, for whoever is logged in.

FastAPI's own pages fetch their scripts from another host. Here such a script would run as the desk's page does: with
the session of whoever looks, and so with their buttons. This page has no script, and asks nobody else.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Response

from backend.dashboard.page import HEADERS, digest, environment
from serving.scopes import needs


def router(app: FastAPI) -> APIRouter:
    """Over the document that the app writes of itself (/openapi.json)."""
    routes = APIRouter(include_in_schema=False)

    @routes.get("/docs", response_model=None)
    @needs(None)
    def reference() -> Response:
        page = environment().get_template("reference.html.j2").render(document=app.openapi(), digest=digest())
        return Response(page, media_type="text/html", headers=HEADERS)

    return routes
