"""Bars from CSV and parquet files, checked before anybody sees them (trading/quality.py has the rules).

`fix` writes a clean copy beside a file; the file itself is never written.

Columns, in any case: timestamp (the bar's start, with its zone), open, high, low, close, volume, and
optionally signal. Other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import structlog

from core.errors import DataError
from core.files import write_atomically
from trading.bar_faults import PRICES
from trading.calendar import ZONE
from trading.market import Bars
from trading.quality import Problem, QualityReport, examine
from trading.repair import Repair, repaired

REQUIRED = ("timestamp", *PRICES, "volume")
OPTIONAL = ("signal",)


def _read_csv(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path)
    if not isinstance(frame.index, pd.RangeIndex):  # pandas would shift every column by one and say nothing
        raise ValueError("its rows have more fields than its header, such as a comma at their end")
    return frame


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {".csv": _read_csv, ".parquet": pd.read_parquet}

log = structlog.get_logger(__name__)


def load_bars(path: Path, *, min_sessions: int = 1) -> pd.DataFrame:
    """Bars of a `.csv` or `.parquet` file, see `validated`. Raises DataError naming file and remedy."""
    return validated(_read(path), str(path), min_sessions=min_sessions)


def load_market_bars(path: Path, *, min_sessions: int = 1) -> Bars:
    """The same as `trading.market.Bars`, named after the file; sessions are numbered from 0."""
    return to_market_bars(load_bars(path, min_sessions=min_sessions), path.stem.upper())


def to_market_bars(frame: pd.DataFrame, name: str) -> Bars:
    """Validated bars as arrays: UTC nanoseconds, sessions numbered from 0."""
    days = frame["timestamp"].dt.normalize()
    prices = {price: frame[price].to_numpy(dtype=np.float64) for price in PRICES}
    return Bars(
        name,
        frame["timestamp"].to_numpy(dtype="datetime64[ns]").astype(np.int64),
        prices["open"],
        prices["high"],
        prices["low"],
        prices["close"],
        session=pd.factorize(days)[0].astype(np.int64),
        signal=frame["signal"].to_numpy(dtype=np.float64) if "signal" in frame else None,
    )


def to_frame(bars: Bars) -> pd.DataFrame:
    """The inverse of `to_market_bars`, in India time; what no market bar carries (volume) is 0."""
    times = pd.to_datetime(bars.timestamps, utc=True, unit="ns").tz_convert(ZONE)
    columns = {"timestamp": times} | {price: getattr(bars, price) for price in PRICES} | {"volume": 0.0}
    return pd.DataFrame(columns if bars.signal is None else columns | {"signal": bars.signal})


def write_bars(frame: pd.DataFrame, path: Path) -> None:
    """Write a `.csv` or `.parquet` file that is whole or absent. Raises DataError for another extension."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        content = frame.to_csv(index=False).encode()
    elif suffix == ".parquet":
        content = frame.to_parquet(index=False)
    else:
        raise _unknown_extension(path)
    write_atomically(path, content)


def check(path: Path) -> QualityReport:
    """The quality of a file's bars. Raises DataError only if it cannot be read as a table of bars at all."""
    return examine(_columns(_read(path), str(path)))[1]


@dataclass(frozen=True)
class CleanCopy:
    """What `fix` wrote: the file, what was done for it, and the report on it, which has nothing to complain of."""

    file: Path
    repairs: tuple[Repair, ...]
    report: QualityReport


def fix(path: Path, out: Path | None = None) -> CleanCopy:
    """Write the bars of `path`, repaired as far as that is certain (trading/repair.py), to another file.

    `out` is `<name>.clean<ext>` beside it by default; an older copy there is replaced in one step. Columns that
    nobody reads are left out. Raises DataError, with nothing written, if `out` is the file itself or no `.csv` or
    `.parquet`, or if bars are left that are not clean.
    """
    frame = _columns(_read(path), str(path))
    out = out or path.with_name(f"{path.stem}.clean{path.suffix}")
    if out.exists() and (out.is_dir() or out.samefile(path)):
        raise DataError(f"{out}: is a folder, or the file to be fixed; choose another --out", code="bad_file")
    if out.suffix.lower() not in READERS:
        raise _unknown_extension(out)
    bars, repairs = repaired(frame, str(path))
    write_bars(bars, out)
    return CleanCopy(out, tuple(repairs), check(out))


def validated(frame: pd.DataFrame, source: str, *, min_sessions: int = 1) -> pd.DataFrame:
    """The usable sessions of `frame`, index 0..n-1: timestamp datetime64[ns, zone], all else float64.

    Raises DataError listing every class of problem with its count and first place in `source`.
    """
    bars, report = examine(_columns(frame, source))
    problems = list(report.problems)
    sessions = report.sessions - len(report.dropped_sessions)
    if not problems and sessions < min_sessions:
        problems.append(Problem("too_few_sessions", sessions, "the end", f"give at least {min_sessions} sessions"))
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(f"{source}: {len(problems)} problem(s), nothing was used:\n{listing}", code="bad_bars")
    if report.dropped_sessions:
        log.warning("sessions_dropped", source=source, sessions=list(report.dropped_sessions))
    return bars


def _read(path: Path) -> pd.DataFrame:
    reader = READERS.get(path.suffix.lower())
    if not path.exists():
        raise DataError(f"{path}: no such file; check the path", code="no_such_file")
    if reader is None:
        raise _unknown_extension(path)
    try:
        frame = reader(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        remedy = f"give a readable {path.suffix} table with the columns {', '.join(REQUIRED)}"
        why = " ".join(str(error).split())  # pandas' messages have line breaks
        raise DataError(f"{path}: not readable ({why}); {remedy}", code="bad_file") from None
    return frame if frame.index.name is None else frame.reset_index()


def _unknown_extension(path: Path) -> DataError:
    return DataError(f"{path}: unknown extension '{path.suffix}'; give a .csv or .parquet file", code="bad_file")


def _columns(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    frame = frame.rename(columns=lambda name: str(name).strip().lower())
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        found = ", ".join(frame.columns) or "none"
        raise DataError(f"{source}: missing columns {', '.join(missing)} (found: {found}); add them", code="bad_file")
    kept = frame[[name for name in frame.columns if name in REQUIRED + OPTIONAL]]
    if kept.columns.has_duplicates:
        twice = sorted(set(kept.columns[kept.columns.duplicated()]))
        raise DataError(f"{source}: columns {', '.join(twice)} occur twice; keep one of each", code="bad_file")
    if kept.empty:
        raise DataError(f"{source}: no rows below the header; give bars", code="bad_file")
    return kept.reset_index(drop=True)
