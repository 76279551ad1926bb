"""What can be wrong with bars, as masks over their rows: [n] booleans by the code of the fault.

    time_faults      a timestamp cannot be read, or its zone is not clear
    row_faults       a row's values cannot be right, a row stands twice or in the wrong place
    session_faults   a session cannot be used: bars missing, a tick far off, another instrument's level, ...

A session is a calendar day in Kolkata. Bars are a table of timestamp (start of the bar) and float64 columns, with
the row's number in the file as its index.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from trading.calendar import ZONE
from trading.stamps import contrary_stamps, end_stamped, outside_hours

PRICES = ["open", "high", "low", "close"]
Faults = dict[str, pd.Series]

REPRESENTABLE = (pd.Timestamp("1678-01-01", tz="UTC"), pd.Timestamp("2262-01-01", tz="UTC"))  # in nanoseconds
ZONE_OF_TEXT = r"[T ].*(Z|[+-]\d{2}:?\d{2})$"
MAX_CONSTANT_RATIO = 0.5  # of the sessions: a market stands still on a quiet day, a dead feed on most of them
MIN_LENGTH_RATIO = 0.9
FEWEST_TO_STAND = 10  # bars: fewer may well close at one price
OUTLIER_RATIO = 0.20  # NSE halts its indices for the day at 20 %: beyond it is a bad tick or another instrument
LONG_BREAK = pd.Timedelta(days=7)
NEIGHBOURS = 11  # sessions, the judged one in their middle, whose median says what its level should be


def parsed(frame: pd.DataFrame) -> tuple[pd.DataFrame, Faults]:
    """Bars of `frame` (NaT and NaN where it has no time or number), and the faults of its timestamps."""
    times, faults = _timestamps(frame["timestamp"])
    numbers = frame.drop(columns="timestamp").apply(pd.to_numeric, errors="coerce").astype("float64")
    return pd.concat([times, numbers], axis=1), faults


def _timestamps(column: pd.Series) -> tuple[pd.Series, Faults]:
    """Times in Kolkata and ns; in UTC while a zone is unclear."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        times = _nanoseconds(column).dt.tz_convert(ZONE)
        return times, {"missing_timestamp": column.isna(), "unreadable_timestamp": column.notna() & times.isna()}
    text = column.astype("string").str.strip().fillna("")
    zone = text.str.extract(ZONE_OF_TEXT, expand=False)
    dates = text.mask(text.str.fullmatch(r"[\d.]*"))  # a bare number would be read as a year
    times = _nanoseconds(pd.to_datetime(dates, format="ISO8601", utc=True, errors="coerce"))
    readable = times.notna()
    faults = {
        "unreadable_timestamp": ~readable,
        "naive_timestamp": readable & zone.isna(),
        "mixed_time_zones": zone.notna() & (zone != zone.dropna().iloc[0]) if zone.notna().any() else zone.notna(),
    }
    return (times if zone_unclear(faults) else times.dt.tz_convert(ZONE)).rename("timestamp"), faults


def zone_unclear(time_faults: Faults) -> bool:
    """Whether nobody knows on which day a bar lies."""
    return any(time_faults[code].any() for code in ("naive_timestamp", "mixed_time_zones") if code in time_faults)


def _nanoseconds(times: pd.Series) -> pd.Series:
    """Zoned timestamps in ns; NaT where ns cannot hold them, which no bar's time is."""
    held: pd.Series = times.where(times.between(*REPRESENTABLE)).dt.as_unit("ns")
    return held


def bad_values(bars: pd.DataFrame) -> pd.Series:
    """Rows whose numbers are missing, infinite or of an impossible sign."""
    numbers = bars.drop(columns="timestamp").to_numpy()
    bad = ~np.isfinite(numbers).all(axis=1) | (bars[PRICES] <= 0).any(axis=1) | (bars["volume"] < 0)
    return pd.Series(bad, index=bars.index)


def row_faults(frame: pd.DataFrame, bars: pd.DataFrame) -> Faults:
    """`frame` as given, `bars` as parsed from it."""
    given, numbers = frame.drop(columns="timestamp"), bars.drop(columns="timestamp")
    return {
        "non_numeric": (numbers.isna() & given.notna()).any(axis=1),
        "missing_value": given.isna().any(axis=1),
        "infinite_value": numbers.isin([np.inf, -np.inf]).any(axis=1),
        "non_positive_price": (bars[PRICES] <= 0).any(axis=1),
        "negative_volume": bars["volume"] < 0,
        "inconsistent_bar": inconsistent(bars),
        "constant_prices": _constant(bars),
        "exact_duplicate": exact_duplicates(bars),
        "conflicting_duplicate": conflicting_duplicates(bars),
        "unsorted_timestamp": bars["timestamp"].diff() < pd.Timedelta(0),
    }


def inconsistent(bars: pd.DataFrame) -> pd.Series:
    """High is not the largest of the four prices, or low not the smallest."""
    found: pd.Series = (bars["high"] < bars[PRICES].max(axis=1)) | (bars["low"] > bars[PRICES].min(axis=1))
    return found


def exact_duplicates(bars: pd.DataFrame) -> pd.Series:
    """Repetitions of a row, value by value; not the row's first occurrence."""
    twice = bars["timestamp"].duplicated() & bars["timestamp"].notna()
    return bars.duplicated() & twice if twice.any() else twice


def conflicting_duplicates(bars: pd.DataFrame) -> pd.Series:
    """Rows that share their timestamp with a different row."""
    single = bars["timestamp"][~exact_duplicates(bars)].dropna()
    return single.duplicated(keep=False).reindex(bars.index, fill_value=False)


def _constant(bars: pd.DataFrame) -> pd.Series:
    """Bars of sessions that close at one price throughout; none unless most sessions are like that."""
    day = bars["timestamp"].dt.normalize()
    sessions = bars["close"].groupby(day)
    standing = (sessions.transform("min") == sessions.transform("max")) & (
        sessions.transform("size") >= FEWEST_TO_STAND
    )
    dead = day[standing].nunique() > MAX_CONSTANT_RATIO * sessions.ngroups
    mask: pd.Series = standing & dead
    return mask


def interval_of(bars: pd.DataFrame) -> pd.Timedelta | None:
    """The usual distance of bars inside a session; None when no session has two bars."""
    steps = bars["timestamp"].diff()
    day = bars["timestamp"].dt.normalize()
    steps = steps[(day == day.shift()) & (steps > pd.Timedelta(0))]
    return None if steps.empty else pd.Timedelta(steps.mode().iloc[0])


def session_faults(bars: pd.DataFrame, interval: pd.Timedelta) -> Faults:
    """Of bars with distinct timestamps in order. A fault of a whole session marks its first row only."""
    shifted = bars
    if end_stamped(bars["timestamp"], interval):  # what lies outside the hours is judged as the bars should be stamped
        shifted = bars.assign(timestamp=bars["timestamp"] - interval)
    outside = outside_hours(shifted["timestamp"])
    first = ~bars["timestamp"].dt.normalize().duplicated()
    faults = {"outside_hours": outside, "contrary_stamps": first & contrary_stamps(bars["timestamp"], interval)}
    if not outside.all():
        within = _within_hours(shifted[~outside], interval)
        faults |= {code: mask.reindex(bars.index, fill_value=False) for code, mask in within.items()}
    return faults


def _within_hours(bars: pd.DataFrame, interval: pd.Timedelta) -> Faults:
    day = bars["timestamp"].dt.normalize()
    inside = day == day.shift()
    step = bars["timestamp"].diff().where(inside)
    usual_step = step.groupby(day, sort=False).transform("median")
    other_interval = usual_step.notna() & (usual_step != interval)
    size = day.groupby(day, sort=False).transform("size")
    short = size < MIN_LENGTH_RATIO * size[~inside].mode().max()
    may_be_running = day == day.iloc[-1]
    return {
        "gap": step.notna() & (step != interval) & ~other_interval,
        "other_interval": ~inside & other_interval,
        "outlier": _outliers(bars, inside),
        "short_session": ~inside & short & ~other_interval & ~may_be_running,
        "foreign_level": ~inside & _foreign(bars["close"], day),
    }


def _outliers(bars: pd.DataFrame, inside: pd.Series) -> pd.Series:
    previous = bars["close"].shift().where(inside)
    moves = pd.concat([bars["high"] / bars["low"], bars["open"] / previous, bars["close"] / previous], axis=1).sub(1.0)
    return (moves.abs() > OUTLIER_RATIO).any(axis=1)


def _foreign(close: pd.Series, day: pd.Series) -> pd.Series:
    """Bars of sessions whose median lies far from that of the sessions around them, as far as there is no break."""
    medians = close.groupby(day, sort=False).median()
    days = medians.index.to_series()
    around = medians.groupby((days.diff() > LONG_BREAK).cumsum()).transform(
        lambda run: run.rolling(NEIGHBOURS, center=True, min_periods=1).median()
    )
    return day.map((medians / around - 1.0).abs() > OUTLIER_RATIO).astype(bool)


def of_sessions(day: pd.Series, faults: Faults) -> pd.Series:
    """Bars of the sessions in which any of the faults lies."""
    marked = pd.Series(False, index=day.index)
    for mask in faults.values():
        marked |= mask
    return day.isin(day[marked].unique())


def sound_prices(bars: pd.DataFrame, faults: Faults) -> pd.DataFrame:
    """Bars within the hours, of the sessions whose prices can be compared with their neighbours'."""
    astray = {code: mask for code, mask in faults.items() if code in ("outlier", "foreign_level")}
    return bars[~of_sessions(bars["timestamp"].dt.normalize(), astray) & ~faults["outside_hours"]]


def level_shifts(bars: pd.DataFrame) -> pd.Series:
    """First bars of sessions that open far from the last close, without a long break: a split, another instrument."""
    day = bars["timestamp"].dt.normalize()
    opens = (day != day.shift()) & (day - day.shift() <= LONG_BREAK)
    found: pd.Series = opens & ((bars["open"] / bars["close"].shift() - 1.0).abs() > OUTLIER_RATIO)
    return found
