"""History from Fyers through its own SDK (extra `fyers`), with what the SDK lacks: timeouts, errors, pacing.

The SDK never raises: a refused connection, an HTML error page and a server's refusal all come back as a dict,
and that dict is one shared object per client, so it is copied at once. It has no timeouts, writes log files
where it is told to, and hands out the bar that is still forming.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import SecretStr

from core.errors import BrokerError, ConfigError, DataError, HrmSystemError
from trading.calendar import ZONE
from trading.files import validated

RESOLUTIONS = ("1", "3", "5", "15")  # minutes; Fyers has others, which do not divide a session
DAYS_PER_CALL = 100
PAUSE_S = 0.35  # keeps below 10 calls a second and 200 a minute; breaking that three times blocks the day
TIMEOUT_S = (3.05, 10.0)  # connect, read
COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")

LOGGED_OUT = {-8, -15, -16, -17, 401}
RATE_LIMITED = {-429, 429}
BAD_REQUEST = {-50: "check resolution and dates", -300: "check the symbol, such as NSE:NIFTY50-INDEX"}


@dataclass(frozen=True)
class Credentials:
    """App id and the day's access token. The token never appears in a repr, a log or an error."""

    client_id: str
    access_token: SecretStr

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Credentials:
        """From FYERS_CLIENT_ID and FYERS_ACCESS_TOKEN. Raises ConfigError naming what is not set."""
        environ = os.environ if environ is None else environ
        names = ("FYERS_CLIENT_ID", "FYERS_ACCESS_TOKEN")
        missing = [name for name in names if not environ.get(name)]
        if missing:
            raise ConfigError(
                f"environment: {' and '.join(missing)} not set; log in to Fyers and export today's token",
                code="no_credentials",
            )
        return cls(environ[names[0]], SecretStr(environ[names[1]]))


def fetch_history(
    symbol: str,
    resolution: str,
    start: date,
    end: date,
    *,
    credentials: Credentials,
    log_dir: Path,
    pause_s: float = PAUSE_S,
) -> pd.DataFrame:
    """Closed, checked bars of `symbol` from `start` to `end` inclusive (see trading.files.validated).

    Args:
        symbol: as Fyers names it, such as NSE:NIFTY50-INDEX.
        resolution: minutes in a bar, one of RESOLUTIONS.
        log_dir: where the SDK may write its logs; made private.

    Raises:
        ConfigError: the extra is not installed, or the login has expired.
        BrokerError: Fyers is unavailable or limits the rate; `retryable`.
        DataError: unknown symbol, bad dates, no bars, or bars that cannot be trusted.
    """
    if resolution not in RESOLUTIONS:
        raise DataError(f"resolution '{resolution}': choose minutes out of {', '.join(RESOLUTIONS)}")
    if start > end:
        raise DataError(f"history of {symbol}: start {start} is after end {end}; swap them")
    source = f"Fyers history of {symbol}"
    candles: list[Any] = []
    with _client(credentials, log_dir) as client:
        for first, last in _chunks(start, end):
            if first != start:
                time.sleep(pause_s)
            candles += _call(client, _request(symbol, resolution, first, last), credentials)
    closed_before = datetime.now(UTC) - timedelta(minutes=int(resolution))
    frame = _frame(candles, source)
    return validated(frame[~(frame["timestamp"] > closed_before)], source)


def _chunks(start: date, end: date) -> Iterator[tuple[date, date]]:
    """Consecutive inclusive ranges of at most DAYS_PER_CALL days."""
    while start <= end:
        last = min(end, start + timedelta(days=DAYS_PER_CALL - 1))
        yield start, last
        start = last + timedelta(days=1)


@contextmanager
def _client(credentials: Credentials, log_dir: Path) -> Iterator[Any]:
    """The SDK's synchronous client: timeouts forced, logs confined to `log_dir`, everything closed after use."""
    try:
        from fyers_apiv3.fyersModel import FyersModel
    except ImportError as error:
        raise ConfigError(
            f"the Fyers SDK is not usable ({error}); install this package with the extra [fyers]",
            code="missing_extra",
        ) from None
    log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    client = FyersModel(
        client_id=credentials.client_id,
        token=credentials.access_token.get_secret_value(),
        log_path=str(log_dir),
    )
    loggers = (client.api_logger, client.request_logger)
    for logger in loggers:  # a second client would go on writing to the first one's files
        logging.getLogger(logger.service).handlers = [logger.logger_handler]
        logging.getLogger(logger.service).propagate = False
    session = client.service.session
    session.request = functools.partial(session.request, timeout=TIMEOUT_S)
    try:
        yield client
    finally:
        session.close()
        for logger in loggers:
            logger.logger_handler.close()


def _request(symbol: str, resolution: str, first: date, last: date) -> dict[str, str]:
    return {
        "symbol": symbol,
        "resolution": resolution,
        "date_format": "1",
        "range_from": first.isoformat(),
        "range_to": last.isoformat(),
        "cont_flag": "1",
    }


def _call(client: Any, request: dict[str, str], credentials: Credentials) -> list[Any]:
    answer = client.history(data=request)
    answer = dict(answer) if isinstance(answer, dict) else {"message": "no JSON object"}
    if answer.get("s") == "no_data":
        return []
    if answer.get("s") != "ok":
        raise _error(answer, request, credentials)
    candles = answer.get("candles")
    if not isinstance(candles, list):
        raise DataError(f"Fyers history of {request['symbol']}: an answer without candles; try again later")
    return candles


def _error(answer: dict[str, Any], request: dict[str, str], credentials: Credentials) -> HrmSystemError:
    """What an error dict means. -99 is also the SDK's answer to any network failure."""
    code = answer.get("code")
    said = str(answer.get("message", "")).replace(credentials.access_token.get_secret_value(), "***")
    what = f"Fyers history of {request['symbol']} {request['range_from']}..{request['range_to']}: {said} ({code})"
    if code in LOGGED_OUT:
        return ConfigError(f"{what}; log in again and export today's FYERS_ACCESS_TOKEN", code="logged_out")
    if code in RATE_LIMITED:
        return BrokerError(f"{what}; wait a minute and try again", code="rate_limited", retryable=True)
    if code in BAD_REQUEST:
        return DataError(f"{what}; {BAD_REQUEST[code]}", code="bad_request")
    return BrokerError(f"{what}; check the network and try again", code="unavailable", retryable=True)


def _frame(candles: list[Any], source: str) -> pd.DataFrame:
    rows = [candle for candle in candles if isinstance(candle, list) and len(candle) == len(COLUMNS)]
    if len(rows) < len(candles):
        raise DataError(f"{source}: {len(candles) - len(rows)} candle(s) without {len(COLUMNS)} values; try again")
    if not rows:
        raise DataError(f"{source}: no bars in these days; check symbol and dates", code="no_data")
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    seconds = pd.to_numeric(frame["timestamp"], errors="coerce")
    return frame.assign(timestamp=pd.to_datetime(seconds, unit="s", utc=True, errors="coerce").dt.tz_convert(ZONE))
