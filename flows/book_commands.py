"""`hrm book ...`: a model that decides all instruments of a book jointly."""

from __future__ import annotations

from typing import Annotated

import typer

from core.manifest import Storage
from core.settings import load_settings
from flows.options import AsJson, Preset, Seed
from flows.terminal import answer

app = typer.Typer(no_args_is_help=True, help="A book of instruments, decided jointly under limits.")


@app.callback()
def commands() -> None:
    """Keeps `train` a command of its own, though it is the only one."""


@app.command()
def train(  # noqa: PLR0913, PLR0917 - options of a command, all by name
    instruments: Annotated[int, typer.Option(min=1, max=64, help="In the book; the model decides this many.")] = 8,
    factors: Annotated[int, typer.Option(min=1, max=64, help="Of the risk that instruments share.")] = 3,
    budget_s: Annotated[float, typer.Option(min=1.0, help="Seconds of training.")] = 300.0,
    storage: Annotated[Storage, typer.Option("--format", help="How the weights are stored.")] = "fp32",
    version: Annotated[str | None, typer.Option(help="Publish as book/<version>; by default the time of day.")] = None,
    preset: Preset = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train on books of random instruments with a known optimum, judge on others, publish to the model store."""
    from flows.book_publishing import train_and_publish  # torch takes seconds to import
    from trading.book import BookLaw

    law = BookLaw(instruments=instruments, factors=factors)
    found = train_and_publish(
        load_settings(preset=preset), law, budget_s=budget_s, seed=seed, version=version, storage=storage
    )
    answer(found, as_json)
