"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer

from core.errors import ConfigError
from core.manifest import Storage

Format = Literal["auto", Storage]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
Preset = Annotated[str | None, typer.Option(help="compact, default, seed or paper_27m; auto by default.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the market, the training and the bootstrap.")]
Data = Annotated[
    Path | None,
    typer.Option(help="Your bars: CSV or parquet with timestamp, open, high, low, close, volume. Default: synthetic."),
]


def existing(data: Path | None) -> Path | None:
    """The file, if one was named. Raises ConfigError if it is not there."""
    if data is not None and not data.is_file():
        raise ConfigError(f"{data}: no such file; --data takes a CSV or parquet file of bars", code="no_such_file")
    return data


def day(text: str) -> date:
    """A day as options take it. Raises ConfigError for anything else."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"'{text}' is not a day; write it as 2023-12-31", code="usage") from None
