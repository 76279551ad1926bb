"""The service's own readings (delivery/metrics.py, SERVICE_READINGS): of the candidate, since its attempt began.

Each of several workers sees the requests the kernel gave it. What it has seen it writes down every second
(delivery/seen.py), and each pair of outcomes once (delivery/earned.py); the controller, wherever it runs, judges what
all of them have written, and nothing else. So a reading does not depend on who holds the lease. No decision waits for
any of this. Each worker's guard goes on judging its own, without the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.errors import DataError
from core.settings import Triggers
from delivery.earned import Arms, Pairs
from delivery.judges import Reading, batch_means
from delivery.metrics import Metric
from delivery.progress import runs
from delivery.providers import External
from delivery.routing import Role
from delivery.seen import Seen, SeenStore, percentile_ms
from delivery.sequential import FIRST_LOOK_BATCHES
from delivery.store import RolloutStore
from delivery.transitions import ACTIVE, Phase, RolloutState
from serving.guard import Guard

if TYPE_CHECKING:
    from serving.service import Service

log = structlog.get_logger()

TELL_S = 1.0
PAIRED = frozenset({"outcome_bps", "performance_drop"})


class Together:
    """What all workers have seen, as readings. Reads the database; safe in threads."""

    def __init__(self, store: RolloutStore, seen: SeenStore, triggers: Triggers) -> None:
        self._store, self._seen, self._triggers = store, seen, triggers
        self._pairs = Pairs(store.engine, attempt=0)

    def read(self, name: str) -> Reading:
        """One of SERVICE_READINGS. Raises SQLAlchemyError and DataError."""
        state = self._store.read()
        if name in PAIRED:
            return paired(name, self._arms(state), self._triggers.performance_batch)
        return counted(name, self._seen.read(state.attempt, role_of(state), self._triggers.window_s))

    def _arms(self, state: RolloutState) -> Arms:
        since = state.stage_at if state.phase is Phase.PROMOTED else 0.0
        pairs = self._pairs
        if (pairs.attempt, pairs.since) != (state.attempt, since):
            pairs = self._pairs = Pairs(self._store.engine, state.attempt, since)
        return pairs.read()


class Readings:
    """A delivery.providers.Source: the service's own readings, and `external` for all others."""

    def __init__(
        self, together: Together, guard: Guard, external: External, told: Callable[[], Awaitable[None]]
    ) -> None:
        """`told` writes down what this process has seen up to now."""
        self._together, self._guard, self._external, self._told = together, guard, external, told

    async def read(self, metric: Metric) -> Reading:
        """Raises DataError (`provider_failed`) where the database, or whoever else was asked, did not answer."""
        name = metric.provider.service
        if name is None:
            return await self._external.read(metric)
        try:
            await self._told()
            reading = await asyncio.to_thread(self._together.read, name)
        except (SQLAlchemyError, DataError) as error:
            why = " ".join(str(getattr(error, "orig", None) or error).split())
            raise DataError(
                f"{metric.name}: what the workers have seen cannot be read: {why}",
                code="provider_failed",
                retryable=True,
            ) from error
        return _with_own(reading, self._guard.memory_gb) if name == "rss_gb" else reading


def readings(service: Service, seen: SeenStore) -> Readings:
    """Of a service that is open."""
    together = Together(service.store, seen, service.settings.triggers)
    return Readings(together, service.guard, service.steering.external, partial(told, service, seen))


async def tell(service: Service, seen: SeenStore) -> None:
    """Until cancelled: write down what this worker has seen, while anything could be judged by it.

    Also where nothing was seen: it says that the worker lives.
    """
    trouble = ""
    while True:
        try:
            await told(service, seen)
            trouble = ""
        except Exception as error:  # whatever it is: what this worker sees would be judged by nobody but itself
            if not trouble:
                foreseen = isinstance(error, SQLAlchemyError)
                remedy = "mend the state database; retrying"
                log.error("readings_not_told", error=str(error), remedy=remedy, exc_info=not foreseen)
            trouble = str(error)
        await asyncio.sleep(TELL_S)


async def told(service: Service, seen: SeenStore) -> None:
    """Once, if anything could be judged by it. Raises SQLAlchemyError."""
    state = service.live.state
    if state.phase in ACTIVE or runs(state, service.live.plan, time.time()):
        role = role_of(state)
        await asyncio.to_thread(seen.write, state.attempt, role, service.guard.seen(role))


def role_of(state: RolloutState) -> Role:
    """In which the candidate is judged now."""
    return "champion" if state.phase is Phase.PROMOTED else "challenger"


def counted(name: str, seen: Seen) -> Reading:
    """Those that are counts, or of them."""
    if name == "rss_gb":
        return Reading(seen.rss_gb or None, samples=1)
    if name == "p95_ms":
        return Reading(percentile_ms(seen.latencies, 0.95), samples=sum(seen.latencies.values()))
    if name == "samples":
        return Reading(float(seen.runs), samples=seen.runs)
    hits = {"error_ratio": seen.failed, "slow_ratio": seen.slow}[name]
    return Reading(hits / seen.runs if seen.runs else None, samples=seen.runs, hits=hits)


def paired(name: str, arms: Arms, batch: int) -> Reading:
    """Those of both arms' outcomes."""
    champion, challenger = arms
    if name == "outcome_bps":
        return Reading(samples=len(champion), champion=champion, challenger=challenger)
    return Reading(_drop(arms, batch), samples=len(champion))


def _drop(arms: Arms, batch: int) -> float | None:
    """How far the challenger's mean lies below the champion's, relative to it; None without enough data to say."""
    champion, challenger = (batch_means(arm, batch) for arm in arms)
    level = abs(float(champion.mean())) if len(champion) >= FIRST_LOOK_BATCHES else 0.0
    return float((champion - challenger).mean()) / level if level else None


def _with_own(reading: Reading, rss_gb: float) -> Reading:
    """This process knows its own memory, also before it has told of it."""
    return Reading(max(reading.value or 0.0, rss_gb) or None, samples=1)
