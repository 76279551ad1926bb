"""Data that drifts pauses a rollout (prefect.yaml): the challenger keeps the traffic it has, and gets no more.

A pause is for a person to look at; it takes nothing away. What is worse than drift the service's own guard sees, and
rolls back without any flow. Idempotent: where nothing is rolled out, or somebody has paused, nothing changes.
"""

from __future__ import annotations

from typing import Any

import structlog
from prefect import flow

from core.errors import ConfigError
from core.settings import load_settings
from flows.service import ACTOR, reachable_service
from serving import calls

log = structlog.get_logger()


@flow(name="rollout_pause", timeout_seconds=120, retries=3, retry_delay_seconds=5)
def rollout_pause(reason: str = "requested", event_id: str | None = None) -> dict[str, Any]:
    """Pause the rollout of the service at `serving.host:port`.

    Args:
        reason: why, in words; recorded in the rollout's log.
        event_id: of the event that asked for it, recorded for tracing.

    Raises ConfigError (then the run fails, which is told) if no service answers, ServiceError if it refuses.
    """
    settings = load_settings()
    with reachable_service(settings) as service:
        if service is None:
            where = f"{settings.serving.host}:{settings.serving.port}"
            raise ConfigError(f"no service at {where}, nothing was paused; start it with `hrm serve`", retryable=True)
        state = service.rollout()
        if state.challenger is None or state.paused:
            return {"paused": state.paused, "changed": False, "version": state.version}
        traced = f"{reason} (event {event_id})" if event_id else reason
        state = service.client.call(calls.command("pause", reason=traced[:500], actor=ACTOR))
    log.warning("rollout_paused", reason=reason, event_id=event_id, version=state.version)
    return {"paused": state.paused, "changed": True, "version": state.version}
