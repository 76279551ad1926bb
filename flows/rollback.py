"""Phase of last resort (seed 6.1.2): the old champion decides again. Idempotent: running it twice changes nothing.

The service itself takes traffic away within a second, without this flow. This confirms it: the latch is set, the
weight is 0, positions are handed over, the facts are recorded, people are told. Hand-over mode is `adopt`: the
account belongs to the symbol, so the champion finds the challenger's open position as its own and manages it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import structlog
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from core.errors import ConfigError, HrmSystemError, RolloutError
from core.files import write_json
from core.settings import load_settings
from flows.run_state import Run, load_run
from flows.service import RunningService, reachable_service, running_service

log = structlog.get_logger()

HANDOVER_MODE = "adopt"


@flow(name="rollback", timeout_seconds=120)
def rollback(reason: str = "requested", run_dir: str | None = None, event_id: str | None = None) -> dict[str, Any]:
    """Roll back and confirm.

    Args:
        reason: why, in words; recorded in the rollout's log.
        run_dir: a migration's folder; without one the service at `serving.host:port` is meant.
        event_id: of the event that asked for it, recorded for tracing.
    """
    done = roll_back(reason, run_dir, event_id)
    notify(done)
    return done


def _transient(_task: Any, _run: Any, state: Any) -> bool:
    """Try again only what may succeed the second time."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, HrmSystemError) and error.retryable


@task(name="confirm_rollback", retries=3, retry_delay_seconds=1, retry_condition_fn=_transient)
def roll_back(reason: str, run_dir: str | None = None, event_id: str | None = None) -> dict[str, Any]:
    """The confirmed state as a record, which is also written beside the run or into the state directory."""
    if run_dir is not None:
        run = load_run(Path(run_dir))
        with running_service(run) as service:
            record = _confirmed(service, reason, event_id) | {"handover": _handover(run)}
        write_json(run.folder / "steps" / "rollback.json", {"result": record})
        return record
    settings = load_settings()
    with reachable_service(settings) as found:
        if found is None:
            raise ConfigError(
                f"no service of {settings.paths.state_dir} at {settings.serving.host}:{settings.serving.port}; start "
                f"it with `hrm serve`, or pass run_dir",
                retryable=True,
            )
        record = _confirmed(found, reason, event_id) | {"handover": []}
    write_json(settings.paths.state_dir / "rollbacks" / f"{record['version']}.json", record)
    return record


def _confirmed(service: RunningService, reason: str, event_id: str | None) -> dict[str, Any]:
    state = service.roll_back(reason)
    if not state.latched or state.weight != 0 or not state.durable:
        raise RolloutError(f"the rollback is not confirmed: {state}", code="not_confirmed", retryable=True)
    kept = state.model_dump(include={"champion", "weight", "latched", "epoch", "version", "reason"})
    return kept | {"mode": HANDOVER_MODE, "event_id": event_id, "confirmed_at": time.time()}


def _handover(run: Run) -> list[dict[str, Any]]:
    """The challenger's open positions at the last bar before the rollback: now the champion's."""
    open_positions: dict[str, int] = {}
    for number in range(1, len(run.settings.rollout.steps) + 1):
        step = run.step(f"gradual_migration-{number}")
        open_positions = step["handover"] if step else open_positions
    return [{"symbol": symbol, "position": position} for symbol, position in sorted(open_positions.items())]


def notify(record: dict[str, Any]) -> None:
    """Tell people: a log line at warning level, and an artifact where a flow runs."""
    log.warning("rolled_back", **{name: value for name, value in record.items() if name != "handover"})
    if FlowRunContext.get() is None:
        return
    positions = "\n".join(f"| {one['symbol']} | {one['position']:+d} |" for one in record["handover"])
    create_markdown_artifact(
        key="rollback",
        markdown=f"## Rolled back: {record['reason']}\n\n{record['champion']} decides, epoch {record['epoch']}, "
        f"positions are adopted by it.\n\n| symbol | position |\n|---|---|\n{positions}\n",
    )
