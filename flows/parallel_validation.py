"""Phase 3 (seed 6.1.1): both models decide on the same live bars, only the incumbent's decisions count.

The running service has the PPO as champion and the HRM in shadow; held-out sessions go through it over HTTP, each
arm in its own virtual portfolio, and the paired difference says who would have earned more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow, task

from flows.arms import compare
from flows.phases import complete, dataset_of, summary
from flows.progress import report
from flows.replay import Course, Replay, replay
from flows.run_state import Run, load_run
from flows.service import Lanes, RunningService, course_of, ensure_started, running_service

PHASE = "parallel_validation"
ROUNDS = 6  # of LANES sessions each


@flow(name=PHASE, timeout_seconds=7200)
def parallel_validation(run_dir: str) -> dict[str, Any]:
    """Shadow validation through the service. `run_dir`: a folder under <state_dir>/runs with two trained models."""
    return summary(complete(run_dir, PHASE, validate))


def validate(run: Run) -> dict[str, Any]:
    """flows.arms.compare's numbers, with the service's memory as `rss_gb`."""
    return replay_in_shadow(str(run.folder))


@task(name="replay_in_shadow")
def replay_in_shadow(run_dir: str) -> dict[str, Any]:
    run = load_run(Path(run_dir))
    lanes, course = Lanes.of(dataset_of(run).test), course_of(run)
    rounds = [chosen for number in range(ROUNDS) if (chosen := lanes.for_validation(number))]
    with running_service(run) as service:
        ensure_started(service, run, PHASE)
        replays = [_round(service, course, chosen, number / len(rounds)) for number, chosen in enumerate(rounds)]
        memory = service.memory_gb()
    compared = compare(replays, late_ms=run.settings.performance.inference_timeout_ms)
    return compared | {"metrics": compared["metrics"] | {"rss_gb": memory}}


def _round(service: RunningService, course: Course, lanes: dict[str, int], done: float) -> Replay:
    report(PHASE, done, f"{len(lanes)} symbols at a time")
    return replay(service, course, lanes)
