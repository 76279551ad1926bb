"""`hrm bench learning`: what is learned in a given time, beside the incumbent, the controls and the ceiling.

One module per task; each has `run(settings, contenders, budget_s=..., ...) -> dict` with a dict per contender.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import instrument, random_walk, walk_forward
from benchmarks.contenders import CONTENDERS, training_device
from benchmarks.machine import described
from core.errors import ConfigError
from core.settings import Settings
from flows.progress import bars

TASKS: dict[str, Callable[..., dict[str, Any]]] = {"instrument": instrument.run, "random_walk": random_walk.run}
HEADLINES = ("score", "return_bps_per_day", "return_pct")
NO_CONTROLS = ("hrm", "ppo")  # where nothing is to be learned about depth


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

    `data`: a file of bars, which makes walk-forward folds the task. Raises ConfigError for an unknown contender.
    """
    task = "real" if data is not None else task
    names = contenders or (CONTENDERS if task == "instrument" else NO_CONTROLS)
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise ConfigError(f"no such contender: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    console = Console(stderr=True)
    with bars(console):
        if data is not None:
            seeds, found = 1, walk_forward.run(settings, names, budget_s=budget_s, data=data)
        else:
            found = TASKS[task](settings, names, budget_s=budget_s, seeds=seeds)
    answer = {**described(seeds), "task": task, "budget_s": budget_s, "device": _device(), "preset": settings.preset}
    answer |= {"seeds": seeds} | found
    console.print(_table(answer))
    return answer


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
