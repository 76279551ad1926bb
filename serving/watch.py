"""What the service does beside answering: it measures itself, judges and tells, four times a second on the event loop.

Whether a model must go is also judged after every run (serving/decisions.py); here it is judged without any traffic.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from core import log as log_lines
from delivery.routing import Role
from serving.ladder import Rung
from serving.memory import Relief, measure_memory

if TYPE_CHECKING:
    from serving.service import Service

TICK_S = 0.25
TIDY_S = 1.0  # of decisions that a loss of power may cost their records


async def watch(service: Service) -> None:
    """Until cancelled."""
    relief = Relief(service)
    while True:
        measure_memory(service)
        relief.look()
        service.telemetry.alerts(alerts(service))
        service.telemetry.watched(service.live.models, log_lines.dropped_lines())
        service.telemetry.state_age.set(service.follower.age_s)
        if service.outbox is not None:
            service.telemetry.untold(service.outbox.untold.count, service.outbox.untold.oldest_s(time.time()))
        service.judge()
        due = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        service.lag_ms = max(0.0, (time.perf_counter() - due) * 1e3)


async def tidy(service: Service) -> None:
    """Until cancelled: records reach the disk, and old ones the archive."""
    while True:
        await asyncio.to_thread(service.records.tidy)
        await asyncio.sleep(TIDY_S)


def alerts(service: Service) -> dict[str, bool]:
    """By name, whether its level is passed now."""
    role: Role = "challenger" if service.live.state.challenger else "champion"
    return service.guard.alerts(service.settings.alerts, role) | {
        "degraded": service.ladder.rung is not Rung.FULL,
        "unrecorded": service.records.problem is not None,
    }


def warnings(service: Service) -> list[str]:
    """The alert levels that are passed now."""
    return [name for name, active in alerts(service).items() if active]
