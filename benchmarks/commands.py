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
def rollback(
    kills: Annotated[int, typer.Option(min=1, help="Writers to kill, on each database; 10000 for the goal.")] = 200,
    rollbacks: Annotated[int, typer.Option(min=1, help="To be seen by eight workers.")] = 100,
    orders: Annotated[int, typer.Option(min=1, help="Sent while epochs change; 1000000 for the goal.")] = 20_000,
    months: Annotated[int, typer.Option(min=4, help="In which nothing is wrong, simulated.")] = 1000,
    only: Annotated[str | None, typer.Option(help="Some parts only, such as seen,blind.")] = None,
    as_json: AsJson = False,
) -> None:
    """Rollbacks under kill -9, to others, with the database gone, and for nothing; exits with 1 if a goal is missed."""
    from benchmarks.rollback import run

    found = run(kills=kills, rollbacks=rollbacks, orders=orders, months=months, only=only)
    answer(found, as_json)
    if not all(goal["reached"] for goal in found["goals"]):
        raise typer.Exit(1)


@app.command()
def live(
    kills: Annotated[int, typer.Option(min=1, help="Live processes to kill; 1000 for the goal.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of where they die and what fails.")] = 0,
    only: Annotated[str | None, typer.Option(help="Some parts only, such as kills.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A new folder for the ledgers and logs of the killed.")] = None,
    data: Annotated[Path | None, typer.Option(help="Five-minute bars of the session, instead of made-up ones.")] = None,
    as_json: AsJson = False,
) -> None:
    """The live desk under kill -9, and a whole session, on an emulated broker; exits with 1 if a goal is missed."""
    from benchmarks.live import run

    found = run(kills=kills, seed=seed, only=only, keep=keep, data=existing(data))
    answer(found, as_json)
    if not all(goal["reached"] for goal in found["goals"]):
        raise typer.Exit(1)


@app.command()
def dashboard(
    clients: Annotated[int, typer.Option(min=1, help="Connections that read; 200 for the goal.")] = 200,
    duration_s: Annotated[
        float, typer.Option(min=1, help="Seconds of decisions; 90 for the slow one to be seen.")
    ] = 90.0,
    as_json: AsJson = False,
) -> None:
    """The live stream, from a record to every client, beside one that never reads; exits with 1 if a goal is missed."""
    from benchmarks.dashboard import run

    found = run(clients=clients, duration_s=duration_s)
    answer(found, as_json)
    if not all(goal["reached"] for goal in found["goals"]):
        raise typer.Exit(1)


@app.command()
def ppo(preset: Preset = None, as_json: AsJson = False) -> None:
    """Training samples per second of the reference PPO beside stable-baselines3's."""
    from benchmarks.ppo import run

    answer(run(load_settings(preset=preset)), as_json)
