"""`GET /api/dashboard/{summary,panels/NAME}`: all that the page shows, from what is durably on record.

A panel that cannot be made says why in its place; the others are made all the same.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from backend.dashboard import decision_figures, log_panels, rollout_panels, trading_panels
from backend.dashboard.panel import Panel, market_is_open
from backend.dashboard.reading import Shared
from backend.dashboard.rollout_panels import RolloutReader
from backend.dashboard.service import ServiceReader
from backend.dashboard.tail import Tail
from core.errors import HrmSystemError
from core.settings import Settings
from delivery.state_database import place_of
from serving import calls, problems
from serving.calls import ServiceError
from serving.openapi import failures
from serving.record_format import DecisionFacts
from serving.scopes import Scope, needs
from trading.switch import facts, read

LONGEST_CHOICE = 128
# What comes of files that others wrote, are writing, or have taken away.
UNREADABLE = (HrmSystemError, SQLAlchemyError, sqlite3.Error, OSError, ValueError, KeyError, TypeError)
Compute = Callable[[str], Panel]
Told = TypeVar("Told", bound=BaseModel)

log = structlog.get_logger(__name__)


class Panels:
    """By name; each takes what was chosen in it."""

    def __init__(self, settings: Settings) -> None:
        state_dir, reader = settings.paths.state_dir, RolloutReader(place_of(settings))
        holdings = trading_panels.Holdings(state_dir)
        self._shared = Shared()
        self._panels: dict[str, Compute] = _of_decisions(settings) | {
            "price": lambda chosen: trading_panels.price(state_dir, chosen),
            "positions": lambda _: holdings.panel(),
            "equity": lambda _: rollout_panels.equity(reader),
            "timeline": lambda _: rollout_panels.timeline(reader),
            "verdicts": lambda _: rollout_panels.verdicts(reader),
            "log": lambda _: log_panels.log(state_dir, reader),
        }

    @property
    def names(self) -> list[str]:
        return sorted(self._panels)

    async def get(self, name: str, chosen: str) -> bytes:
        """As JSON; shared by all who ask within a second."""
        key = f"{name} {chosen}" if name == "price" else name  # nothing is chosen in the others
        return await self._shared.get(key, lambda: _made(name, chosen, self._panels[name]))


def _of_decisions(settings: Settings) -> dict[str, Compute]:
    """Panels of the same newest decisions."""
    tail = Tail(settings.paths.state_dir / "decisions")
    limits_ms = {"NFR1.1": settings.performance.inference_timeout_ms, "rollback": settings.triggers.latency_ms}

    def of(make: Callable[[Sequence[DecisionFacts]], Panel]) -> Compute:
        return lambda _: make(tail.decisions())

    return {
        "agreement": of(decision_figures.agreement),
        "actions": of(decision_figures.actions),
        "depth": of(decision_figures.depth),
        "halting": of(decision_figures.halting),
        "complexity": of(decision_figures.complexity),
        "latency": of(decision_figures.latency(limits_ms)),
        "decisions": of(log_panels.decisions),
    }


def router(settings: Settings) -> APIRouter:
    routes = APIRouter(prefix="/api/dashboard", tags=["dashboard"])
    panels, service = Panels(settings), ServiceReader(settings.serving.url)

    @routes.get("/panels/{name}", response_model=dict[str, Any], responses=failures(404))
    @needs(Scope.ROLLOUT_READ)
    async def panel(name: str, chosen: Annotated[str, Query(max_length=LONGEST_CHOICE)] = "") -> Response:
        """A figure (plotly's JSON) or a table, how old it is, and in words why there is none."""
        if name not in panels.names:
            return problems.problem(404, "no_such_panel", f"there is no panel of that name; {', '.join(panels.names)}")
        return Response(await panels.get(name, chosen), media_type="application/json")

    @routes.get("/summary", response_model=dict[str, Any])
    @needs(Scope.ROLLOUT_READ)
    async def summary(request: Request) -> Response:
        """Who decides, whether orders may go out, and whether the inference service answers."""
        now = time.time()
        told: dict[str, Any] = {"now": now, "market_open": market_is_open(now)}
        told["switch"] = facts(read(settings.paths.state_dir))
        told["rollout"], told["service_problem"] = await _told(service.read(calls.rollout(), request))
        told["health"], told["health_problem"] = None, None
        if told["service_problem"] is None:
            told["health"], told["health_problem"] = await _told(service.health(request))
        return JSONResponse(told)

    return routes


async def _told(answer: Awaitable[Told]) -> tuple[dict[str, Any] | None, str | None]:
    """What the service said, or why there is nothing."""
    try:
        return (await answer).model_dump(mode="json"), None
    except ServiceError as error:
        return None, str(error)


def _made(name: str, chosen: str, make: Compute) -> bytes:
    try:
        return make(chosen).encoded()
    except UNREADABLE as error:
        log.warning("panel_not_made", panel=name, error=str(error))
        why = str(getattr(error, "orig", None) or error)
        return Panel(empty=f"This cannot be read now: {why}. The log of the backend says more.").encoded()
