"""What is wrong with a table of bars, all of it at once.

A session is one calendar day in the zone the timestamps carry. Two kinds of fault:

    problems   the bars cannot be trusted (NaN, naive timestamps, unsorted rows, ...)
    defects    a session with a gap, an outlier, or under 90 % of the usual bars (a halt, a special session;
               the last session may still be running): dropped whole while at most 2 % of the sessions are
               so, a problem above that

Corrupt data is worse than no data: a session is used whole or not at all, and nothing is repaired here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

PRICES = ("open", "high", "low", "close")

REPRESENTABLE = (pd.Timestamp("1678-01-01", tz="UTC"), pd.Timestamp("2262-01-01", tz="UTC"))  # in nanoseconds
MAX_CONSTANT_RATIO = 0.5  # of the sessions: a market stands still on a quiet day, a dead feed on most of them
MAX_DEFECTIVE_RATIO = 0.02
MIN_LENGTH_RATIO = 0.9
FEWEST_TO_STAND = 10  # bars: fewer may well close at one price
OUTLIER_RATIO = 0.20  # NSE halts its indices for the day at 20 %: within one bar it is a bad tick
LONG_BREAK = pd.Timedelta(days=7)
ZONE = r"[T ].*(Z|[+-]\d{2}:?\d{2})$"


@dataclass(frozen=True)
class Problem:
    """One class of fault: how many rows (or sessions), where it is first seen, what to do."""

    code: str
    count: int
    first: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code}: {self.count}, first at {self.first}; {self.remedy}"


@dataclass(frozen=True)
class QualityReport:
    """What `hrm data check` prints; `dataclasses.asdict` of it is JSON. Dates are ISO 8601."""

    rows: int
    sessions: int
    interval_s: float | None
    first: str | None
    last: str | None
    session_lengths: dict[int, int]  # bars in a session -> sessions of that length
    gaps: int
    duplicates: int
    outliers: int
    weekend_sessions: tuple[str, ...]
    long_breaks: tuple[str, ...]  # first session after more than 7 days without one
    dropped_sessions: tuple[str, ...]
    problems: tuple[Problem, ...]


def examine(frame: pd.DataFrame) -> tuple[pd.DataFrame, QualityReport]:
    """The bars without defective sessions (timestamp in ns, all else float64), and the report on all of them.

    `frame` has rows and the columns timestamp, open, high, low, close, volume and perhaps signal.
    """
    times, problems = _timestamps(frame["timestamp"])
    numbers = frame.drop(columns="timestamp").apply(pd.to_numeric, errors="coerce").astype("float64")
    bars = pd.concat([times, numbers], axis=1)
    problems += _found(_value_faults(frame, bars), frame["timestamp"])
    day = times.dt.normalize()
    interval = _interval(times, day)
    in_order = times.is_monotonic_increasing and times.is_unique
    defects = _defects(bars, day, interval) if in_order else {}
    defective = day.isin(set().union(*(set(day[mask]) for mask in defects.values())))
    if day[defective].nunique() > MAX_DEFECTIVE_RATIO * day.nunique():
        problems += _found(defects, frame["timestamp"])
    elif interval is None and not problems:
        problems += [Problem("not_intraday", len(bars), "row 1", "give several bars a day, not daily bars")]
    report = _report(bars, day, defective, (defects, problems))
    return bars[~defective].reset_index(drop=True), report


def _timestamps(column: pd.Series) -> tuple[pd.Series, list[Problem]]:
    """Zoned timestamps in ns (NaT where unreadable, UTC where the zone is unclear), and what is wrong."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        times = _nanoseconds(column)
        faults = {"missing_timestamp": column.isna(), "unreadable_timestamp": column.notna() & times.isna()}
        return times, _found(faults, column)
    text = column.astype("string").str.strip().fillna("")
    zone = text.str.extract(ZONE, expand=False)
    dates = text.mask(text.str.fullmatch(r"[\d.]*"))  # a bare number would be read as a year
    times = _nanoseconds(pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce"))
    readable = times.notna()
    faults = {
        "unreadable_timestamp": ~readable,
        "naive_timestamp": readable & zone.isna(),
        "mixed_time_zones": zone.notna() & (zone != zone.dropna().iloc[0]) if zone.notna().any() else zone.notna(),
    }
    if not any(mask.any() for mask in faults.values()):
        times = times.dt.tz_convert(pd.Timestamp(text.iloc[0]).tz)
    return times.rename("timestamp"), _found(faults, column)


def _nanoseconds(times: pd.Series) -> pd.Series:
    """Zoned timestamps in ns; NaT where ns cannot hold them, which no bar's time is."""
    held: pd.Series = times.where(times.between(*REPRESENTABLE)).dt.as_unit("ns")
    return held


def _value_faults(frame: pd.DataFrame, bars: pd.DataFrame) -> dict[str, pd.Series]:
    """Masks over rows, by problem: `frame` as given, `bars` with numbers parsed (NaN where they are not)."""
    given, parsed = frame.drop(columns="timestamp"), bars.drop(columns="timestamp")
    prices, times = bars[list(PRICES)], bars["timestamp"]
    body_top, body_bottom = bars[["open", "close"]].max(axis=1), bars[["open", "close"]].min(axis=1)
    return {
        "non_numeric": (parsed.isna() & given.notna()).any(axis=1),
        "missing_value": given.isna().any(axis=1),
        "infinite_value": parsed.isin([np.inf, -np.inf]).any(axis=1),
        "non_positive_price": (prices <= 0).any(axis=1),
        "negative_volume": bars["volume"] < 0,
        "inconsistent_bar": (bars["high"] < body_top) | (bars["low"] > body_bottom),
        "constant_prices": _constant(bars),
        "duplicate_timestamp": times.duplicated() & times.notna(),
        "unsorted_timestamp": times.diff() < pd.Timedelta(0),
    }


def _constant(bars: pd.DataFrame) -> pd.Series:
    """Mask of the bars in sessions that close at one price throughout; empty unless most sessions are like that."""
    sessions = bars["close"].groupby(bars["timestamp"].dt.normalize())
    standing = (sessions.transform("nunique") == 1) & (sessions.transform("size") >= FEWEST_TO_STAND)
    dead = bars["timestamp"].dt.normalize()[standing].nunique() > MAX_CONSTANT_RATIO * sessions.ngroups
    mask: pd.Series = standing & dead
    return mask


def _defects(bars: pd.DataFrame, day: pd.Series, interval: pd.Timedelta | None) -> dict[str, pd.Series]:
    """Masks over the bars that make their session unusable, by defect."""
    if interval is None:
        return {}
    inside = day == day.shift()
    bars_of_session = day.groupby(day).transform("size")
    usual = day.groupby(day).size().mode().max()
    previous = bars["close"].shift().where(inside)
    moves = pd.concat([bars["high"] / bars["low"], bars["open"] / previous, bars["close"] / previous], axis=1).sub(1.0)
    return {
        "gap": inside & (bars["timestamp"].diff() != interval),
        "outlier": (moves.abs() > OUTLIER_RATIO).any(axis=1),
        "short_session": ~inside & (bars_of_session < MIN_LENGTH_RATIO * usual) & (day != day.iloc[-1]),
    }


REMEDIES: Mapping[str, str] = {
    "missing_timestamp": "fill in the timestamp or remove the row",
    "unreadable_timestamp": "write ISO 8601 with the zone, such as 2023-01-02T09:15:00+05:30",
    "naive_timestamp": "state the zone, such as 2023-01-02T09:15:00+05:30",
    "mixed_time_zones": "write all timestamps in one zone",
    "non_numeric": "write plain numbers",
    "missing_value": "fill in the value or remove the whole session",
    "infinite_value": "replace it by the true value or remove the whole session",
    "non_positive_price": "prices must be above 0: remove the whole session",
    "negative_volume": "volume must be 0 or more",
    "inconsistent_bar": "high must be the largest of the four prices and low the smallest",
    "constant_prices": f"the close never moves in over {MAX_CONSTANT_RATIO:.0%} of the sessions: export real prices",
    "duplicate_timestamp": "keep one row for each timestamp",
    "unsorted_timestamp": "sort the rows by timestamp",
    "gap": "bars are missing inside the session: fill them in or remove the whole session",
    "outlier": f"a move over {OUTLIER_RATIO:.0%} within one bar: correct it or remove the whole session",
    "short_session": f"under {MIN_LENGTH_RATIO:.0%} of the usual bars: complete the session or remove it",
}


def _found(faults: Mapping[str, pd.Series], timestamps: pd.Series) -> list[Problem]:
    """A Problem for each mask with a row in it; rows count from 1 below the header."""
    found = []
    for code, mask in faults.items():
        rows = np.flatnonzero(mask.to_numpy(dtype=bool, na_value=False))
        if rows.size:
            place = f"row {rows[0] + 1} ({timestamps.iloc[rows[0]]})"
            found.append(Problem(code, int(rows.size), place, REMEDIES[code]))
    return found


def _interval(times: pd.Series, day: pd.Series) -> pd.Timedelta | None:
    """The usual distance of bars inside a session; None when no session has two bars."""
    steps = times.diff()[(day == day.shift()) & (times.diff() > pd.Timedelta(0))]
    return None if steps.empty else pd.Timedelta(steps.mode().iloc[0])


def _report(
    bars: pd.DataFrame,
    day: pd.Series,
    defective: pd.Series,
    findings: tuple[dict[str, pd.Series], list[Problem]],
) -> QualityReport:
    defects, problems = findings
    counts = {code: int(mask.sum()) for code, mask in defects.items()}
    lengths = np.unique_counts(day.value_counts().to_numpy())
    days = pd.Series(day.dropna().unique()).sort_values()
    times = bars["timestamp"].dropna()
    interval = _interval(bars["timestamp"], day)
    refused = any(problem.code in defects for problem in problems)
    return QualityReport(
        rows=len(bars),
        sessions=len(days),
        interval_s=None if interval is None else interval.total_seconds(),
        first=None if times.empty else times.iloc[0].isoformat(),
        last=None if times.empty else times.iloc[-1].isoformat(),
        session_lengths=dict(zip(lengths.values.tolist(), lengths.counts.tolist(), strict=True)),
        gaps=counts.get("gap", 0),
        duplicates=int((bars["timestamp"].duplicated() & bars["timestamp"].notna()).sum()),
        outliers=counts.get("outlier", 0),
        weekend_sessions=_dates(days[days.dt.day_of_week >= 5]),
        long_breaks=_dates(days[days.diff() > LONG_BREAK]),
        dropped_sessions=() if refused else _dates(pd.Series(day[defective].unique())),
        problems=tuple(problems),
    )


def _dates(days: pd.Series) -> tuple[str, ...]:
    return tuple(day.date().isoformat() for day in days)
