"""A plan and where a rollout stands in it, in a person's words: what the API answers and the terminal draws."""

from __future__ import annotations

from delivery.metrics import Analysis
from delivery.plan import Pause, Plan
from delivery.transitions import ACTIVE, RolloutState, approvals_missing, current_gate

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def duration(seconds: float) -> str:
    """As plans write it: 30m, 1d, 90s; the largest unit that leaves no rest."""
    for unit_s, name in _UNITS:
        if seconds and seconds % unit_s == 0:
            return f"{seconds / unit_s:.0f}{name}"
    return f"{seconds:g}s"


def gate(one: Pause | Analysis) -> str:
    """pause 30m | 2 whole sessions | until somebody promotes | analysis: errors, latency"""
    if isinstance(one, Analysis):
        return f"analysis: {', '.join(ref.name for ref in one.templates)}"
    if one.sessions is not None:
        return f"{one.sessions} whole session{'s' if one.sessions > 1 else ''}"
    return "until somebody promotes" if one.duration is None else f"pause {duration(one.duration)}"


def waits_for(state: RolloutState, plan: Plan) -> str:
    """What has to happen before the rollout goes on; empty where none is running."""
    if state.phase not in ACTIVE:
        return ""
    if state.paused:
        return "a resume"
    waiting = current_gate(state, plan)
    if waiting is not None:
        return gate(waiting)
    missing = approvals_missing(state, plan)
    if missing:
        return f"{missing} approval{'s' if missing > 1 else ''}"
    return "a moment for the promotion"
