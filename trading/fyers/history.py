"""Bars of the past: asked for in quarters, paced, kept as they come, checked as a whole.

The broker gives at most 100 days of minutes a call, so a call is a quarter of the year. With a folder, quarters that
are over are kept there: a download that was interrupted goes on, and a later one asks only for what is new. The bar
that is still forming is dropped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import structlog

from core.errors import BrokerError, DataError
from trading.calendar import KOLKATA, ZONE
from trading.files import validated, write_bars
from trading.fyers.client import Client, RateLimitError
from trading.fyers.pace import DOWNLOADS

RESOLUTIONS = ("1", "3", "5", "15")  # minutes; Fyers has others, which do not divide a session
COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
SYMBOL = re.compile(r"[A-Z]{2,5}:[A-Z0-9&_. -]{1,60}")
ATTEMPTS = 6
LONGEST_WAIT_S = 120.0  # longer ones are for the person who asked

Progress = Callable[[float, str], None]  # ratio done in [0, 1], what is being done

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Span:
    """Bars of `resolution` minutes of a symbol as Fyers names it (NSE:NIFTY50-INDEX), first to last day inclusive."""

    symbol: str
    resolution: str
    first: date
    last: date

    def __post_init__(self) -> None:
        if not SYMBOL.fullmatch(self.symbol):
            raise DataError(f"symbol '{self.symbol}': write it as Fyers does, such as NSE:NIFTY50-INDEX")
        if self.resolution not in RESOLUTIONS:
            raise DataError(f"resolution '{self.resolution}': choose minutes out of {', '.join(RESOLUTIONS)}")
        if self.first > self.last:
            raise DataError(f"history of {self.symbol}: start {self.first} is after end {self.last}; swap them")


@dataclass(frozen=True)
class _Chunk:
    first: date
    last: date
    is_over: bool  # all its days, and it is a whole quarter

    @property
    def name(self) -> str:
        return f"{self.first.year}-Q{(self.first.month + 2) // 3}"


def fetch_history(
    client: Client,
    span: Span,
    *,
    folder: Path | None = None,
    progress: Progress = lambda ratio, note: None,
    now: datetime | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> pd.DataFrame:
    """Closed, checked bars (see trading.files.validated), in India time.

    Args:
        folder: where quarters that are over are kept, as <symbol>/<resolution>/<quarter>.parquet; None: nowhere.
        now: aware; decides which days are over and which bar is forming.

    Raises:
        ConfigError: the extra is not installed, or the login has expired.
        BrokerError: Fyers is unavailable or limits the rate, after ATTEMPTS; `retryable`.
        DataError: unknown symbol, no bars, or bars that cannot be trusted.
    """
    now = now or datetime.now(UTC)
    kept = None if folder is None else folder / span.symbol.replace(":", "_") / span.resolution
    chunks = list(_chunks(span, now.astimezone(KOLKATA).date()))
    frames = []
    for number, chunk in enumerate(chunks):
        progress(number / len(chunks), f"{chunk.name} of {span.symbol}")
        frames.append(_chunk_of(client, span, chunk, kept, sleep))
    progress(1.0, f"{len(chunks)} quarters of {span.symbol}")
    return _whole(frames, span, kept, now)


def _chunks(span: Span, today: date) -> Iterator[_Chunk]:
    """Whole quarters, but for the last one: no day after today."""
    first = date(span.first.year, (span.first.month - 1) // 3 * 3 + 1, 1)
    while first <= min(span.last, today):
        following = (first + timedelta(days=95)).replace(day=1)
        yield _Chunk(first, min(following - timedelta(days=1), today), is_over=following <= today)
        first = following


def _chunk_of(
    client: Client, span: Span, chunk: _Chunk, kept: Path | None, sleep: Callable[[float], None]
) -> pd.DataFrame:
    """One quarter: kept from before, or asked for and, if all its days are over, kept for the next time."""
    file = None if kept is None or not chunk.is_over else kept / f"{chunk.name}.parquet"
    found = None if file is None else _read(file)
    if found is not None:
        return found
    frame = _frame(_asked(client, span, chunk, sleep), span, chunk)
    if file is not None and not frame.empty:  # nothing at all may be the broker's mistake
        write_bars(frame, file)
    return frame


def _read(file: Path) -> pd.DataFrame | None:
    """What was kept, or None: a file that cannot be read is asked for again."""
    if not file.is_file():
        return None
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # ArrowException is a ValueError
        log.warning("kept_history_unreadable", file=str(file), problem=type(error).__name__)
        return None
    return frame if list(frame.columns) == list(COLUMNS) else None


def _asked(client: Client, span: Span, chunk: _Chunk, sleep: Callable[[float], None]) -> list[Any]:
    """Candles of one chunk; again after a while where the broker is busy or away."""
    what = f"history of {span.symbol} {chunk.first}..{chunk.last}"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            body = client.ask("history", _request(span, chunk), what=what, share=DOWNLOADS)
        except BrokerError as error:
            wait_s = _wait_s(error, attempt)
            if not error.retryable or attempt == ATTEMPTS or wait_s > LONGEST_WAIT_S:
                raise
            sleep(wait_s)
        else:
            break
    candles = [] if body.get("s") == "no_data" else body.get("candles")
    if not isinstance(candles, list):
        raise DataError(f"Fyers {what}: an answer without candles; try again later")
    return candles


def _wait_s(error: BrokerError, attempt: int) -> float:
    """As long as the broker says, or twice as long each time."""
    asked_s = error.retry_after_s if isinstance(error, RateLimitError) else None
    return float(2 ** (attempt - 1)) if asked_s is None else asked_s


def _request(span: Span, chunk: _Chunk) -> dict[str, str]:
    return {
        "symbol": span.symbol,
        "resolution": span.resolution,
        "date_format": "1",
        "range_from": chunk.first.isoformat(),
        "range_to": chunk.last.isoformat(),
        "cont_flag": "1",
    }


def _frame(candles: list[Any], span: Span, chunk: _Chunk) -> pd.DataFrame:
    """Candles as a table; what is of other days than asked for makes all of them worthless."""
    source = f"Fyers history of {span.symbol} {chunk.first}..{chunk.last}"
    rows = [candle for candle in candles if isinstance(candle, list) and len(candle) == len(COLUMNS)]
    if len(rows) < len(candles):
        raise DataError(f"{source}: {len(candles) - len(rows)} candle(s) without {len(COLUMNS)} values; try again")
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers: pd.DataFrame = frame.apply(pd.to_numeric, errors="coerce").astype("float64")
    times = pd.to_datetime(numbers["timestamp"], unit="s", utc=True, errors="coerce").dt.tz_convert(ZONE)
    wrong = numbers.isna().any(axis=1) | times.isna() | ~_within(times, chunk)
    if wrong.any():
        raise DataError(
            f"{source}: {wrong.sum()} candle(s) of other days or without numbers; try again", code="bad_bars"
        )
    return numbers.assign(timestamp=times)


def _whole(frames: list[pd.DataFrame], span: Span, kept: Path | None, now: datetime) -> pd.DataFrame:
    source = f"Fyers history of {span.symbol}" + ("" if kept is None else f" (kept in {kept})")
    frames = [frame for frame in frames if not frame.empty]
    if not frames:
        raise DataError(f"{source}: no bars in these days; check symbol and dates", code="no_data")
    frame = pd.concat(frames, ignore_index=True)
    closed_before = now - timedelta(minutes=int(span.resolution))
    frame = frame[_within(frame["timestamp"], span) & ~(frame["timestamp"] > closed_before)]
    if frame.empty:
        raise DataError(f"{source}: no bars in these days; check symbol and dates", code="no_data")
    return validated(frame, source)


def _within(times: pd.Series[pd.Timestamp], days: Span | _Chunk) -> pd.Series[bool]:
    first = pd.Timestamp(days.first, tz=ZONE)
    return times.between(first, pd.Timestamp(days.last, tz=ZONE) + pd.Timedelta(days=1), inclusive="left")
