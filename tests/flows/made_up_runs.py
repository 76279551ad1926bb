"""Runs with made-up numbers, for tests of what happens around the phases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from core.gates import Verdict
from core.settings import Settings, load_settings
from flows.migration import ExitCode
from flows.run_state import Outcome, PhaseRecord, Run, inputs_of, open_run, to_json

PPO_ID, HRM_ID = "ppo/made-up", "hrm/made-up"


def settings_in(state_dir: Path, **environ: str) -> Settings:
    return load_settings(preset="compact", environ={"HRM_PATHS__STATE_DIR": str(state_dir), **environ})


def new_run(state_dir: Path, data: Path | None = None, seed: int = 0) -> Run:
    return open_run(inputs_of(settings_in(state_dir), data, seed))


def arm_result(mean: float, optimum_known: bool, seed: int, sessions: int = 400) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    headline = "score" if optimum_known else "return_pct"
    return {
        headline: mean / 40,
        "ci95_low": mean / 40 - 0.02,
        "ci95_high": mean / 40 + 0.02,
        "return_bps_per_day": mean,
        "return_bps": rng.normal(mean, 60, sessions),
        "regret_bps": rng.gamma(2, (45 - mean) / 2, sessions) if optimum_known else None,
        "sessions": sessions,
    }


def phase_results(optimum_known: bool = True) -> dict[str, dict[str, Any]]:
    """What each phase of a good migration returns."""
    rng = np.random.default_rng(7)
    cost = {"p50_ms": 0.1, "p99_ms": 0.4, "rss_mb": 120.0, "rss_gb": 0.12, "model_mb": 0.3}
    advantage = {"advantage_bps_per_day": 6.1, "advantage_ci95_low": 4.8, "advantage_ci95_high": 7.3}
    latency = {"champion": rng.gamma(4, 0.3, 900), "challenger": rng.gamma(5, 0.8, 900)}
    steps = [_step(weight, at) for at, weight in ((10, 5), (18, 25), (26, 50), (34, 100))]
    return {
        "ppo_baseline_capture": {
            "model": PPO_ID,
            "cost_bps": 1.5,
            "curve": [(i * 10_000, 0.6 - 0.9 * np.exp(-i / 20) + rng.normal(0, 0.05)) for i in range(80)],
            "latency_ms": rng.gamma(4, 0.03, 400),
            "test": arm_result(24, optimum_known, 1),
            "metrics": cost,
        },
        "hrm_training": {
            "model": HRM_ID,
            "curve": [
                {"epoch": e, "train_loss": 1 / e, "loss_bps": 9 + 30 / e + (e == 10), "mean_segments": 1.5}
                for e in (2, 4, 6, 8, 10)
            ],
            "latency_ms": rng.gamma(4, 0.1, 400),
            "test": arm_result(30, optimum_known, 2),
            "metrics": cost | advantage | {"parity_max_abs_error": 1e-6, "hrm_return_bps_per_day": 30.0},
        },
        "parallel_validation": {
            "metrics": advantage
            | {
                "decisions": 8880,
                "action_agreement_ratio": 0.81,
                "position_agreement_ratio": 0.77,
                "challenger_error_ratio": 0.0,
                "challenger_late_ratio": 0.0,
                "challenger_p99_ms": 9.0,
                "rss_gb": 0.3,
            },
            "agreement": (np.eye(5) * 900 + rng.integers(0, 200, (5, 5))).astype(int),
            "latency_ms": latency,
        },
        "gradual_migration": {"steps": steps, "events": rollout_log(), "metrics": steps[-1]["metrics"]},
        "full_deployment": {
            "events": rollout_log(),
            "metrics": {"champion_is_hrm": 1.0, "error_ratio": 0.0, "healthy_checks": 5},
        },
    }


def _step(weight: int, at: float, verdict: str = "pass") -> dict[str, Any]:
    metrics = {
        "challenger_error_ratio": 0.0,
        "challenger_late_ratio": 0.0,
        "challenger_p99_ms": 9.0,
        "rss_gb": 0.3,
        "challenger_decisions": 15 * weight,
    }
    latency_ms = {"challenger": np.random.default_rng(weight).gamma(5, 0.8, 300)}
    return {
        "weight": weight,
        "started_at": at - 8,
        "ended_at": at,
        "verdict": verdict,
        "metrics": metrics,
        "latency_ms": latency_ms,
        "handover": {},
    }


def rollout_log(rolled_back: bool = False) -> list[dict[str, Any]]:
    changes = [
        ("start", "shadow", 0, 0),
        *(("promote", "canary", w, t) for t, w in ((2, 5), (10, 25), (18, 50), (26, 100))),
    ]
    changes += [("rollback", "rolled_back", 0, 31)] if rolled_back else [("promote", "promoted", 0, 34)]
    return [
        {"version": i, "at": float(at), "command": command, "state": _state(phase, weight)}
        for i, (command, phase, weight, at) in enumerate(changes, start=1)
    ]


def _state(phase: str, weight: int) -> str:
    return json.dumps({"phase": phase, "weight": weight, "challenger": HRM_ID})


def record(run: Run, phase: str, result: dict[str, Any], verdict: Verdict = Verdict.PASS) -> None:
    """Record a phase as its gate judges it, or with another verdict on its first limit."""
    from flows.phases import _judged

    plain = to_json(result)
    judged, reason, checks = _judged(run, phase, plain)
    if verdict is not Verdict.PASS:
        from dataclasses import replace

        checks = (replace(checks[0], verdict=verdict), *checks[1:])
        judged, reason = verdict, reason or f"{checks[0].metric}: {checks[0].why}"
    run.record(PhaseRecord(phase=phase, verdict=judged, reason=reason, checks=checks, result=plain, seconds=12.3))


def finished_run(run: Run, stopped_at: str | None = None, verdict: Verdict = Verdict.FAIL) -> Run:
    """A run with all phases, or up to the one that stopped it."""
    for phase, result in phase_results(run.inputs.data is None).items():
        stops = phase == stopped_at
        record(run, phase, result, verdict if stops else Verdict.PASS)
        if stops:
            break
    if stopped_at is None:
        run.finish(Outcome(outcome="migrated", exit_code=ExitCode.MIGRATED))
    else:
        code = ExitCode.STOPPED if verdict is Verdict.FAIL else ExitCode.INCONCLUSIVE
        stop = run.phase(stopped_at)
        assert stop is not None
        run.finish(Outcome(outcome="stopped", exit_code=code, stopped_at=stopped_at, reason=stop.reason))
    return run
