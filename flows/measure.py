"""Numbers about a published model: what it earns on held-out sessions and what it costs to run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np

from core.errors import ModelError
from flows.phases import dataset_of
from flows.run_state import Run
from serving.engine import Engine
from serving.store import load_version
from trading.bootstrap import Interval, mean_interval
from trading.dataset import Dataset
from trading.evaluation import Evaluation, evaluate, score_interval
from trading.features import Floats
from trading.observations import Policy, observe

OBSERVATIONS = 420
DEADLINE_S = 120
VALIDATION_SESSIONS = 100  # enough to rank weights, few enough to leave the time to training


def engine_of(run: Run, model_id: str) -> Engine:
    """The model as the service would run it. Raises ModelError if it is absent or damaged."""
    limit_mb = run.settings.performance.model_size_limit_mb
    return Engine(load_version(run.models, model_id, size_limit_mb=limit_mb), run.settings.serving)


def evaluate_on_test(run: Run, model_id: str) -> Evaluation:
    """The model on every held-out test session, exported and run as in production."""
    data = dataset_of(run)
    return evaluate(engine_of(run, model_id).decide, data.test, data.schema, data.cost_bps)


def validated(policy: Policy, data: Dataset) -> Evaluation:
    """A policy in training on the validation sessions: what both agents' weights are chosen by."""
    sessions = data.validation.sessions[:VALIDATION_SESSIONS]
    return evaluate(policy, data.validation, data.schema, data.cost_bps, sessions)


def selection_loss(evaluation: Evaluation) -> float:
    """What the best weights minimise, bps per session: regret, or the negative return without an optimum."""
    if evaluation.regret_bps is not None:
        return float(evaluation.regret_bps.mean())
    return -float(evaluation.return_bps.mean())


def footprint(run: Run, model_id: str) -> dict[str, Any]:
    """`latency_ms` of single decisions on held-out bars, `p50_ms`, `p99_ms`, `rss_mb`, `model_mb`, `provider`."""
    data, observations = dataset_of(run), run.folder / "observations.npz"
    at = data.test.decision_bars[:OBSERVATIONS]
    seen = observe(data.test, data.schema, at, np.zeros(len(at), dtype=np.int64))
    np.savez(observations, **seen._asdict())
    command = [sys.executable, "-m", "flows.footprint", str(run.models), model_id, str(observations)]
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=run.environment(OMP_NUM_THREADS="1"),
    )
    if done.returncode:
        raise ModelError(f"{model_id}: does not run in a process of its own:\n{done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured | percentiles(measured["latency_ms"])


def percentiles(latency_ms: Any) -> dict[str, float]:
    """p50_ms, p95_ms, p99_ms; NaN without data."""
    finite = np.asarray(latency_ms, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return dict.fromkeys(("p50_ms", "p95_ms", "p99_ms"), float("nan"))
    return {f"p{q}_ms": float(np.percentile(finite, q)) for q in (50, 95, 99)}


def arm_numbers(evaluation: Evaluation) -> dict[str, Any]:
    """One model's results: per session, in all, and the headline with its interval.

    The headline is the `score` (fraction of the oracle) where the optimum is known, else `return_pct`, the sum of
    session returns.
    """
    return {
        **headline(evaluation),
        "return_bps_per_day": float(evaluation.return_bps.mean()),
        "return_bps": evaluation.return_bps,
        "regret_bps": evaluation.regret_bps,
        "turnover": int(evaluation.turnover.sum()),
        "action_counts": evaluation.action_counts,
        "mean_segments": evaluation.mean_segments,
        "sessions": len(evaluation.sessions),
    }


def headline(evaluation: Evaluation) -> dict[str, float]:
    if evaluation.score is not None:
        return _named("score", score_interval(evaluation), scale=1.0)
    return return_pct(evaluation.return_bps)


def return_pct(return_bps: Floats) -> dict[str, float]:
    """Sum of session returns in percent, with the interval of its mean."""
    return _named("return_pct", mean_interval(return_bps), scale=len(return_bps) / 100.0)


def _named(name: str, interval: Interval, scale: float) -> dict[str, float]:
    values = {name: interval.value, "ci95_low": interval.ci95_low, "ci95_high": interval.ci95_high}
    return {key: value * scale for key, value in values.items()}
