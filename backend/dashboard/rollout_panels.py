"""The rollout as it is on record: its timeline, what was measured, what both arms earned. Nothing here is written.

The state database is the service's (delivery/tables.py). What is read is bounded: the newest of everything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import sqlalchemy as sa
from plotly.subplots import make_subplots

from backend.dashboard.panel import (
    ARM_COLOURS,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Panel,
    Table,
    exchange_times,
    figure_json,
    thinned,
)
from backend.dashboard.reading import read_only
from delivery import tables
from delivery.losses import BOOK, EVER, metadata
from delivery.state_database import Place, open_engine
from delivery.transitions import RolloutState

EVENTS, MEASUREMENTS, OUTCOMES = 300, 2000, 50_000  # the newest so many
NO_ROLLOUT = "No rollout was started yet. Start one: `hrm rollout start --champion NAME/VERSION --challenger ...`."
NO_STATE = "There is no state database yet. Start the inference service: `hrm serve --champion NAME/VERSION`."
NO_OUTCOMES = "No outcome is on record in this attempt. Trading reports them once a rollout runs: `hrm trade`."
NO_MEASUREMENT = "Nothing was measured in this attempt yet. The plan's analyses begin with the rollout."
MARKS = {
    "start": BLUE,
    "advance": GREY,
    "promote": GREEN,
    "approve": GREEN,
    "pause": ORANGE,
    "resume": BLUE,
    "abort": RED,
    "rollback": RED,
}


class RolloutReader:
    """The state database: a file that is only read, or a Postgres server."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._engine = None if isinstance(place, Path) else open_engine(place)

    @property
    def exists(self) -> bool:
        return not isinstance(self._place, Path) or self._place.is_file()

    @contextmanager
    def connection(self) -> Iterator[sa.Connection]:
        """Raises sqlalchemy's DatabaseError."""
        if isinstance(self._place, Path):
            with read_only(self._place) as connection:
                yield connection
            return
        assert self._engine is not None  # noqa: S101 - made for a server; for the type checker
        with self._engine.connect() as connection:
            yield connection

    def state(self) -> RolloutState | None:
        """None where no service ever ran."""
        if not self.exists:
            return None
        with self.connection() as connection:
            return _state(connection)

    def events(self, connection: sa.Connection) -> list[Any]:
        """The newest, oldest first."""
        columns = tables.event.c
        query = sa.select(columns.version, columns.at, columns.actor, columns.command, columns.reason, columns.state)
        return list(connection.execute(query.order_by(columns.version.desc()).limit(EVENTS)))[::-1]


def timeline(reader: RolloutReader) -> Panel:
    """The challenger's share of the symbols, and every command, over time."""
    if not reader.exists:
        return Panel(empty=NO_STATE)
    with reader.connection() as connection:
        events = reader.events(connection)
    if not any(event.command == "start" for event in events):
        return Panel(empty=NO_ROLLOUT)
    states = [tables.state_from(event.state) for event in events]
    share = [100 if str(state.phase) == "promoted" else state.weight for state in states]
    until = max(events[-1].at, time.time() // 60 * 60)  # it stands so still
    *times, end = exchange_times([*(event.at for event in events), until])
    figure = go.Figure()
    line = {"color": GREY, "width": 1.5, "shape": "hv"}
    steps = {"x": [*times, end], "y": [*share, share[-1]], "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(**steps, mode="lines", line=line)
    for command, colour in MARKS.items():
        rows = [row for row, event in enumerate(events) if event.command == command]
        if rows:
            told = [f"{states[row].phase} by {events[row].actor}: {events[row].reason or 'no reason'}" for row in rows]
            figure.add_scatter(
                x=[times[row] for row in rows],
                y=[share[row] for row in rows],
                text=[escape(text[:160]) for text in told],
                name=command,
                mode="markers",
                marker={"color": colour, "size": 9, "symbol": "x" if colour == RED else "circle"},
                hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            )
    figure.update_yaxes(title_text="challenger, % of symbols", range=[-4, 108])
    return Panel(as_of=events[-1].at, figure=figure_json(figure, showlegend=True))


def verdicts(reader: RolloutReader) -> Panel:
    """The newest measurement of every metric of the current or latest attempt."""
    if not reader.exists:
        return Panel(empty=NO_STATE)
    columns = tables.measurement.c
    with reader.connection() as connection:
        attempt = _state(connection).attempt
        query = sa.select(tables.measurement).where(columns.attempt == attempt)
        rows = list(connection.execute(query.order_by(columns.id.desc()).limit(MEASUREMENTS)))
    if not rows:
        return Panel(empty=NO_MEASUREMENT if attempt else NO_ROLLOUT)
    newest: dict[tuple[str, str], Any] = {}
    for row in rows:
        newest.setdefault((row.run, row.metric), row)
    told = [(row.at, row.run, row.metric, row.phase, row.value, row.detail) for row in newest.values()]
    columns_shown = ("measured", "analysis", "metric", "verdict", "value", "compared")
    table = Table(columns_shown, ("time", "text", "text", "mark", "number", "text"), told)
    return Panel(as_of=rows[0].at, table=table)


@dataclass(frozen=True)
class _Curves:
    """Of the book of an attempt: mean over symbols. `at` [n] Unix s; by arm the sum of outcomes in bps [n]."""

    at: Any
    bps: dict[str, Any]
    top_before_bps: dict[str, float]
    symbols: int


def equity(reader: RolloutReader) -> Panel:
    """What both arms earned on the same ticks since the rollout began, and how far each is below its highest."""
    if not reader.exists:
        return Panel(empty=NO_STATE)
    with reader.connection() as connection:
        attempt = _state(connection).attempt
        curves = _curves(connection, attempt) if attempt else None
    if curves is None:
        return Panel(empty=NO_OUTCOMES if attempt else NO_ROLLOUT)
    drawn = thinned(len(curves.at))
    times = exchange_times(curves.at[drawn])
    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.68, 0.32], vertical_spacing=0.05)
    for arm, bps in curves.bps.items():
        top = np.maximum(np.maximum.accumulate(bps), curves.top_before_bps[arm])
        line = {"color": ARM_COLOURS[arm], "width": 2}
        figure.add_scatter(x=times, y=bps[drawn].tolist(), name=arm, line=line, row=1, col=1)
        fall = {"x": times, "y": (bps - top)[drawn].tolist(), "name": arm, "showlegend": False}
        figure.add_scatter(**fall, line=line | {"width": 1}, fill="tozeroy", row=2, col=1)
    figure.update_traces(hovertemplate="%{y:.1f} bps<extra>%{fullData.name}</extra>")
    figure.update_yaxes(title_text="earned, bps", row=1, col=1)
    figure.update_yaxes(title_text="drawdown", row=2, col=1)
    ends = ", ".join(f"{arm} {bps[-1]:+.1f} bps" for arm, bps in curves.bps.items())
    note = f"{ends}; mean over {curves.symbols} symbol{'s' if curves.symbols != 1 else ''}, each arm's own portfolio"
    return Panel(
        as_of=float(curves.at[-1]), figure=figure_json(figure, showlegend=True, hovermode="x unified"), note=note
    )


def _curves(connection: sa.Connection, attempt: int) -> _Curves | None:
    """The newest outcomes, drawn from where all before them had brought each arm."""
    row = tables.outcome.c
    query = sa.select(row.id, row.at, row.champion_bps, row.challenger_bps).where(row.attempt == attempt)
    found = connection.execute(query.order_by(row.id.desc()).limit(OUTCOMES)).tuples().all()[::-1]
    if not found:
        return None
    _, at, champion, challenger = np.array(found, dtype=np.float64).T
    symbols = max(1, connection.execute(_symbols(attempt)).scalar_one())
    bps, top = {}, {}
    for arm, column, earned in (
        ("champion", row.champion_bps, champion),
        ("challenger", row.challenger_bps, challenger),
    ):
        before, highest = connection.execute(_before(attempt, found[0][0], column)).one()
        bps[arm] = ((before or 0.0) + np.cumsum(earned)) / symbols
        top[arm] = max(highest or 0.0, 0.0) / symbols
    return _Curves(at, bps, top, symbols)


def _before(attempt: int, first_id: int, column: sa.ColumnElement[float]) -> sa.Select[Any]:
    """The sum of the outcomes before the first that is drawn, and the highest it ever was."""
    row = tables.outcome.c
    running = sa.func.sum(column).over(order_by=row.id).label("bps")
    earlier = sa.select(column.label("earned"), running).where(row.attempt == attempt, row.id < first_id).subquery()
    return sa.select(sa.func.sum(earlier.c.earned), sa.func.max(earlier.c.bps))


def _symbols(attempt: int) -> sa.Select[Any]:
    page = metadata.tables["equity"].c
    mine = (page.attempt == attempt) & (page.day == EVER) & (page.symbol != BOOK)
    return sa.select(sa.func.count()).where(mine)


def _state(connection: sa.Connection) -> RolloutState:
    return tables.state_of(connection.execute(sa.select(tables.rollout)).mappings().one())
