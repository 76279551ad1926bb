"""People are told when the control plane itself is in trouble (prefect.yaml): a run that failed or crashed, an
automation whose action failed, a rollback that could therefore not be confirmed.

They are told by the same webhooks and mail as of rollouts (`delivery.notifications`), and by a line of the log and an
artifact in any case. It has no tag `hrm`, so that its own failure does not start it again.
"""

from __future__ import annotations

import asyncio
import os

import structlog
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from core.errors import HrmSystemError
from core.settings import Settings, load_settings
from delivery.notifications import Notification, targets_of
from delivery.outbound import Outbound
from delivery.sending import Severity

log = structlog.get_logger()


@flow(name="alert", timeout_seconds=120)
def alert(title: str, text: str = "", event_id: str | None = None) -> list[str]:
    """Tell everybody who is told of critical events; the names of those who were. Raises the first refusal."""
    log.error("control_plane_alert", title=title, text=text, event_id=event_id)
    if FlowRunContext.get() is not None:
        create_markdown_artifact(key="alert", markdown=f"## {title}\n\n{text}\n")
    return asyncio.run(_told(load_settings(), Notification(Severity.CRITICAL, event_id or title, title, text)))


async def _told(settings: Settings, notification: Notification) -> list[str]:
    """One who cannot be reached keeps nobody else from being told."""
    told: list[str] = []
    problems: list[HrmSystemError] = []
    for target in targets_of(settings.delivery, Outbound(settings.delivery), os.environ):
        try:
            await target.send(notification)
            told.append(target.name)
        except HrmSystemError as error:
            log.error("alert_not_delivered", target=target.name, error=str(error))
            problems.append(error)
    if problems:
        raise problems[0]
    return told
