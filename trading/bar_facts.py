"""What is worth knowing about bars and is no fault: against the calendar, breaks, and the moves that are believed."""

from __future__ import annotations

from datetime import date, datetime
from typing import get_args

import pandas as pd

from trading import calendar
from trading.bar_faults import LONG_BREAK

LARGE_MOVE_RATIO, LARGE_NIGHT_RATIO = 0.03, 0.05  # in one bar, from session to session
MOST_MOVES = 20


def against_calendar(days: list[date]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sessions of the exchange without bars, days with bars but no session) as far as the calendar reaches.

    Days ascend. A run of sessions is written first/last.
    """
    first, last = calendar.bounds()
    known = [day for day in days if first <= day <= last]
    if not known:
        return (), ()
    there = set(known)
    runs: list[list[date]] = [[]]
    for day in calendar.sessions(known[0], known[-1]):
        if day not in there:
            runs[-1].append(day)
        elif runs[-1]:
            runs.append([])
    missing = (f"{run[0]}/{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs if run)
    return tuple(missing), tuple(str(day) for day in known if not calendar.is_session(day))


def partial_sessions(times: pd.Series, interval: pd.Timedelta) -> tuple[str, ...]:
    """Sessions whose first bars are missing, or whose last, by any segment's hours; they are used as they are.

    `times` are starts of bars in order and within the hours.
    """
    first, last = calendar.bounds()
    spans = times.groupby(times.dt.date).agg(["first", "last"])
    return tuple(
        f"{day} {begins:%H:%M} to {ends:%H:%M}"
        for day, begins, ends in spans.itertuples()
        if first <= day <= last and _is_partial(day, begins, ends, interval)
    )


def _is_partial(day: date, begins: pd.Timestamp, ends: pd.Timestamp, interval: pd.Timedelta) -> bool:
    hours = [calendar.trading_hours(day, segment) for segment in get_args(calendar.Segment)]
    opens, closes = max(opens for opens, _ in hours), min(closes for _, closes in hours)
    late = begins - datetime.combine(day, opens, calendar.KOLKATA)
    return bool(late >= interval or datetime.combine(day, closes, calendar.KOLKATA) - ends >= 2 * interval)


def long_breaks(days: pd.Series) -> tuple[str, ...]:
    """The first session after each long break; `days` are midnights, ascending."""
    return tuple(f"{day:%Y-%m-%d}" for day in days[days.diff() > LONG_BREAK])


def large_moves(bars: pd.DataFrame) -> tuple[str, ...]:
    """The largest moves in order of time; between sessions only where no long break lies."""
    day, before = bars["timestamp"].dt.normalize(), bars["close"].shift()
    inside = day == day.shift()
    step = bars["close"] / before.where(inside, bars["open"]) - 1.0
    night = (bars["open"] / before - 1.0).where(~inside & (day - day.shift() <= LONG_BREAK))
    found = pd.concat(
        [
            pd.DataFrame({"move": step[step.abs() > LARGE_MOVE_RATIO], "what": "in a bar"}),
            pd.DataFrame({"move": night[night.abs() > LARGE_NIGHT_RATIO], "what": "from the session before"}),
        ]
    )
    largest = found.loc[found["move"].abs().sort_values(ascending=False).index[:MOST_MOVES].unique()].sort_index()
    when = bars["timestamp"].loc[largest.index]
    return tuple(
        f"{at:%Y-%m-%d %H:%M} {move:+.1%} {what}"
        for at, move, what in zip(when, largest["move"], largest["what"], strict=True)
    )
