"""`hrm bench ...`: medians of several runs, ratios within one run, one JSON object with --json."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from core.settings import load_settings
from flows.options import AsJson, Preset, existing
from flows.terminal import answer

app = typer.Typer(no_args_is_help=True, help="Measure this machine, this code and what it learns.")


class Task(StrEnum):
    instrument = "instrument"
    book = "book"
    random_walk = "random_walk"


class Algorithm(StrEnum):
    published = "published"
    single_head = "single_head"


@app.command()
def learning(
    task: Annotated[Task, typer.Option(help="One instrument, a book under limits, or nothing to be earned.")] = (
        Task.instrument
    ),
    budget_s: Annotated[float, typer.Option(min=0.1, help="Seconds of training for each contender.")] = 120.0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 5,
    contenders: Annotated[str | None, typer.Option(help="Some of them only, such as hrm,ppo.")] = None,
    data: Annotated[Path | None, typer.Option(help="Your bars, walked forward, instead of a task.")] = None,
    preset: Preset = None,
    as_json: AsJson = False,
) -> None:
    """What is learned in a given time, beside the incumbent, the controls and the exact optimum."""
    from benchmarks.learning import run

    names = tuple(name.strip() for name in contenders.split(",")) if contenders else None
    found = run(
        load_settings(preset=preset),
        task=task.value,
        budget_s=budget_s,
        seeds=seeds,
        contenders=names,
        data=existing(data),
    )
    answer(found, as_json)


@app.command()
def training(
    algorithm: Annotated[Algorithm, typer.Option(help="Q-learning halting with its bootstrap pass, or one head.")] = (
        Algorithm.published
    ),
    tokens: Annotated[int | None, typer.Option(min=3, help="Of a row; by default what the preset observes.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step; by default the preset's.")] = None,
    preset: Preset = None,
    as_json: AsJson = False,
) -> None:
    """Whole training steps per second beside the plain eager step; under torchrun on all its devices."""
    from benchmarks.training import run
    from hrm.distributed import joined
    from hrm.model import FIXED_TOKENS

    settings = load_settings(preset=preset)
    seen = settings.observation
    tokens = tokens or FIXED_TOKENS + seen.window // seen.patch
    with joined():
        rows = batch or settings.performance.batch_size
        answer(run(settings, tokens=tokens, batch=rows, algorithm=algorithm.value), as_json)


@app.command()
def env(preset: Preset = None, as_json: AsJson = False) -> None:
    """Environment steps per second."""
    from benchmarks.env import run

    found: dict[str, Any] = run(load_settings(preset=preset))
    answer(found, as_json)


@app.command()
def backtest(preset: Preset = None, as_json: AsJson = False) -> None:
    """Backtested bars per second beside other libraries; exits with 1 if vectorbt's final equity is not ours."""
    from benchmarks.backtest import run

    found = run(load_settings(preset=preset))
    answer(found, as_json)
    if found["equity_agrees"] is False:
        raise typer.Exit(1)


@app.command()
def engine(preset: Preset = None, as_json: AsJson = False) -> None:
    """One segment in the inference engine, against the floor its matrix products set."""
    from benchmarks.engine import run

    answer(run(load_settings(preset=preset)), as_json)


@app.command()
def serving(  # noqa: PLR0913, PLR0917 - options of a command line
    clients: Annotated[int, typer.Option(min=1, help="Keep-alive connections of the closed loop.")] = 100,
    duration_s: Annotated[float, typer.Option(min=0.5, help="Seconds of each load.")] = 20.0,
    only: Annotated[str | None, typer.Option(help="Some parts only, such as load,few.")] = None,
    storage: Annotated[str | None, typer.Option(help="Format of the models; by default the exact one that fits.")] = (
        None
    ),
    workers: Annotated[int, typer.Option(min=1, help="Processes of the service.")] = 1,
    peers: Annotated[bool, typer.Option("--peers", help="LitServe and Ray Serve beside ours.")] = False,
    soak_s: Annotated[float, typer.Option(min=0, help="Seconds of mixed load and changes; 3600 for the goal.")] = 0.0,
    preset: Preset = None,
    as_json: AsJson = False,
) -> None:
    """The inference service under load over HTTP; with --peers beside other people's servers."""
    from benchmarks.serving import plan, run, table

    asked = plan(clients=clients, seconds=duration_s, only=only, storage=storage, workers=workers)
    found = run(load_settings(preset=preset), replace(asked, peers=peers, soak_s=soak_s))
    answer(found, True) if as_json else table(found)


@app.command()
def ppo(preset: Preset = None, as_json: AsJson = False) -> None:
    """Training samples per second of the reference PPO beside stable-baselines3's."""
    from benchmarks.ppo import run

    answer(run(load_settings(preset=preset)), as_json)
