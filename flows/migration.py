"""From PPO to HRM: all phases in order, a gate after each, and back to the PPO when one says no.

    ppo_baseline_capture -> hrm_training -> parallel_validation -> gradual_migration -> full_deployment
                                            └────────── a stop from here on: rollback ──────────┘

`run_migration` is the whole job for a command line: lock, control plane, progress, flows, report.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from rich.console import Console

from core.errors import HrmSystemError
from core.gates import Verdict
from core.settings import Settings, load_settings
from flows.control_plane import control_plane
from flows.full_deployment import full_deployment
from flows.gradual_migration import gradual_migration
from flows.hrm_training import hrm_training
from flows.incumbent import live_state, require_free_or_own
from flows.parallel_validation import parallel_validation
from flows.phases import dataset_of
from flows.ppo_baseline_capture import ppo_baseline_capture
from flows.progress import bars
from flows.report import write_report
from flows.rollback import rollback
from flows.run_state import Outcome, PhaseRecord, Run, inputs_of, load_run, migration_lock, open_run
from flows.service import adopt_state

PHASES: dict[str, Callable[[str], Any]] = {
    "ppo_baseline_capture": ppo_baseline_capture,
    "hrm_training": hrm_training,
    "parallel_validation": parallel_validation,
    "gradual_migration": gradual_migration,
    "full_deployment": full_deployment,
}
WITH_SERVICE = ("parallel_validation", "gradual_migration", "full_deployment")


class ExitCode(IntEnum):
    """What `hrm migrate` exits with."""

    MIGRATED = 0
    UNEXPECTED = 1
    BAD_INPUT = 2
    STOPPED = 3  # a gate failed
    INCONCLUSIVE = 4  # a gate had too little to judge by
    ROLLED_BACK = 5  # by the guard


@dataclass(frozen=True)
class MigrationResult:
    """`hrm migrate --json`."""

    outcome: Literal["migrated", "stopped", "rolled_back"]
    exit_code: int
    stopped_at: str | None
    reason: str
    phases: dict[str, float]  # seconds
    hrm: dict[str, float] | None  # score or return_pct, ci95_low, ci95_high, p99_ms, model_mb
    ppo: dict[str, float] | None
    report: str
    wall_s: float  # of this process; phases finished by an earlier one took theirs
    run: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_migration(
    settings: Settings, data: Path | None = None, *, seed: int = 0, console: Console | None = None
) -> MigrationResult:
    """Migrate, resuming an unfinished run of the same inputs. Progress goes to `console`, by default to stderr.

    Raises HrmSystemError on bad input; a gate that says no is a result.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(migration_lock(settings.paths.state_dir))
        run = _opened(settings, data, seed)
        stack.enter_context(bars(console or Console(stderr=True)))
        stack.enter_context(control_plane(settings.paths.state_dir, run.folder / "logs" / "prefect.log"))
        migration(run_dir=str(run.folder))
    return result_of(run, time.monotonic() - started)


def _opened(settings: Settings, data: Path | None, seed: int) -> Run:
    """The run, once it can begin: bad bars, or another model in charge, stop here and leave no run behind."""
    run = open_run(inputs_of(settings, data, seed))
    try:
        dataset_of(run)
        require_free_or_own(run, live_state(settings))
    except HrmSystemError:
        if not (run.folder / "phases").exists():
            shutil.rmtree(run.folder)
        raise
    return run


@flow(name="migration")
def migration(
    run_dir: str | None = None, data: str | None = None, seed: int = 0, approval: bool = False
) -> dict[str, Any]:
    """The phases in order. Without `run_dir`: the unfinished run of the file `data` and `seed`, or a new one.

    `approval`: ask a person before the promotion; unless one says yes, the run fails there, and can be continued.
    """
    phases = PHASES | {"full_deployment": partial(full_deployment, approval=approval)}
    if run_dir is not None:
        return migrate(load_run(Path(run_dir)), phases).model_dump()
    settings = load_settings()
    with migration_lock(settings.paths.state_dir):
        return migrate(_opened(settings, Path(data) if data else None, seed), phases).model_dump()


def migrate(run: Run, phases: dict[str, Callable[[str], Any]] = PHASES) -> Outcome:
    """Run the phases that have not finished, up to the first that does not pass; record the outcome and report."""
    outcome = Outcome(outcome="migrated", exit_code=ExitCode.MIGRATED)
    for name, phase in phases.items():
        phase(str(run.folder))
        record = run.phase(name)
        if record is None or record.verdict is not Verdict.PASS:
            outcome = _stop(run, name, record)
            break
    if outcome.outcome == "migrated":
        adopt_state(run)
    write_report(run, outcome)
    run.finish(outcome)  # last: a run that was killed before this line is continued, and finds its phases done
    return outcome


def _stop(run: Run, phase: str, record: PhaseRecord | None) -> Outcome:
    """Back to the incumbent if the service had the challenger; the reason in words."""
    if record is None:
        raise RuntimeError(f"{phase} ended without a record in {run.folder}")
    if phase in WITH_SERVICE:
        rollback(reason=f"{phase}: {record.reason}", run_dir=str(run.folder))
    if "rolled_back_by" in record.result:
        kind, code = "rolled_back", ExitCode.ROLLED_BACK
    else:
        kind = "stopped"
        code = ExitCode.STOPPED if record.verdict is Verdict.FAIL else ExitCode.INCONCLUSIVE
    return Outcome.model_validate({"outcome": kind, "exit_code": code, "stopped_at": phase, "reason": record.reason})


def result_of(run: Run, wall_s: float) -> MigrationResult:
    """The result of a finished run, from its records."""
    outcome = run.outcome
    if outcome is None:
        raise RuntimeError(f"{run.folder} has no outcome")
    records = {name: record for name in PHASES if (record := run.phase(name)) is not None}
    return MigrationResult(
        **outcome.model_dump(),
        phases={name: record.seconds for name, record in records.items()},
        hrm=_headline(records.get("hrm_training")),
        ppo=_headline(records.get("ppo_baseline_capture")),
        report=str(run.folder / "report.html"),
        wall_s=wall_s,
        run=run.id,
    )


def _headline(record: PhaseRecord | None) -> dict[str, float] | None:
    if record is None:
        return None
    measured = record.result["test"] | record.result["metrics"]
    names = ("score", "return_pct", "ci95_low", "ci95_high", "p99_ms", "model_mb")
    return {name: measured[name] for name in names if name in measured}
