"""The rollback drill on a schedule: its times are a service level indicator, kept in <state_dir>/drills.jsonl.

A rollback that was never tried does not work. The drill breaks models of its own in services of its own
(flows/drill.py), so nothing that trades notices; a trigger that does not fire, or a challenger that decides for longer
than a second after it did, fails the flow run, which is what people are told by.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext

from core.errors import RolloutError
from core.settings import Settings, load_settings
from flows.drill import SCENARIOS, run_drill

LAST_CHALLENGER_LIMIT_MS = 1000.0
FILE = "drills.jsonl"


@flow(name="rollback_drill", timeout_seconds=900)
def rollback_drill(triggers: list[str] | None = None) -> list[dict[str, Any]]:
    """Drill `triggers`, by default all. Raises RolloutError `drill_failed` if one is too late or loses decisions."""
    settings = load_settings()
    chosen = [scenario.trigger for scenario in SCENARIOS if not triggers or scenario.trigger in triggers]
    with tempfile.TemporaryDirectory(prefix="hrm-drill-") as folder:
        results = [{"at": time.time(), **drilled(settings, Path(folder), trigger)} for trigger in chosen]
    keep(results, settings.paths.state_dir / FILE)
    if FlowRunContext.get() is not None:
        create_table_artifact(key="rollback-drill", table=results)
    late = [one["trigger"] for one in results if not one["passed"]]
    if late:
        raise RolloutError(f"rollback drill: {', '.join(late)} late, lossy or dead; see {FILE}", code="drill_failed")
    return results


def drilled(settings: Settings, folder: Path, trigger: str) -> dict[str, Any]:
    """One trigger's times, and whether they are in order; one that does not fire is the worst of all times."""
    try:
        (found,) = run_drill(settings, folder, (trigger,))
    except RolloutError as error:
        return {"trigger": trigger, "passed": False, "problem": str(error)}
    return {**found, "passed": passed(found)}


def passed(drilled: dict[str, Any]) -> bool:
    """Whether the challenger's last decision came in time after the trigger, and no decision was lost."""
    return bool(drilled["last_challenger_ms"] <= LAST_CHALLENGER_LIMIT_MS and drilled["lost_decisions"] == 0)


def keep(results: list[dict[str, Any]], file: Path) -> None:
    """Append one line per trigger."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(one, sort_keys=True) + "\n" for one in results)
