"""What is wrong with a table of bars, all of it at once, and what is worth knowing about it.

    problems   the bars cannot be trusted (NaN, naive timestamps, unsorted rows, stamps at the bar's end, ...)
    defects    faults of a session (a gap, an outlier, rows outside the hours, under 90 % of the usual bars, ...):
               such sessions are left out whole while they are at most 2 % of all; above that they are problems
    the rest   facts: sessions missing against the calendar or not in it or without their first or last bars, long
               breaks, large moves. A fall of 9 % over night happens, and stays

Corrupt data is worse than no data: a session is used whole or not at all, and nothing is repaired here
(trading/repair.py does that, into another file, when asked).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from trading.bar_facts import against_calendar, large_moves, long_breaks, partial_sessions
from trading.bar_faults import (
    MAX_CONSTANT_RATIO,
    MIN_LENGTH_RATIO,
    OUTLIER_RATIO,
    Faults,
    interval_of,
    level_shifts,
    of_sessions,
    parsed,
    row_faults,
    session_faults,
    sound_prices,
    zone_unclear,
)
from trading.stamps import end_stamped

MAX_DEFECTIVE_RATIO = 0.02
SESSION_MINUTES = 375  # 09:15 to 15:30
FIX = "or let `hrm data check FILE --fix` "

REMEDIES: Mapping[str, str] = {
    "missing_timestamp": "fill in the timestamp, " + FIX + "leave out the sessions around",
    "unreadable_timestamp": "write ISO 8601 with the zone, such as 2023-01-02T09:15:00+05:30",
    "naive_timestamp": "state the zone, such as 2023-01-02T09:15:00+05:30",
    "mixed_time_zones": "write all timestamps in one zone",
    "non_numeric": "write plain numbers",
    "missing_value": "fill in the value, " + FIX + "leave out the session",
    "infinite_value": "give the true value, " + FIX + "leave out the session",
    "non_positive_price": "prices must be above 0; give the true one, " + FIX + "leave out the session",
    "negative_volume": "volume must be 0 or more; correct it, " + FIX + "leave out the session",
    "inconsistent_bar": "high must be the largest of the four prices and low the smallest; correct it, "
    + FIX
    + "widen",
    "constant_prices": f"the close never moves in over {MAX_CONSTANT_RATIO:.0%} of the sessions: export real prices",
    "exact_duplicate": "keep one row for each timestamp, " + FIX + "do so",
    "conflicting_duplicate": "decide which row is true, " + FIX + "leave out the session",
    "unsorted_timestamp": "sort the rows by timestamp, " + FIX + "do so",
    "end_stamped": "stamp each bar at its start (the first one 09:15), " + FIX + "shift them",
    "ragged_interval": f"bars must be whole minutes that divide a session of {SESSION_MINUTES}: 1, 3, 5, 15, 25, 75",
    "level_shift": f"over {OUTLIER_RATIO:.0%} from one session to the next: adjust for splits, or cut the file there",
    "not_intraday": "give several bars a day, not daily bars",
    "gap": "bars are missing inside the session: fill them in, " + FIX + "leave it out",
    "other_interval": "the session's bars have another length than most: export one timeframe, " + FIX + "leave it out",
    "contrary_stamps": "the session is stamped at the other end of its bars than most: export it anew, "
    + FIX
    + "leave it out",
    "outside_hours": "bars before the opening or from the close on: remove them, " + FIX + "do so",
    "outlier": f"a move over {OUTLIER_RATIO:.0%} within one bar: correct it, " + FIX + "leave out the session",
    "foreign_level": f"the session is over {OUTLIER_RATIO:.0%} off the ones around it, as another instrument would be: "
    "export it anew, " + FIX + "leave it out",
    "short_session": f"under {MIN_LENGTH_RATIO:.0%} of the usual bars: complete the session, " + FIX + "leave it out",
}


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
    """What `hrm data check` tells; `dataclasses.asdict` of it is JSON. Dates are ISO 8601, times Kolkata's."""

    rows: int
    sessions: int
    interval_s: float | None
    first: str | None
    last: str | None
    session_lengths: dict[int, int]  # bars in a session -> sessions of that length
    gaps: int
    exact_duplicates: int
    conflicting_duplicates: int
    outliers: int
    missing_sessions: tuple[str, ...]  # sessions of the calendar without bars; `first/last` of a run of them
    off_calendar: tuple[str, ...]  # sessions on days on which the exchange is closed
    long_breaks: tuple[str, ...]  # first session after more than 7 days without one
    partial_sessions: tuple[str, ...]  # they begin after the opening or end before the close
    large_moves: tuple[str, ...]  # the largest ones that are believed
    dropped_sessions: tuple[str, ...]  # left out by whoever loads the file
    defects: tuple[Problem, ...]  # of the sessions left out
    problems: tuple[Problem, ...]  # the file is refused

    @property
    def clean(self) -> bool:
        return not (self.problems or self.dropped_sessions)


def examine(frame: pd.DataFrame) -> tuple[pd.DataFrame, QualityReport]:
    """The bars without defective sessions (timestamp in ns, all else float64), and the report on all of them.

    `frame` has rows and the columns timestamp, open, high, low, close, volume and perhaps signal.
    """
    bars, unclear = parsed(frame)
    # What stands twice or in the wrong place does not hide what is wrong with the sessions.
    ordered = bars.dropna(subset="timestamp").sort_values("timestamp", kind="stable").drop_duplicates("timestamp")
    interval = interval_of(ordered)
    judged = {} if interval is None or zone_unclear(unclear) else session_faults(ordered, interval)
    of_the_file = _file_faults(ordered, interval, judged) if judged and interval is not None else {}
    problems = _found(unclear | row_faults(frame, bars) | _in_file(of_the_file, bars), frame["timestamp"])
    defects = _in_file(judged, bars)
    day = bars["timestamp"].dt.normalize()
    defective = of_sessions(day, defects)
    found = _found(defects, frame["timestamp"])
    if day[defective].nunique() > MAX_DEFECTIVE_RATIO * day.nunique():
        problems, found, defective = problems + found, [], defective & False
    elif interval is None and not problems:
        problems = [Problem("not_intraday", len(bars), "row 1", REMEDIES["not_intraday"])]
    facts = _facts(ordered, interval, judged) if judged and interval is not None else {}
    report = _report(bars, interval, facts, (day[defective], found, problems))
    return bars[~defective].reset_index(drop=True), report


def _in_file(faults: Faults, bars: pd.DataFrame) -> Faults:
    """Masks over the bars in order as masks over the rows of the file."""
    return {code: mask.reindex(bars.index, fill_value=False) for code, mask in faults.items()}


def _file_faults(bars: pd.DataFrame, interval: pd.Timedelta, defects: Faults) -> Faults:
    """What is wrong with the file rather than with a session of it; bars in order."""
    minutes = interval / pd.Timedelta(minutes=1)
    everywhere = pd.Series(True, index=bars.index)
    return {
        "end_stamped": everywhere & end_stamped(bars["timestamp"], interval),
        "ragged_interval": everywhere & bool(minutes % 1 or SESSION_MINUTES % minutes),
        "level_shift": level_shifts(sound_prices(bars, defects)),
    }


def _facts(bars: pd.DataFrame, interval: pd.Timedelta, defects: Faults) -> dict[str, tuple[str, ...]]:
    """What the sessions of bars in order show and is no fault."""
    stamps = bars["timestamp"][~defects["outside_hours"]]
    starts = stamps - interval if end_stamped(bars["timestamp"], interval) else stamps
    return {
        "partial_sessions": partial_sessions(starts, interval),
        "large_moves": large_moves(sound_prices(bars, defects)),
    }


def _found(faults: Faults, timestamps: pd.Series) -> list[Problem]:
    """A Problem for each mask with a row in it; rows count from 1 below the header."""
    found = []
    for code, mask in faults.items():
        rows = np.flatnonzero(mask.to_numpy(dtype=bool, na_value=False))
        if rows.size:
            place = f"row {rows[0] + 1} ({timestamps.iloc[rows[0]]})"
            found.append(Problem(code, int(rows.size), place, REMEDIES[code]))
    return found


def _report(
    bars: pd.DataFrame,
    interval: pd.Timedelta | None,
    facts: Mapping[str, tuple[str, ...]],
    findings: tuple[pd.Series, list[Problem], list[Problem]],
) -> QualityReport:
    dropped, defects, problems = findings
    times = bars["timestamp"].dropna()
    days = times.dt.normalize().drop_duplicates().sort_values()
    lengths = np.unique_counts(times.dt.normalize().value_counts().to_numpy())
    counts = {found.code: found.count for found in (*defects, *problems)}
    missing, off_calendar = against_calendar([day.date() for day in days])
    return QualityReport(
        rows=len(bars),
        sessions=len(days),
        interval_s=None if interval is None else interval.total_seconds(),
        first=None if times.empty else times.iloc[0].isoformat(),
        last=None if times.empty else times.iloc[-1].isoformat(),
        session_lengths=dict(zip(lengths.values.tolist(), lengths.counts.tolist(), strict=True)),
        gaps=counts.get("gap", 0),
        exact_duplicates=counts.get("exact_duplicate", 0),
        conflicting_duplicates=counts.get("conflicting_duplicate", 0),
        outliers=counts.get("outlier", 0),
        missing_sessions=missing,
        off_calendar=off_calendar,
        long_breaks=long_breaks(days),
        partial_sessions=facts.get("partial_sessions", ()),
        large_moves=facts.get("large_moves", ()),
        dropped_sessions=tuple(f"{each:%Y-%m-%d}" for each in dropped.unique()),
        defects=tuple(defects),
        problems=tuple(problems),
    )
