"""`GET /api/explanations/{decision_id}`: why a decision was made, computed here and never where decisions are made.

One at a time in a thread of its own, each within a limit, a few may wait. What is computed is kept: a decision names
the bytes of its model by digest, so its explanation never changes. Failures are not kept.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Response

from backend import explanation_figures
from core.errors import DataError, ModelError
from core.settings import Settings
from serving import problems
from serving.audit import find
from serving.engine import load_engine
from serving.explain import Explanation, explain
from serving.openapi import failures
from serving.replay_cases import Arm
from serving.scopes import Scope, needs

LIMIT_S = 60.0
MOST_WAITING = 4
MOST_KEPT = 64
GONE = ("decision_not_found", "no_shadow")


class Explanations:
    """Answers by decision and arm. Used by one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explanation")
        self._kept: dict[tuple[str, Arm], asyncio.Future[bytes]] = {}

    async def get(self, decision_id: str, arm: Arm) -> bytes:
        """Whoever asks while it is computed waits for that one. Raises DataError, ModelError."""
        key = decision_id, arm
        kept = self._kept.get(key)
        if kept is None or (kept.done() and kept.exception() is not None):
            self._kept.pop(key, None)
            self._make_room()
            kept = asyncio.get_running_loop().run_in_executor(self._thread, partial(self._computed, *key))
            self._kept[key] = kept
        return await asyncio.shield(kept)  # of many who wait one may leave

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _make_room(self) -> None:
        done = [key for key, kept in self._kept.items() if kept.done()]
        if len(self._kept) - len(done) >= MOST_WAITING:
            raise ModelError(
                f"{MOST_WAITING} explanations are under way; ask again soon, or use `hrm explain`", code="overloaded"
            )
        for key in done[: max(0, len(self._kept) - MOST_KEPT + 1)]:
            del self._kept[key]

    def _computed(self, decision_id: str, arm: Arm) -> bytes:
        record = find(self._settings.paths.state_dir / "decisions", decision_id)
        until = time.monotonic() + LIMIT_S
        return encoded(explain(record, partial(load_engine, self._settings), arm=arm, until=until))


def router(settings: Settings) -> APIRouter:
    """Over the records and models of one state directory."""
    explanations = Explanations(settings)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(explanations.close)

    routes = APIRouter(prefix="/api/explanations", tags=["explanations"], lifespan=running)

    @routes.get("/{decision_id}", response_model=dict[str, Any], responses=failures(404, 409, 503))
    @needs(Scope.ROLLOUT_READ)
    async def one(decision_id: str, arm: Arm = "answer") -> Response:
        """Which bars and account features moved a decision, and how its belief went from segment to segment."""
        try:
            return Response(await explanations.get(decision_id, arm), media_type="application/json")
        except DataError as error:
            if error.code not in GONE:
                raise
            return problems.problem(404, error.code, str(error))

    return routes


def encoded(told: Explanation) -> bytes:
    """The numbers, `text` and `figures` by name (plotly's) as one JSON object."""
    numbers = json.dumps(asdict(told) | {"text": explanation_figures.text(told)}, allow_nan=False)
    drawn = ",".join(f'"{name}":{figure}' for name, figure in explanation_figures.figures(told).items())
    return f'{numbers[:-1]}, "figures": {{{drawn}}}}}'.encode()
