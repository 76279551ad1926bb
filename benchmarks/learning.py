"""`hrm bench learning`: what is learned in a given time, beside the incumbent, the controls and the ceiling."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import instrument
from benchmarks.contenders import CONTENDERS, training_device
from benchmarks.machine import described
from core.errors import ConfigError
from core.settings import Settings
from flows.progress import bars


def run(
    settings: Settings, *, task: str, budget_s: float, seeds: int, contenders: tuple[str, ...] = CONTENDERS
) -> dict[str, Any]:
    """Train every contender for `budget_s` seconds with each of `seeds` seeds; the numbers, and a table on stderr.

    Raises ConfigError for a contender that does not exist.
    """
    unknown = [name for name in contenders if name not in CONTENDERS]
    if unknown:
        raise ConfigError(f"no such contender: {', '.join(unknown)}; there are {', '.join(CONTENDERS)}")
    console = Console(stderr=True)
    with bars(console):
        found = instrument.run(settings, contenders, budget_s=budget_s, seeds=seeds)
    answer = {**described(seeds), "task": task, "budget_s": budget_s, "device": _device(), "preset": settings.preset}
    answer |= {"seeds": seeds} | found
    console.print(_table(answer))
    return answer


def _device() -> str:
    return torch.cuda.get_device_name() if training_device().type == "cuda" else "cpu"


def _table(answer: dict[str, Any]) -> Table:
    """One row per contender."""
    table = Table(title=f"{answer['task']}, {answer['budget_s']:.0f} s each, {answer['seeds']} seed(s)", box=None)
    for column in ("", "score", "95 % interval", "rows seen", "parameters"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name in (*CONTENDERS, "hold"):
        if name in answer:
            table.add_row(name.replace("_", " "), *_cells(answer[name]))
    return table


def _cells(numbers: dict[str, Any]) -> tuple[str, str, str, str]:
    interval = f"{numbers['ci95_low']:.3f} to {numbers['ci95_high']:.3f}"
    return f"{numbers['score']:.3f}", interval, f"{numbers.get('rows', 0):,.0f}", f"{numbers.get('parameters', 0):,.0f}"
