"""A symbol's bars up to the last session that is over, from the broker, in the file that everything else reads."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError
from core.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

FIRST = date(2023, 1, 1)
RESOLUTION = "5"  # minutes


def bars_file(settings: Settings, data: str | None, symbol: str | None) -> Path | None:
    """What a flow's parameters name: a file, a symbol's bars fetched anew, or nothing: the synthetic market.

    Raises ConfigError for both, and whatever `fetched` raises.
    """
    if data and symbol:
        raise ConfigError(f"data {data} and symbol {symbol}: name one of them", code="two_sources")
    if symbol:
        return fetched(settings, symbol)
    return Path(data) if data else None


def fetched(settings: Settings, symbol: str, first: date = FIRST) -> Path:
    """Fetch what is new of `symbol` and write all of it. Raises ConfigError (not logged in), BrokerError, DataError."""
    from trading.files import write_bars

    file = file_of(settings, symbol)
    write_bars(history(settings, symbol, RESOLUTION, (first, last_whole_day(datetime.now(UTC)))), file)
    return file


def last_whole_day(now: datetime) -> date:
    """India's latest day whose session, if it has one, is over: half a session is no session to learn from."""
    from trading.calendar import KOLKATA, hours, is_session

    there = now.astimezone(KOLKATA)
    today = there.date()
    unfinished = is_session(today) and there < hours(today, "index_futures").close  # the later one
    return today - timedelta(days=1) if unfinished else today


def file_of(settings: Settings, symbol: str) -> Path:
    return settings.paths.state_dir / "data" / f"{symbol.partition(':')[2] or symbol}.parquet"


def history(settings: Settings, symbol: str, resolution: str, days: tuple[date, date]) -> pd.DataFrame:
    """Goes on where an earlier download was interrupted; quarters that are over are asked for once."""
    from rich.console import Console

    from flows.progress import bars, report
    from trading.fyers.client import Access, Clients
    from trading.fyers.history import Span, fetch_history

    span = Span(symbol, resolution, *days)  # what is misspelt is said before anybody has to log in
    clients = Clients(Access.of(settings))
    try:
        with bars(Console(stderr=True)):
            return fetch_history(
                clients.here(),
                span,
                folder=settings.paths.state_dir / "history",
                progress=lambda ratio, note: report("history", ratio, note),
            )
    finally:
        clients.close()
