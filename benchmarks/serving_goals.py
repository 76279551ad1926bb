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


GOALS = (
    Goal("load.ours.decisions_per_s", least=1000, where="cpu", preset="default"),
    Goal("load.ours.latency_ms.mean", most=100, where="cpu", preset="default"),
    Goal("load.ours.latency_ms.mean", most=20, where="gpu", preset="paper_27m"),
    Goal("load.ratio_to_best_peer", least=3, where="cpu", preset="default"),
    Goal("few.ours.latency_ms.p99", most=50, where="cpu", preset="default"),
    Goal("full_depth.ours.latency_ms.p99", most=50, where="cpu"),
    Goal("full_depth.ours.latency_ms.p99", most=10, where="gpu", preset="paper_27m"),
    Goal("mixed.shallow_p50_ratio", most=0.5),
    *(Goal(f"{part}.ours.error_ratio", most=0) for part in ("load", "few", "full_depth", "mixed")),
    Goal("start.default.ready_s", most=3),
    Goal("start.default.rss_mb", most=300, where="cpu"),
    Goal("start.paper_27m.rss_mb", most=500, where="cpu"),
    Goal("soak.errors", most=0),
    Goal("soak.slope_mb_per_hour.slope", most=1),
)


def judged(found: dict[str, Any], preset: str, *, gpu: bool) -> list[dict[str, Any]]:
    """One row per goal that applies and whose figure was measured: figure, value, limit, reached."""
    here = "gpu" if gpu else "cpu"
    rows = []
    for goal in GOALS:
        value: Any = reduce(_member, goal.path.split("."), found)
        if goal.where in ("anywhere", here) and goal.preset in (None, preset) and value is not None:
            rows.append({"figure": goal.path, "value": value, "goal": _words(goal), "reached": _reached(goal, value)})
    return rows


def _member(tree: Any, name: str) -> Any:
    return tree.get(name) if isinstance(tree, dict) else None


def _reached(goal: Goal, value: float) -> bool:
    return (goal.least is None or value >= goal.least) and (goal.most is None or value <= goal.most)


def _words(goal: Goal) -> str:
    return f"at least {goal.least:g}" if goal.least is not None else f"at most {goal.most:g}"
