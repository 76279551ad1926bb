"""Repairs of bars that are certain, and only those; what is not certain costs its whole session.

    certain      order restored, repeated rows dropped, stamps moved from a bar's end to its start, rows outside the
                 exchange's hours dropped, high and low widened to cover open and close
    not certain  unreadable numbers and times, two different rows for one time, gaps, outliers, another instrument's
                 level, ...: the session is dropped whole

Repaired bars have no problem and no defect left (trading/quality.py), so repairing them again changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from core.errors import DataError
from trading.bar_faults import (
    PRICES,
    Faults,
    bad_values,
    conflicting_duplicates,
    exact_duplicates,
    inconsistent,
    interval_of,
    of_sessions,
    parsed,
    session_faults,
    zone_unclear,
)
from trading.quality import examine
from trading.stamps import contrary_stamps, end_stamped, outside_hours

MAX_DROPPED_RATIO = 0.5  # of the sessions: what needs more is not repaired but replaced


@dataclass(frozen=True)
class Repair:
    """What was done, to how many rows (or sessions), and where first: row of the file and time."""

    what: str
    count: int
    first: str


Step = Callable[[pd.DataFrame], tuple[pd.DataFrame, list[Repair]]]


def repaired(frame: pd.DataFrame, source: str) -> tuple[pd.DataFrame, list[Repair]]:
    """Clean bars of `frame` (columns as for `trading.quality.examine`) and what was done to get them.

    Raises DataError: `bad_bars` if no zone is stated, if rows without a time stand among unsorted ones (nobody knows
    to which session they belong), or if faults are left that no repair mends (each is named);
    `beyond_repair` if over half of the sessions would have to go.
    """
    bars, unclear = parsed(frame)
    known = bars["timestamp"].dropna()
    if zone_unclear(unclear) or (len(known) < len(bars) and not known.is_monotonic_increasing):
        raise _not_mended(frame, source)
    sessions = bars["timestamp"].dt.normalize().nunique()
    bars, made = _without_unreadable_times(bars)
    while True:  # a dropped session can bring its neighbours' faults to light; every round drops or changes a row
        bars, again = _once(bars)
        made += again
        if len(bars) == 0 or bars["timestamp"].dt.normalize().nunique() < MAX_DROPPED_RATIO * sessions:
            raise DataError(
                f"{source}: over {MAX_DROPPED_RATIO:.0%} of its {sessions} sessions cannot be used, nothing was "
                f"written; bring better data:\n{_listing(frame)}",
                code="beyond_repair",
            )
        if not again:
            break
    clean = bars.reset_index(drop=True)
    if not examine(clean)[1].clean:
        raise _not_mended(clean, source)
    return clean, made


def _not_mended(frame: pd.DataFrame, source: str) -> DataError:
    return DataError(f"{source}: not repaired, nothing was written; by hand:\n{_listing(frame)}", code="bad_bars")


def _listing(frame: pd.DataFrame) -> str:
    report = examine(frame)[1]
    return "\n".join(f"  - {problem}" for problem in (*report.problems, *report.defects))


def _once(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    made: list[Repair] = []
    for step in STEPS:
        if len(bars):
            bars, done = step(bars)
            made += done
    return bars, made


def _without_unreadable_times(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    """A row without a time may belong to the session before it or to the one after: both go."""
    lost = bars["timestamp"].isna()
    if not lost.any():
        return bars, []
    day = bars["timestamp"].dt.normalize()
    around = pd.concat([day.ffill()[lost], day.bfill()[lost]])
    kept = bars[~lost & ~day.isin(around)]
    return kept, [_repair("rows without a readable time dropped, with the sessions around", bars, lost)]


def _sorted(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    back = bars["timestamp"].diff() < pd.Timedelta(0)
    if not back.any():
        return bars, []
    return bars.sort_values("timestamp", kind="stable"), [_repair("order restored", bars, back)]


def _without_repetitions(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    return _without_rows(bars, exact_duplicates(bars), "repeated rows dropped")


def _without_unusable_values(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    faults = {
        "with missing or impossible numbers": bad_values(bars),
        "with different rows for one time": conflicting_duplicates(bars),
    }
    return _without_sessions(bars, faults)


def _of_one_stamp(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    """Before any stamp moves: afterwards a session stamped the other way would look right."""
    interval = interval_of(bars)
    if interval is None:
        return bars, []
    contrary = contrary_stamps(bars["timestamp"], interval)
    return _without_sessions(bars, {"stamped at the other end of the bars than most": contrary})


def _stamped_at_start(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    interval = interval_of(bars)
    if interval is None or not end_stamped(bars["timestamp"], interval):
        return bars, []
    what = f"stamps moved back by {interval.total_seconds():g} s, from the bar's end to its start"
    repair = _repair(what, bars, pd.Series(True, index=bars.index))
    return bars.assign(timestamp=bars["timestamp"] - interval), [repair]


def _within_hours(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    if interval_of(bars) is None:  # daily bars are stamped at midnight
        return bars, []
    return _without_rows(bars, outside_hours(bars["timestamp"]), "rows outside the exchange's hours dropped")


def _widened(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    narrow = inconsistent(bars)
    if not narrow.any():
        return bars, []
    wide = bars.assign(high=bars[PRICES].max(axis=1), low=bars[PRICES].min(axis=1))
    return wide, [_repair("high and low widened to cover open and close", bars, narrow)]


def _without_defects(bars: pd.DataFrame) -> tuple[pd.DataFrame, list[Repair]]:
    interval = interval_of(bars)
    if interval is None:
        return bars, []
    names = {
        "gap": "with a gap",
        "other_interval": "with bars of another length than most",
        "outlier": "with an outlier",
        "short_session": "that are short",
        "foreign_level": "at another instrument's level",
    }
    faults = session_faults(bars, interval)
    return _without_sessions(bars, {names[code]: mask for code, mask in faults.items() if code in names})


# In this order: what comes later reads rows that are in order, single, numeric and stamped at their start.
STEPS: tuple[Step, ...] = (
    _sorted,
    _without_repetitions,
    _without_unusable_values,
    _of_one_stamp,
    _stamped_at_start,
    _within_hours,
    _widened,
    _without_defects,
)


def _without_rows(bars: pd.DataFrame, mask: pd.Series, what: str) -> tuple[pd.DataFrame, list[Repair]]:
    return (bars[~mask], [_repair(what, bars, mask)]) if mask.any() else (bars, [])


def _without_sessions(bars: pd.DataFrame, faults: Faults) -> tuple[pd.DataFrame, list[Repair]]:
    """Drop every session that has one of the faults, each counted under the first that it has."""
    day = bars["timestamp"].dt.normalize()
    gone, made = pd.Series(False, index=bars.index), []
    for what, mask in faults.items():
        found = of_sessions(day, {what: mask}) & ~gone
        if found.any():
            made.append(_repair(f"sessions {what} dropped whole", bars, found & ~day.duplicated()))
        gone |= found
    return bars[~gone], made


def _repair(what: str, bars: pd.DataFrame, mask: pd.Series) -> Repair:
    rows = np.flatnonzero(mask.to_numpy(dtype=bool))
    first = f"row {bars.index[rows[0]] + 1} ({bars['timestamp'].iloc[rows[0]]})"
    return Repair(what, int(rows.size), first)
