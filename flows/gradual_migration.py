"""Phase 4 (seed 6.1.1): the challenger takes over symbol by symbol, one gated step at a time.

At each weight of `rollout.steps` sessions run through the service with real routing; the step's gate must pass
before the next one. The guard inside the service may take all traffic back at any moment: the phase notices
before the next bar and stops there. Finished steps are on disk, so a killed rollout continues at its step.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from prefect import flow, task

from core.gates import Verdict, judge
from flows.arms import compare
from flows.phases import complete, dataset_of, summary
from flows.progress import report
from flows.replay import Replay, replay
from flows.run_state import Run, load_run, to_json
from flows.service import LANES, Lanes, RunningService, course_of, ensure_started, running_service

PHASE = "gradual_migration"
MAX_ROUNDS = 4  # of LANES sessions per step, while the challenger has decided too little for the gate


@flow(name=PHASE, timeout_seconds=7200)
def gradual_migration(run_dir: str) -> dict[str, Any]:
    """Canary steps to the full weight. `run_dir`: a folder under <state_dir>/runs with a validated challenger."""
    return summary(complete(run_dir, PHASE, roll_out))


def roll_out(run: Run) -> dict[str, Any]:
    """`steps` in order, `events` of the rollout, the last step's `metrics`; `rolled_back_by` if the guard acted."""
    return take_steps(str(run.folder))


@task(name="canary_steps")
def take_steps(run_dir: str) -> dict[str, Any]:
    run = load_run(Path(run_dir))
    steps: list[dict[str, Any]] = []
    with running_service(run) as service:
        ensure_started(service, run, PHASE)
        for number in range(1, len(run.settings.rollout.steps) + 1):
            name = f"{PHASE}-{number}"
            step = run.step(name) or _take_step(service, run, number)
            run.record_step(name, step)
            steps.append(step)
            if step["verdict"] != Verdict.PASS:
                break
        state, events = service.rollout(), service.events()
    result = {"steps": steps, "events": events, "metrics": steps[-1]["metrics"]}
    return result | ({"rolled_back_by": state.reason} if state.latched else {})


def _take_step(service: RunningService, run: Run, number: int) -> dict[str, Any]:
    """Give the challenger the step's weight, let sessions pass, judge."""
    state = service.rollout()
    if not state.latched and state.step < number:
        state = service.promote(f"step {number - 1} passed")
    started = time.time()
    replays = _sessions(service, run, number)
    compared = compare(replays, late_ms=run.settings.performance.inference_timeout_ms)
    metrics = to_json(compared["metrics"] | {"rss_gb": service.memory_gb()})
    gate = judge(metrics, run.settings.gates.gradual_migration)
    latched = service.rollout().latched
    return {
        "weight": run.settings.rollout.steps[number - 1],
        "started_at": started,
        "ended_at": time.time(),
        "verdict": Verdict.FAIL if latched else gate.verdict,
        "reason": "the guard rolled back" if latched else gate.reason,
        "metrics": metrics,
        "latency_ms": compared["latency_ms"],
        "symbols": len({symbol for one in replays for symbol in one.symbols}),
        "challenger_symbols": compared["challenger_symbols"],
        "handover": {symbol: held for one in replays for symbol, held in one.handover.items()},
    }


def _sessions(service: RunningService, run: Run, number: int) -> list[Replay]:
    """Rounds of sessions until the challenger has decided as often as the gate asks, or MAX_ROUNDS."""
    lanes, course = Lanes.of(dataset_of(run).test), course_of(run)
    wanted = _decisions_wanted(run)
    replays: list[Replay] = []
    for attempt in range(MAX_ROUNDS):

        def keep_going(ratio: float, attempt: int = attempt) -> bool:
            _show(run, number, attempt, ratio)
            return not service.rollout().latched

        first = ((number - 1) * MAX_ROUNDS + attempt) * LANES
        chosen = lanes.for_rollout(first_symbol=attempt * LANES, first_session=first)
        replays.append(replay(service, course, chosen, keep_going=keep_going))
        if not replays[-1].finished or challenger_decisions(replays) >= wanted:
            break
    return replays


def challenger_decisions(replays: list[Replay]) -> int:
    return sum(decided.acting for one in replays for decided in one.arms["challenger"].decided)


def _decisions_wanted(run: Run) -> float:
    """What the gate asks for; one where it does not."""
    limits = run.settings.gates.gradual_migration
    return next((limit.min for limit in limits if limit.metric == "challenger_decisions" and limit.min), 1.0)


def _show(run: Run, number: int, attempt: int, ratio: float) -> None:
    steps = run.settings.rollout.steps
    note = f"{steps[number - 1]} % of symbols" + (f", round {attempt + 1}" if attempt else "")
    report(PHASE, (number - 1 + ratio) / len(steps), note)
