"""History through the real SDK: whole, resumed after an interruption, patient, and never wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fyers_account import calls

from core.errors import BrokerError, DataError
from tests.fyers_emulator.process import Emulator
from trading.calendar import KOLKATA
from trading.fyers.client import Access, Client, Clients, RateLimitError
from trading.fyers.history import Span, fetch_history

SYMBOL = "NSE:NIFTY50-INDEX"
MONDAY = date(2023, 1, 2)
WEEK = Span(SYMBOL, "5", MONDAY, MONDAY + timedelta(days=4))
PATH = "/data/history"
ROUTE = f"GET {PATH}"


def candles(first: date, last: date) -> list[list[float]]:
    """20 five-minute candles from 09:15 on every weekday."""
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    opens = [datetime(d.year, d.month, d.day, 9, 15, tzinfo=KOLKATA).timestamp() for d in days if d.weekday() < 5]
    return [[int(at) + 300 * bar, 100.0, 101.0, 99.0, 100.0 + 0.05 * bar, 0] for at in opens for bar in range(20)]


@pytest.fixture
def client(emulator: Emulator, access: Access) -> Iterator[Client]:
    clients = Clients(access)
    yield clients.here()
    clients.close()


@pytest.fixture
def year(emulator: Emulator) -> Span:
    """From the middle of one quarter to the middle of the fourth after it."""
    span = Span(SYMBOL, "5", date(2023, 2, 14), date(2024, 2, 13))
    emulator.history(SYMBOL, candles(span.first, span.last))
    return span


def test_history_arrives_as_checked_bars_in_indian_time(emulator: Emulator, client: Client) -> None:
    emulator.history(SYMBOL, candles(WEEK.first, WEEK.last))
    bars = fetch_history(client, WEEK)
    assert len(bars) == 5 * 20
    assert str(bars["timestamp"].iloc[0]) == "2023-01-02 09:15:00+05:30"
    assert bars["close"].tolist() == [100.0 + 0.05 * bar for bar in range(20)] * 5


def test_a_long_span_is_asked_for_in_quarters_without_gap_or_overlap(
    emulator: Emulator, client: Client, year: Span
) -> None:
    told: list[tuple[float, str]] = []
    bars = fetch_history(client, year, progress=lambda ratio, note: told.append((ratio, note)))
    seconds = [at.timestamp() for at in bars["timestamp"]]
    assert seconds == [row[0] for row in candles(year.first, year.last)]
    assert calls(emulator, PATH) == 5
    assert [ratio for ratio, _ in told] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert told[0][1] == f"2023-Q1 of {SYMBOL}"


def test_an_interrupted_download_goes_on_where_it_was(
    emulator: Emulator, client: Client, year: Span, tmp_path: Path
) -> None:
    emulator.fault("bad_gateway", route=ROUTE, after=3, count=1000)
    with pytest.raises(BrokerError):
        fetch_history(client, year, folder=tmp_path, sleep=lambda _: None)
    emulator.heal()
    before = calls(emulator, PATH)
    bars = fetch_history(client, year, folder=tmp_path)
    assert len(bars) == len(candles(year.first, year.last))
    assert calls(emulator, PATH) == before + 2
    kept = sorted(file.name for file in (tmp_path / "NSE_NIFTY50-INDEX" / "5").iterdir())
    assert kept == ["2023-Q1.parquet", "2023-Q2.parquet", "2023-Q3.parquet", "2023-Q4.parquet", "2024-Q1.parquet"]
    pd.testing.assert_frame_equal(fetch_history(client, year, folder=tmp_path), bars)
    assert calls(emulator, PATH) == before + 2


def test_a_kept_file_that_cannot_be_read_is_asked_for_again(
    emulator: Emulator, client: Client, year: Span, tmp_path: Path
) -> None:
    bars = fetch_history(client, year, folder=tmp_path)
    (tmp_path / "NSE_NIFTY50-INDEX" / "5" / "2023-Q2.parquet").write_bytes(b"torn")
    pd.testing.assert_frame_equal(fetch_history(client, year, folder=tmp_path), bars)


def test_a_quarter_that_is_not_over_and_one_without_bars_are_not_kept(
    emulator: Emulator, client: Client, tmp_path: Path
) -> None:
    emulator.history(SYMBOL, candles(date(2023, 4, 3), date(2023, 6, 29)))
    span = Span(SYMBOL, "5", date(2023, 1, 2), date(2023, 12, 31))
    now = datetime(2023, 6, 30, 23, 0, tzinfo=KOLKATA)
    assert len(fetch_history(client, span, folder=tmp_path, now=now)) > 0
    assert calls(emulator, PATH) == 2  # nothing of the days to come
    assert not list(tmp_path.rglob("*.parquet"))


def test_only_closed_bars_are_given_out(emulator: Emulator, client: Client) -> None:
    emulator.history(SYMBOL, candles(MONDAY, MONDAY))
    now = datetime(2023, 1, 2, 9, 50, 30, tzinfo=KOLKATA).astimezone(UTC)
    bars = fetch_history(client, Span(SYMBOL, "5", MONDAY, MONDAY), now=now)
    assert [f"{time:%H:%M}" for time in bars["timestamp"]] == [f"09:{minute}" for minute in range(15, 50, 5)]


def test_a_busy_broker_is_given_the_time_it_asks_for(emulator: Emulator, client: Client) -> None:
    emulator.history(SYMBOL, candles(WEEK.first, WEEK.last))
    emulator.fault("rate_limited", route=ROUTE, retry_after_s=2)
    emulator.fault("bad_gateway", route=ROUTE)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        time.sleep(seconds)

    fetch_history(client, WEEK, sleep=sleep)
    assert waited == [2.0, 2.0]  # as told; then as long as after any second failure


def test_a_long_block_is_for_the_person_who_asked(emulator: Emulator, client: Client) -> None:
    emulator.fault("rate_limited", route=ROUTE, retry_after_s=3600)
    waited: list[float] = []
    with pytest.raises(RateLimitError, match="wait 3600 s"):
        fetch_history(client, WEEK, sleep=waited.append)
    assert not waited


def test_a_broker_that_stays_away_is_given_up(emulator: Emulator, client: Client) -> None:
    emulator.fault("bad_gateway", route=ROUTE, count=100)
    waited: list[float] = []
    with pytest.raises(BrokerError, match="check the network"):
        fetch_history(client, WEEK, sleep=waited.append)
    assert waited == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_no_bars_and_unknown_symbols_are_named(client: Client) -> None:
    with pytest.raises(DataError, match="no bars") as nothing:
        fetch_history(client, WEEK)
    assert nothing.value.code == "no_data"
    with pytest.raises(DataError, match="check the symbol"):
        fetch_history(client, Span("NSE:NONE-EQ", "5", MONDAY, MONDAY))


@pytest.mark.parametrize(
    ("symbol", "resolution", "days", "remedy"),
    [
        (SYMBOL, "7", 0, "choose minutes"),
        (SYMBOL, "5", -1, "swap them"),
        ("NIFTY", "5", 0, "as Fyers does"),
        ("NSE:../../x", "5", 0, "as Fyers does"),
    ],
)
def test_nonsense_is_refused_before_any_call(symbol: str, resolution: str, days: int, remedy: str) -> None:
    with pytest.raises(DataError, match=remedy):
        Span(symbol, resolution, MONDAY, MONDAY + timedelta(days=days))


class Says:
    """A client whose broker says what the emulator cannot."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    def ask(self, *_: object, **__: object) -> dict[str, Any]:
        return self._body


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"s": "ok"}, "data_error"),
        ({"s": "ok", "candles": None}, "data_error"),
        ({"s": "ok", "candles": []}, "no_data"),
        ({"s": "ok", "candles": [[1672631100, 1, 2]]}, "data_error"),
        ({"s": "ok", "candles": [[1672631100, 100, 90, 95, 99, 0]]}, "bad_bars"),
        ({"s": "ok", "candles": [[1672631400, 100, 101, 99, "x", 0]]}, "bad_bars"),
        ({"s": "ok", "candles": [["soon", 100, 101, 99, 100, 0]]}, "bad_bars"),
        ({"s": "ok", "candles": [[1e18, 100, 101, 99, 100, 0]]}, "bad_bars"),
        ({"s": "ok", "candles": [[None, 100, 101, 99, 100, 0]]}, "bad_bars"),
        ({"s": "ok", "candles": candles(date(2022, 12, 30), date(2022, 12, 30))}, "bad_bars"),  # of another quarter
        ({"s": "ok", "candles": candles(MONDAY, MONDAY) * 2}, "bad_bars"),
    ],
)
def test_bars_that_cannot_be_trusted_are_refused(body: dict[str, Any], code: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=SYMBOL) as refused:
        fetch_history(Says(body), WEEK, folder=tmp_path)  # type: ignore[arg-type] # all that history wants of a client
    assert refused.value.code == code
