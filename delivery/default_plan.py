"""The plan of a rollout that names none: the seed's steps, triggers and alert levels (settings.yaml) as a plan."""

from __future__ import annotations

from typing import Any

from core.settings import Settings
from delivery.plan import Plan, promoted_by_hand
from delivery.sequential import ALPHA, BETA, HEALTHY_FRACTION, SLOW_RATIO

# A market that is closed has no data, for hours: any number of inconclusive measurements are in order. The guard acts
# within a second on a sudden change; this watches for weeks.
_WATCHED = {"interval": "1m", "count": 0, "inconclusiveLimit": -1}
SETTLED = 1000  # samples that outweigh a stall of the machine, which makes twenty of them slow at once


def default_plan(settings: Settings) -> Plan:
    """Promoted by hand, and watched from the shadow on: the seed's triggers abort, its alert levels are shown."""
    return Plan.model_validate(
        {
            "steps": promoted_by_hand(settings.rollout.steps),
            "analysisTemplates": {"triggers": _triggers(settings), "alerts": _alerts(settings)},
            "backgroundAnalysis": {"templates": [{"name": "triggers"}, {"name": "alerts"}]},
        }
    )


def _triggers(settings: Settings) -> dict[str, Any]:
    """Named as the guard's triggers are, so that a hand-over is the same whoever was first."""
    t = settings.triggers
    return {
        "args": {"memory_gb": t.memory_gb},
        "metrics": [
            _ratio("error_rate_exceeded", "error_ratio", t.error_ratio),
            _ratio("latency_violation", "slow_ratio", SLOW_RATIO),
            _level("memory_overflow", "rss_gb", "memory_gb"),
            {
                "name": "performance_degradation",
                "provider": {"service": "outcome_bps"},
                "judge": {
                    "kind": "conf_seq",
                    "direction": "decrease",
                    "allowed": t.performance_drop,
                    "alpha": t.performance_alpha,
                    "batch": t.performance_batch,
                },
                "minSamples": t.min_samples,
                **_WATCHED,
            },
        ],
    }


def _alerts(settings: Settings) -> dict[str, Any]:
    a, enough = settings.alerts, {"minSamples": settings.triggers.min_samples}
    return {
        "args": a.model_dump(),
        "metrics": [
            metric | {"dryRun": True, "failureLimit": -1}
            for metric in (
                _level("error_ratio_alert", "error_ratio", "error_ratio") | enough,
                _level("latency_alert", "p95_ms", "latency_ms") | enough,
                _level("memory_warning", "rss_gb", "memory_warning_gb"),
                _level("memory_mitigation", "rss_gb", "memory_mitigation_gb"),
                _level("performance_alert", "performance_drop", "performance_drop") | enough,
            )
        ],
    }


def _level(name: str, reading: str, limit: str) -> dict[str, Any]:
    return {"name": name, "provider": {"service": reading}, "failureCondition": f"result > args.{limit}", **_WATCHED}


def _ratio(name: str, reading: str, limit: float) -> dict[str, Any]:
    metric = {"name": name, "provider": {"service": reading}, **_WATCHED}
    if not 0 < limit < 1:  # none is tolerated, or all: there is no second hypothesis
        return metric | {"failureCondition": f"result > {limit!r}"}
    hypotheses = {"healthy": HEALTHY_FRACTION * limit, "unhealthy": limit}
    return metric | {"judge": {"kind": "sprt", "alpha": ALPHA, "beta": BETA, **hypotheses}, "minSamples": SETTLED}
