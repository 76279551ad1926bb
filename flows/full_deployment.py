"""Phase 5 (seed 6.1.1): the challenger becomes the champion, and must be seen to decide everything, in good health.

Deployed to Prefect, a person is asked first (flows/approvals.py); `hrm migrate` is its own approval.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task

from flows.approvals import promote_when_approved
from flows.measure import percentiles
from flows.phases import complete, dataset_of, summary
from flows.progress import report
from flows.replay import arms_of, column, replay
from flows.run_state import Run, load_run
from flows.service import LANES, Lanes, RunningService, course_of, running_service

PHASE = "full_deployment"
CHAMPION = ("champion",)


@flow(name=PHASE, timeout_seconds=3600)
def full_deployment(run_dir: str, approval: bool = False) -> dict[str, Any]:
    """Promote and verify.

    Args:
        run_dir: a folder under <state_dir>/runs whose rollout has reached its last step.
        approval: ask a person before the promotion. Raises RolloutError `not_approved`, and promotes nothing.
    """
    return summary(complete(run_dir, PHASE, partial(deploy, approval=approval)))


def deploy(run: Run, *, approval: bool = False) -> dict[str, Any]:
    """`health` checks, the rollout's `events`, the gate's `metrics`; `rolled_back_by` if the guard acted."""
    if approval:
        promote_when_approved(run)
    return promote_and_verify(str(run.folder))


@task(name="promote_and_verify")
def promote_and_verify(run_dir: str) -> dict[str, Any]:
    run = load_run(Path(run_dir))
    model = run.result("hrm_training")["model"]
    with running_service(run) as service:
        state = service.rollout()
        if not state.latched and state.champion != model:
            service.promote("the last step passed")
        report(PHASE, 0.2, "verifying")
        verified = _verify(service, run, model)
        state, events = service.rollout(), service.events()
    return verified | {"events": events} | ({"rolled_back_by": state.reason} if state.latched else {})


def _verify(service: RunningService, run: Run, model: str) -> dict[str, Any]:
    """Sessions of all symbols with the new champion alone, then the five health checks."""
    lanes = Lanes.of(dataset_of(run).test).for_rollout(first_symbol=0, first_session=-LANES)
    arms = arms_of([replay(service, course_of(run), lanes, roles=CHAMPION, keep_going=_show)], "champion")
    latency_ms, failed = column(arms, "latency_ms"), column(arms, "failed")
    health = service.health()
    metrics = {
        "decisions": len(failed),
        "champion_is_hrm": float(np.mean(column(arms, "model") == model)),
        "error_ratio": float(failed.mean()),
        "healthy_checks": sum(check.status == "healthy" for check in health.individual_checks.values()),
        "rss_gb": service.memory_gb(),
    }
    return {
        "metrics": metrics | percentiles(latency_ms),
        "latency_ms": latency_ms,
        "health": health.model_dump(mode="json"),
    }


def _show(ratio: float) -> bool:
    report(PHASE, 0.2 + 0.8 * ratio, "verifying")
    return True
