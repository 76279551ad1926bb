"""`hrm bench learning`: what is learned in a given time, beside the incumbent, the controls and the ceiling.

One module per task; each has its CONTENDERS and `run(settings, contenders, ...)`, with a dict for each in its answer.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import described
from core.errors import ConfigError
from core.settings import Settings
from flows.progress import bars
from hrm.distributed import training_device

SCORED = ("score", "ci95_low", "ci95_high", "train_s")
RULES = {"greedy", "hold"}
COMPARED = ("hrm", "ppo", "transformer", "transformer_same_compute", "greedy", "hold")
FIGURES = (
    "window_ceiling",
    "score_by_segments",
    "act_score",
    "act_mean_segments",
    "infeasible_ratio",
    "hold_ratio",
)
HEADLINES = ("score", "return_bps_per_day", "return_pct")


def run(
    settings: Settings,
    *,
    task: str,
    budget_s: float,
    seeds: int,
    contenders: tuple[str, ...] | None = None,
    data: Path | None = None,
) -> dict[str, Any]:
    """Train every contender for `budget_s` seconds with each of `seeds` seeds; the numbers, and a table on stderr.

    `task`: instrument, book or random_walk; `data`, a file of bars, makes walk-forward folds the task, one seed each.
    Raises ConfigError for an unknown contender.
    """
    module = import_module("benchmarks.walk_forward" if data else f"benchmarks.{task}")
    names = contenders or module.CONTENDERS
    unknown = [name for name in names if name not in module.CONTENDERS]
    if unknown:
        raise ConfigError(f"no such contender: {', '.join(unknown)}; there are {', '.join(module.CONTENDERS)}")
    task, seeds, options = ("real", 1, {"data": data}) if data else (task, seeds, {"seeds": seeds})
    console, where = Console(stderr=True), described(seeds)  # the commit that runs, not one made meanwhile
    with bars(console):
        found = module.run(settings, names, budget_s=budget_s, **options)
    answer = {**where, "task": task, "budget_s": budget_s, "device": _device(), "preset": settings.preset}
    answer |= {"seeds": seeds} | found
    console.print(_table(answer))
    return flat(answer)


def flat(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with every figure that any task has; None for those that this one lacks, and for who did not play."""
    played = {name: dict.fromkeys(SCORED) | answer[name] for name in COMPARED if name in answer}
    for rule in RULES & played.keys():
        played[rule]["train_s"] = 0.0  # there is nothing to learn
    return answer | {name: answer.get(name) for name in (*FIGURES, *COMPARED)} | played


def _device() -> str:
    return torch.cuda.get_device_name() if training_device().type == "cuda" else "cpu"


def _table(answer: dict[str, Any]) -> Table:
    """One row for each that was compared: those with a headline."""
    rows = {name: numbers for name, numbers in answer.items() if isinstance(numbers, dict) and "ci95_low" in numbers}
    headline = next(key for key in HEADLINES if key in answer["hold"])
    table = Table(title=f"{answer['task']}, {answer['budget_s']:.0f} s each, {answer['seeds']} seed(s)", box=None)
    for column in ("", headline.replace("_", " "), "95 % interval", "rows seen", "parameters", "flat"):
        table.add_column(column, justify="right" if column else "left")
    for name, numbers in rows.items():
        interval = f"{numbers['ci95_low']:.3f} to {numbers['ci95_high']:.3f}"
        more = [
            _cell(numbers, "rows", ",.0f"),
            _cell(numbers, "parameters", ",.0f"),
            _cell(numbers, "hold_ratio", ".2f"),
        ]
        table.add_row(name.replace("_", " "), f"{numbers[headline]:.3f}", interval, *more)
    return table


def _cell(numbers: dict[str, Any], key: str, form: str) -> str:
    return format(numbers[key], form) if key in numbers else ""
