"""What every phase shares: finished work is not repeated, a gate judges the numbers, the verdict is recorded.

A phase is a plain function from a run to its numbers, `{"metrics": {...}, ...}`; its gate is
`settings.gates.<phase>`. Flows pass run folders and ids between each other, never models.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.context import FlowRunContext

from core.errors import DataError
from core.gates import Check, Verdict, judge
from flows.progress import report
from flows.run_state import PhaseRecord, Run, inputs_of, load_run, to_json
from trading.dataset import Dataset, build_dataset

Work = Callable[[Run], dict[str, Any]]


def complete(run_dir: str, phase: str, work: Work) -> PhaseRecord:
    """The record of a phase: the one on disk if it finished before, else the result of `work` and its gate."""
    run = load_run(Path(run_dir))
    record = run.phase(phase) or _carry_out(run, phase, work)
    report(phase, 1.0, record.verdict if not record.reason else f"{record.verdict}: {record.reason}")
    _publish(record)
    return record


def _carry_out(run: Run, phase: str, work: Work) -> PhaseRecord:
    report(phase, 0.0, "starting")
    started = time.monotonic()
    result = to_json(work(run))
    verdict, reason, checks = _judged(run, phase, result)
    seconds = time.monotonic() - started
    record = PhaseRecord(phase=phase, verdict=verdict, reason=reason, checks=checks, result=result, seconds=seconds)
    run.record(record)
    return record


def _judged(run: Run, phase: str, result: dict[str, Any]) -> tuple[Verdict, str, tuple[Check, ...]]:
    """The gate's verdict, unless the guard has rolled back meanwhile: that is a fail, whatever the numbers."""
    gate = judge(result["metrics"], getattr(run.settings.gates, phase))
    if "rolled_back_by" in result:
        return Verdict.FAIL, f"rolled back by the service: {result['rolled_back_by']}", gate.checks
    return gate.verdict, gate.reason, gate.checks


def summary(record: PhaseRecord) -> dict[str, Any]:
    """What a flow returns: small enough for the control plane."""
    return {"phase": record.phase, "verdict": record.verdict.value, "reason": record.reason}


def _publish(record: PhaseRecord) -> None:
    """Show the gate in Prefect, when a flow is running."""
    if FlowRunContext.get() is None:
        return
    key = record.phase.replace("_", "-")
    create_table_artifact(key=f"{key}-gate", table=gate_rows(record), description=record.reason or None)
    metrics = "\n".join(f"| {name} | {value} |" for name, value in sorted(record.result["metrics"].items()))
    create_markdown_artifact(
        key=f"{key}-metrics",
        markdown=f"## {record.phase}: {record.verdict}\n\n| metric | value |\n|---|---|\n{metrics}\n",
    )


def gate_rows(record: PhaseRecord) -> list[dict[str, Any]]:
    """One row per limit, in words."""
    return [
        {
            "metric": check.metric,
            "value": "no data" if check.value is None else f"{check.value:.4g}",
            "limit": check.limit,
            "verdict": check.verdict.value,
            "why": check.why,
        }
        for check in record.checks
    ]


def dataset_of(run: Run) -> Dataset:
    """The run's markets. The same run gives the same ones; kept while the process works on it.

    Raises DataError if the file cannot be used, or no longer holds the bars that the run began with.
    """
    return _dataset(run.folder)


@lru_cache(maxsize=1)
def _dataset(folder: Path) -> Dataset:
    run = load_run(folder)
    inputs = run.inputs
    data = build_dataset(run.settings, inputs.data, inputs.seed)
    if inputs_of(run.settings, inputs.data, inputs.seed).data_digest != inputs.data_digest:
        remedy = "write bars beside it and rename them, then start again"
        raise DataError(f"{inputs.data}: other bars than run {run.id} began with; {remedy}", code="data_changed")
    return data


def free_version(run: Run, name: str) -> str:
    """A version that is not published yet: the run's id, numbered if the run was killed after publishing."""
    versions = [run.id, *(f"{run.id}-{attempt}" for attempt in range(2, 100))]
    return next(version for version in versions if not (run.models / name / version).exists())
