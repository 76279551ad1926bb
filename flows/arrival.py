"""New bars are told to Prefect, where the environment names a server: the retraining starts (prefect.yaml).

Told once and not kept: where the server is gone a line of the log says so. Scheduled runs look at the bars that the
desk was deployed with (prefect.yaml), so whatever arrives there is found by the next one.
The event's id follows from the file's content, so that the same bars start one retraining however often they arrive.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import structlog

from core.files import sha256_hex
from serving.outbox import NAMESPACE, prefect_api

log = structlog.get_logger()

ARRIVED = "hrm.data.arrived"
TIMEOUT_S = 5.0


def tell_arrival(file: Path, environ: Mapping[str, str] | None = None) -> bool:
    """Whether Prefect knows about `file` now; False without a server, or with one that does not take it."""
    return tell(arrival(file), environ)


def tell(event: dict[str, Any], environ: Mapping[str, str] | None = None) -> bool:
    """Whether Prefect has the event now."""
    api = prefect_api(os.environ if environ is None else environ)
    if api is None:
        return False
    try:
        answer = httpx.post(
            f"{api.url}/events", json=[event], headers=dict(api.headers), timeout=TIMEOUT_S, trust_env=False
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        log.warning(
            "event_not_told", told=event["event"], error=str(error), remedy="the next scheduled run looks again"
        )
        return False
    return True


def arrival(file: Path) -> dict[str, Any]:
    """One element of the body of `POST /events`."""
    digest = sha256_hex(file.read_bytes())
    return {
        "id": str(uuid.uuid5(NAMESPACE, f"{ARRIVED}:{digest}")),
        "event": ARRIVED,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": f"hrm.data.{digest[:12]}", "prefect.resource.name": file.name},
        "payload": {"file": str(file.resolve()), "sha256": digest},
    }
