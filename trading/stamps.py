"""Bars against the exchange's hours: what lies outside them, and whether bars are stamped at their end.

A file does not say what it holds, so a bar counts as inside if any segment trades then: the union of their hours.
A bar is stamped at its start here. In a file that stamps ends, a full session's first bar stands one interval after
the opening and its last one at the close; with starts it is the opening, and no bar stands at the close.
"""

from __future__ import annotations

from datetime import date, time
from typing import NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trading.calendar import Segment, known_from, trading_hours

DAY_S = 86_400


class _Session(NamedTuple):
    """Of each row, its session's hours in seconds after midnight; a day before all known hours is open throughout."""

    clock_s: NDArray[np.int64]
    open_s: NDArray[np.int64]
    closes_s: NDArray[np.int64]  # [n, segments]


def outside_hours(times: pd.Series) -> pd.Series:
    """Bars that start before the exchange opens or from its close on: pre-open, closing auction, muhurat."""
    session = _sessions(times)
    outside = (session.clock_s < session.open_s) | (session.clock_s >= session.closes_s.max(axis=1))
    return pd.Series(outside, index=times.index)


def end_stamped(times: pd.Series, interval: pd.Timedelta) -> bool:
    """Whether most sessions that tell say that bars are stamped at their end."""
    starts, ends = _evidence(times, interval)
    first = ~times.dt.normalize().duplicated()
    return bool((ends & first).sum() > (starts & first).sum())


def contrary_stamps(times: pd.Series, interval: pd.Timedelta) -> pd.Series:
    """Bars of sessions that are stamped the other way than most."""
    starts, ends = _evidence(times, interval)
    return starts if end_stamped(times, interval) else ends


def _evidence(times: pd.Series, interval: pd.Timedelta) -> tuple[pd.Series, pd.Series]:
    """Bars of sessions that show stamps at the start, and of those that show stamps at the end."""
    session, interval_s = _sessions(times), int(interval.total_seconds())
    day = times.dt.normalize()
    after_open = session.clock_s - session.open_s
    opening = pd.Series((after_open >= 0) & (after_open < interval_s), index=times.index)
    second = pd.Series(after_open == interval_s, index=times.index)
    closing = pd.Series((session.clock_s[:, None] == session.closes_s).any(axis=1), index=times.index)
    has = [mask.groupby(day, sort=False).transform("any") for mask in (opening, second, closing)]
    return has[0], ~has[0] & has[1] & has[2]


def _sessions(times: pd.Series) -> _Session:
    wall = times.dt.tz_localize(None).dt.as_unit("s").to_numpy(dtype="datetime64[s]").astype(np.int64)
    code, days = pd.factorize(wall // DAY_S)
    hours = np.array([_hours_s(date.fromordinal(int(day) + date(1970, 1, 1).toordinal())) for day in days])
    return _Session(wall % DAY_S, hours[code, 0], hours[code, 1:])


def _hours_s(day: date) -> list[int]:
    """The opening and each segment's close."""
    segments = get_args(Segment)
    if day < known_from():
        return [0] + [DAY_S] * len(segments)
    hours = [trading_hours(day, segment) for segment in segments]
    return [min(_seconds(opens) for opens, _ in hours), *(_seconds(closes) for _, closes in hours)]


def _seconds(clock: time) -> int:
    return clock.hour * 3600 + clock.minute * 60 + clock.second
