"""The seed's backend API (7.1): backtests, what trading holds, and the switch, behind the inference service's door.

The same credentials open it: `<state_dir>/api_token`, and keys and tokens with a scope; every route says which. Open
are health, on loopback, and the bare page (backend/dashboard/page.py). A noun is a module with
`router(settings) -> APIRouter`, and a line in `ROUTERS`.
"""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

from backend import backtest_routes, dashboard, explanations, live_data, manual_trades, metrics, trading_routes
from core.settings import Settings
from serving import openapi, problems
from serving.auth import Authenticator
from serving.door import Door
from serving.scopes import Scope, needs

DESCRIPTION = """
What a person asks of trading: backtests, orders by hand, positions, the switch, and what happens as it happens.

Failures are `application/problem+json` (RFC 9457) with a stable `code`. Credentials travel as `Authorization: Bearer`.
The stream is a websocket, `/ws/live-data/{user_id}`, which a ticket opens.
"""
TAGS = [
    {"name": "backtest", "description": "A published model over bars of a symbol."},
    {"name": "explanations", "description": "What moved a decision on record, computed beside the service."},
    {"name": "trading", "description": "What is held, whose it is, orders of a person, and the switch."},
    {"name": "live-data", "description": "Tickets for the stream, and how it is."},
    {"name": "dashboard", "description": "The desk's page: sessions of browsers, figures and tables."},
    {"name": "rollout", "description": "Commands that are passed on to the inference service as their caller."},
    {"name": "health", "description": "Whether the process answers, and what Prometheus scrapes."},
]
ROUTERS = (
    backtest_routes.router,
    explanations.router,
    live_data.router,
    manual_trades.router,
    metrics.router,
    trading_routes.router,
)


def create_app(settings: Settings) -> FastAPI:
    """The backend over one state directory. Raises ConfigError for an unusable token file."""
    # Without FastAPI's pages: their scripts come from another host (backend/dashboard/reference.py).
    app = FastAPI(title="HRM trading: backend", version="1", docs_url=None, redoc_url=None)
    app.add_middleware(Door, authenticator=Authenticator(settings), serving=settings.serving, routes=app.routes)
    problems.install(app)
    app.include_router(_health())
    for router in ROUTERS:
        app.include_router(router(settings))
    dashboard.install(app, settings)
    openapi.install(app, description=DESCRIPTION, tags=TAGS)
    return app


def _health() -> APIRouter:
    routes = APIRouter(prefix="/health", tags=["health"])

    @routes.get("/live")
    @needs(Scope.METRICS_READ, local=True)
    def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    return routes
