"""`hrm sweep` and `hrm walk-forward`: many trainings, on whatever `flows.task_runner` names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.settings import load_settings
from flows.options import AsJson, Data, Preset, Seed, existing
from flows.terminal import answer

Trials = Annotated[int, typer.Option(min=1, help="Until the study has so many with a result, given up ones included.")]
Bars = Annotated[
    Path,
    typer.Option(
        "--data", help="CSV or parquet with timestamp, open, high, low, close, volume.", exists=True, dir_okay=False
    ),
]
Folds = Annotated[int, typer.Option(min=1, help="Each tests its share of the second half of the file.")]


def sweep(
    trials: Trials = 20, data: Data = None, preset: Preset = None, seed: Seed = 0, as_json: AsJson = False
) -> None:
    """Try other settings of the HRM's training, judged on validation sessions. Killed? The same command goes on."""
    from flows.sweep import run_sweep

    answer(run_sweep(load_settings(preset=preset), existing(data), n_trials=trials, seed=seed), as_json)


def walk_forward(data: Bars, folds: Folds = 4, preset: Preset = None, seed: Seed = 0, as_json: AsJson = False) -> None:
    """Train HRM and PPO anew as time goes on, each tested on what follows. Killed? The same command goes on."""
    from flows.walk_forward import run_walk_forward

    answer(run_walk_forward(load_settings(preset=preset), data, folds=folds, seed=seed), as_json)
