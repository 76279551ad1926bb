"""What the figures of `hrm bench serving` are to be, and whether they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

Where = Literal["anywhere", "cpu", "gpu"]


@dataclass(frozen=True)
class Goal:
    """`path` leads to the figure in the results. `preset`: of the model under load; None for any."""

    path: str
    least: float | None = None
    most: float | None = None
    where: Where = "anywhere"
    preset: str | None = None
    some_runs_only: bool = False  # its part may have been measured without it


GOALS = (
    Goal("load.ours.decisions_per_s", least=1000, where="cpu", preset="default"),
    Goal("load.ours.latency_ms.mean", most=100, where="cpu", preset="default"),
    Goal("load.ours.latency_ms.mean", most=20, where="gpu", preset="paper_27m"),
    Goal("load.ratio_to_best_peer", least=3, where="cpu", preset="default", some_runs_only=True),
    Goal("few.ours.latency_ms.p99", most=50, where="cpu", preset="default"),
    Goal("full_depth.ours.latency_ms.p99", most=50, where="cpu"),
    Goal("full_depth.ours.latency_ms.p99", most=10, where="gpu", preset="paper_27m"),
    Goal("mixed.shallow_p50_ratio", most=0.5),
    *(Goal(f"{part}.ours.error_ratio", most=0) for part in ("load", "few", "full_depth", "mixed")),
    Goal("start.default.ready_s", most=3),
    Goal("start.default.rss_mb", most=300, where="cpu"),
    Goal("start.paper_27m.rss_mb", most=500, where="cpu"),
    Goal("soak.errors", most=0),
    Goal("soak.slope_mb_per_hour.slope", most=1, some_runs_only=True),  # a short one has none
)


def judged(found: dict[str, Any], preset: str, *, gpu: bool, goals: tuple[Goal, ...] = GOALS) -> list[dict[str, Any]]:
    """One row per goal that applies: figure, value, limit, reached. Not reached where its part lacks the figure."""
    here = "gpu" if gpu else "cpu"
    rows = []
    for goal in goals:
        value: Any = reduce(_member, goal.path.split("."), found)
        measured = value is not None or (goal.path.partition(".")[0] in found and not goal.some_runs_only)
        if goal.where in ("anywhere", here) and goal.preset in (None, preset) and measured:
            rows.append({"figure": goal.path, "value": value, "goal": _words(goal), "reached": _reached(goal, value)})
    return rows


def _member(tree: Any, name: str) -> Any:
    return tree.get(name) if isinstance(tree, dict) else None


def _reached(goal: Goal, value: float | None) -> bool:
    if value is None:
        return False
    return (goal.least is None or value >= goal.least) and (goal.most is None or value <= goal.most)


def _words(goal: Goal) -> str:
    return f"at least {goal.least:g}" if goal.least is not None else f"at most {goal.most:g}"
