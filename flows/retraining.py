"""On a schedule: a fresh baseline and a fresh challenger on the latest data, judged offline.

Traffic does not move. The run stays open, so that a person who likes its report continues it with `hrm migrate`
on the same data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from core.settings import load_settings
from flows.hrm_training import hrm_training
from flows.ppo_baseline_capture import ppo_baseline_capture
from flows.run_state import inputs_of, migration_lock, open_run


@flow(name="retraining")
def retraining(data: str | None = None, seed: int = 0) -> dict[str, Any]:
    """The verdicts of both phases. `data`: a CSV or parquet file; None: the synthetic market."""
    settings = load_settings()
    with migration_lock(settings.paths.state_dir):
        run = open_run(inputs_of(settings, Path(data) if data else None, seed))
        verdicts = [phase(str(run.folder)) for phase in (ppo_baseline_capture, hrm_training)]
    return {"run": run.id, "phases": verdicts}
