"""What a panel of the page is told: a figure or a table, how old it is, and in words why there is none."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from core.errors import DataError
from trading.calendar import KOLKATA, ZONE, hours, is_session

BLUE, ORANGE, GREEN, RED, GREY = "#3d85c6", "#d9772b", "#2f9e6e", "#d1495b", "#8a94a3"  # as on the tear sheet
ARM_COLOURS = {"champion": BLUE, "challenger": ORANGE}
STALE_AFTER_S = 900.0  # of what follows bars: three bars of five minutes
MOST_POINTS = 2000  # of a curve; a screen has no more


@dataclass(frozen=True)
class Table:
    """Rows of plain values; `kinds` say how the page writes a column's (static/format.js)."""

    columns: Sequence[str]
    kinds: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Panel:
    """`as_of` is when the newest of what is shown happened (Unix s). `empty`: what is missing, and the remedy."""

    as_of: float | None = None
    figure: str | None = None  # plotly's JSON
    table: Table | None = None
    empty: str | None = None
    note: str = ""
    choices: Sequence[str] = ()  # of what may be chosen in it
    chosen: str = ""

    def encoded(self, now: float | None = None) -> bytes:
        now = time.time() if now is None else now
        stale = self.as_of is not None and now - self.as_of > STALE_AFTER_S and market_is_open(now)
        told = {name: getattr(self, name) for name in ("as_of", "empty", "note", "chosen")}
        told |= {"now": now, "stale": stale, "choices": list(self.choices)}
        told |= {"table": None if self.table is None else asdict(self.table)}
        text = json.dumps(told, allow_nan=False)
        return f'{text[:-1]}, "figure": {self.figure or "null"}}}'.encode()


def market_is_open(now: float) -> bool:
    """Whether index futures trade at this time (Unix s), by the exchange's calendar."""
    moment = datetime.fromtimestamp(now, KOLKATA)
    day: date = moment.date()
    try:
        session = hours(day, "index_futures") if is_session(day) else None
    except DataError:  # a day that the calendar does not know: nothing passes for closed
        return True
    return session is not None and session.open <= moment < session.close


def exchange_times(at: Any) -> list[str]:
    """Unix seconds as the exchange's clock shows them: what plotly draws as they are."""
    local = pd.to_datetime(np.asarray(at, dtype=np.float64), unit="s", utc=True).tz_convert(ZONE)
    return [str(text) for text in local.strftime("%Y-%m-%d %H:%M:%S")]


def exchange_labels(at: Any) -> list[str]:
    """Unix seconds in words, for axes that count something else."""
    local = pd.to_datetime(np.asarray(at, dtype=np.float64), unit="s", utc=True).tz_convert(ZONE)
    return [str(text) for text in local.strftime("%H:%M<br>%d %b")]


def thinned(points: int) -> NDArray[np.int64]:
    """Which of so many points are drawn: all, or evenly spread ones and the last."""
    return np.unique(np.linspace(0, points - 1, min(points, MOST_POINTS)).astype(np.int64))


def figure_json(figure: go.Figure, **layout: Any) -> str:
    """In the house style; the page gives it the colours of its theme."""
    figure.update_layout(
        template="none",
        margin={"l": 52, "r": 12, "t": 30, "b": 36},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "title": None},
        **layout,
    )
    return str(figure.to_json())
