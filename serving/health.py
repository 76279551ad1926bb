"""The seed's five health checks (6.2.1): each passes, fails or breaks for itself, and all must pass."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import structlog

from core.errors import ModelError
from core.halting import minimum_segments
from serving.batcher import Observation, Row, Run
from serving.book import BookObservation
from serving.engine import Engine
from serving.service import Service
from serving.watch import warnings

PROBES = 3  # the median of three: one hiccup of the machine is not the model's slowness
UNRELATED = math.sqrt(2)  # relative distance of two unrelated states of equal norm: nothing converges there

log = structlog.get_logger()


@dataclass(frozen=True)
class Check:
    passed: bool
    details: dict[str, object]


async def health(service: Service) -> dict[str, object]:
    """The seed's document, with `overall_health` "healthy" only when all five checks pass."""
    checks = {check.__name__: await _outcome(check, service) for check in CHECKS}
    healthy = all(check["status"] == "healthy" for check in checks.values())
    return {
        "overall_health": "healthy" if healthy else "unhealthy",
        "individual_checks": checks,
        "warnings": warnings(service),
        "ladder": service.ladder.statistics(),
        "records": {"problem": service.records.problem},
        "timestamp": datetime.now(UTC).isoformat(),
    }


def ready(service: Service) -> bool:
    """Whether the model that decides is loaded, warm and matches its golden outputs."""
    return service.live.model(service.live.state.champion) is not None


async def check_model_loading(service: Service) -> Check:
    state = service.live.state
    named = [name for name in (state.champion, state.challenger) if name]
    loaded = {
        name: {"provider": engine.provider, "golden_max_abs_error": engine.golden_max_abs_error}
        for name, engine in _engines(service).items()
    }
    passed = bool(named) and all(name in loaded for name in named)
    return Check(passed, {"needed": named, "loaded": loaded, "durable": service.live.durable})


async def check_inference_performance(service: Service) -> Check:
    """Runs the models now: median of a few probes against NFR1.1."""
    limit_ms = service.settings.performance.inference_timeout_ms
    measured: dict[str, object] = {}
    passed = bool(service.live.models)
    for name in service.live.models:
        runs = [await _probe(service, name) for _ in range(PROBES)]
        latency_ms = statistics.median(run.latency_ms for run in runs)
        fast = all(run.decisions is not None for run in runs) and latency_ms < limit_ms
        measured[name] = {
            "inference_time_ms": latency_ms,
            "meets_requirement": fast,
            "action_generated": all(run.decisions is not None for run in runs),
            "error": runs[-1].error,
        }
        passed = passed and fast
    return Check(passed, {"limit_ms": limit_ms, "models": measured})


async def check_memory_usage(service: Service) -> Check:
    """The larger of resident set and growth on devices (serving/memory.py) against NFR1.3."""
    limit_gb, guard = service.settings.performance.memory_limit_gb, service.guard
    details: dict[str, object] = {"rss_gb": guard.rss_gb, "device_gb": guard.device_gb, "limit_gb": limit_gb}
    return Check(0 < guard.memory_gb < limit_gb, details)


async def check_act_mechanism(service: Service) -> Check:
    """A complex market must be given at least the minimum of segments, and reasoning must end by the maximum."""
    details: dict[str, object] = {}
    passed = bool(service.live.models)
    for name, engine in _engines(service).items():
        rule = engine.manifest.halting
        if rule is None or engine.manifest.algorithm == "ppo":
            details[name] = {"applies": False, "why": "decides in one pass"}
            continue
        run = await _probe(service, name, complexity=1.0)
        segments = int(run.decisions.segments[0]) if run.decisions is not None else 0
        minimum = int(minimum_segments(np.array([_probed(engine, 1.0).complexity]), rule)[0])
        inside = minimum <= segments <= rule.max_segments
        details[name] = {"applies": True, "segments": segments, "minimum": minimum, "maximum": rule.max_segments}
        passed = passed and inside
    return Check(passed, details)


async def check_hierarchical_convergence(service: Service) -> Check:
    """The high-level state must settle: its last relative change below that of unrelated states."""
    details: dict[str, object] = {}
    passed = bool(service.live.models)
    for name, engine in _engines(service).items():
        if engine.manifest.algorithm == "ppo":
            details[name] = {"applies": False, "why": "has no recurrent state"}
            continue
        settled = all(math.isfinite(change) for change in engine.residuals)
        settled = settled and (not engine.residuals or engine.residuals[-1] < UNRELATED)
        changes = [change if math.isfinite(change) else None for change in engine.residuals]  # JSON has no infinity
        details[name] = {"applies": True, "relative_change_of_z_H": changes}
        passed = passed and settled
    return Check(passed, details)


async def _outcome(check: Callable[[Service], Awaitable[Check]], service: Service) -> dict[str, object]:
    """Of one check. What one of them meets is its own: the others are answered all the same."""
    try:
        found = await check(service)
    except Exception as error:
        log.error("health_check_broke", check=check.__name__, error=repr(error))
        return {"status": "error", "error": str(error) or repr(error)}
    return {"status": "healthy" if found.passed else "unhealthy", "details": found.details}


async def _probe(service: Service, model_id: str, complexity: float = 0.0) -> Run:
    """One run on a zero observation. Not shown to the guard. Raises ModelError where the model went meanwhile."""
    model = service.live.models.get(model_id)
    if model is None:
        raise ModelError(f"{model_id} was unloaded while it was checked; ask again", code="model_not_loaded")
    return await model.run(_probed(model.engine, complexity))


def _engines(service: Service) -> dict[str, Engine]:
    return {name: model.engine for name, model in service.live.models.items()}


def _probed(engine: Engine, complexity: float) -> Row:
    """Zeros; a book has no complexity."""
    first, second = (np.zeros(shape, np.float32) for shape in engine.row_shapes.values())
    if engine.manifest.algorithm == "hrm_book":
        return BookObservation(instruments=first, limits=second)
    return Observation(bars=first, account=second, complexity=complexity, position=0)


CHECKS: tuple[Callable[[Service], Awaitable[Check]], ...] = (
    check_model_loading,
    check_inference_performance,
    check_memory_usage,
    check_act_mechanism,
    check_hierarchical_convergence,
)
