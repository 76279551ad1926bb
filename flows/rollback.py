"""Phase of last resort (seed 6.1.2): the old champion decides again. Idempotent: running it twice changes nothing.

The service itself takes traffic away within a second, without this flow. This confirms it: the latch is set, the
weight is 0, the facts are recorded, people are told. What becomes of the challenger's positions the plan says, by
trigger and symbol: `mode` is that of symbols the plan does not name; `handover` is what was open. Then it tidies up
(flows/rollback_tidying.py): scheduled retraining rests until a person looked, the registry's aliases follow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from core.errors import ConfigError, HrmSystemError, RolloutError
from core.files import write_json
from core.settings import load_settings
from delivery.handover import mode_for
from delivery.plan import Handover
from flows.rollback_positions import open_positions
from flows.rollback_tidying import follow_in_registry, pause_retraining
from flows.run_state import Run, load_run
from flows.service import RunningService, reachable_service, running_service
from serving import calls

log = structlog.get_logger()

ANY_SYMBOL = ""  # that no plan names


@flow(name="rollback", timeout_seconds=120)
def rollback(
    reason: str = "requested", run_dir: str | None = None, event_id: str | None = None, version: int | None = None
) -> dict[str, Any]:
    """Roll back and confirm.

    Args:
        reason: why, in words; recorded in the rollout's log.
        run_dir: a migration's folder; without one the service at `serving.host:port` is meant.
        event_id: of the event that asked for it, recorded for tracing.
        version: of the rollout's log, at which that was. A rollout that began later is left alone: a run that waited
            for a worker would take the new challenger away for the old one's fault, and for good.
    """
    done = roll_back(reason, run_dir, event_id, version)
    if done["superseded"]:
        return done
    if run_dir is not None or FlowRunContext.get() is None:  # a migration's: the desk's Prefect hears from its service
        notify(done)
        return done
    notify(done, pause_retraining())
    follow_in_registry(done["version"])
    return done


def _transient(_task: Any, _run: Any, state: Any) -> bool:
    """Try again only what may succeed the second time."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, HrmSystemError) and error.retryable


@task(name="confirm_rollback", retries=3, retry_delay_seconds=1, retry_condition_fn=_transient)
def roll_back(
    reason: str, run_dir: str | None = None, event_id: str | None = None, version: int | None = None
) -> dict[str, Any]:
    """The confirmed state as a record, which is also written beside the run or into the state directory."""
    if run_dir is not None:
        run = load_run(Path(run_dir))
        with running_service(run) as service:
            record = _confirmed(service, reason, event_id)
            record |= {"handover": _handover(run, service.plan().handover, record["trigger"])}
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
        state = found.rollout()
        if version is not None and state.version > version and not state.latched:
            log.warning("rollback_superseded", reason=reason, event_id=event_id, of=version, version=state.version)
            return {"superseded": True, "champion": state.champion, "version": state.version, "event_id": event_id}
        record = _confirmed(found, reason, event_id)
        record |= _taken(found, settings.paths.state_dir, record)
    write_json(settings.paths.state_dir / "rollbacks" / f"{record['version']}.json", record)
    return record


def _confirmed(service: RunningService, reason: str, event_id: str | None) -> dict[str, Any]:
    state = service.roll_back(reason)
    if not state.latched or state.weight != 0 or not state.durable:
        raise RolloutError(f"the rollback is not confirmed: {state}", code="not_confirmed", retryable=True)
    kept = state.model_dump(include={"champion", "weight", "latched", "epoch", "version", "reason", "trigger"})
    mode = mode_for(service.plan().handover, state.trigger, ANY_SYMBOL)
    return kept | {"mode": mode, "event_id": event_id, "confirmed_at": time.time(), "superseded": False}


def _handover(run: Run, policy: Handover, trigger: str) -> list[dict[str, Any]]:
    """The challenger's open positions at the last bar before the rollback, and what becomes of each."""
    open_positions: dict[str, int] = {}
    for number in range(1, len(run.settings.rollout.steps) + 1):
        step = run.step(f"gradual_migration-{number}")
        open_positions = step["handover"] if step else open_positions
    return [
        {"symbol": symbol, "position": position, "mode": mode_for(policy, trigger, symbol)}
        for symbol, position in sorted(open_positions.items())
    ]


def _taken(service: RunningService, state_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """`handover`: what the model held that was taken back, in every ledger; `unread`: the ledgers that say nothing."""
    (event, *_) = service.client.call(calls.events(after=record["version"] - 1)).events
    (*_, model) = json.loads(event.state)["rejected"] or [""]
    mode = partial(mode_for, service.plan().handover, record["trigger"])
    rows, unread = open_positions(state_dir, model, record["epoch"], mode)
    return {"handover": rows, "unread": unread}


def notify(record: dict[str, Any], aftermath: Sequence[str] = ()) -> None:
    """Tell people: a log line at warning level, and an artifact where a flow runs, which ends with `aftermath`."""
    log.warning("rolled_back", **{name: value for name, value in record.items() if name != "handover"})
    if FlowRunContext.get() is None:
        return
    positions = "\n".join(_line(row) for row in record["handover"])
    unread = [f"Not readable, so perhaps not all of them: {problem}" for problem in record.get("unread", [])]
    create_markdown_artifact(
        key="rollback",
        markdown=f"## Rolled back: {record['reason']}\n\n{record['champion']} decides, epoch {record['epoch']}, "
        f"positions: {record['mode']}.\n\n| symbol | position | mode | ledger | owner by now |\n|---|---|---|---|---|\n"
        + "\n\n".join([positions, *unread, *aftermath])
        + "\n",
    )


def _line(row: dict[str, Any]) -> str:
    """A migration's positions are in no ledger."""
    where = f"{row.get('ledger', '')} | {row.get('owner', '')}"
    return f"| {row['symbol']} | {row['position']:+d} | {row['mode']} | {where} |"
