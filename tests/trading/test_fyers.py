"""The real SDK against an emulated Fyers on loopback: nothing here reaches another host."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from pydantic import SecretStr

from core.errors import BrokerError, ConfigError, DataError, HrmSystemError
from trading import fyers
from trading.fyers import Credentials, fetch_history

TOKEN = "eyJ-secret-token"
CREDENTIALS = Credentials("APP-100", SecretStr(TOKEN))
SYMBOL = "NSE:NIFTY50-INDEX"
MONDAY = date(2023, 1, 2)
Answer = tuple[int, bytes]


def candles(request: dict[str, str]) -> list[list[float]]:
    """20 five-minute candles from 09:15 on every weekday asked for."""
    first, last = (date.fromisoformat(request[key]) for key in ("range_from", "range_to"))
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    opens = [datetime(d.year, d.month, d.day, 3, 45, tzinfo=UTC).timestamp() for d in days if d.weekday() < 5]
    return [[int(at) + 300 * bar, 100.0, 101.0, 99.0, 100.0 + 0.05 * bar, 0] for at in opens for bar in range(20)]


def ok(rows: list[Any]) -> Answer:
    return 200, json.dumps({"s": "ok", "candles": rows}).encode()


def error(status: int, code: int, message: str = "refused") -> Answer:
    return status, json.dumps({"s": "error", "code": code, "message": message}).encode()


class Emulator:
    """Answers GET /data/history with whatever `answer` makes of the request."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, str]], Answer] = lambda request: ok(candles(request))
        self.requests: list[dict[str, str]] = []
        self.authorisations: set[str | None] = set()
        emulator = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                request = dict(parse_qsl(urlsplit(self.path).query))
                emulator.requests.append(request)
                emulator.authorisations.add(self.headers["Authorization"])
                status, body = emulator.answer(request)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    sdk = pytest.importorskip("fyers_apiv3.fyersModel", reason="needs the extra [fyers]")
    emulator = Emulator()
    monkeypatch.setattr(sdk.Config, "DATA_API", emulator.url)
    thread = threading.Thread(target=emulator.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield emulator
    emulator.server.shutdown()
    thread.join()
    emulator.server.server_close()


def fetch(tmp_path: Path, start: date = MONDAY, end: date = MONDAY + timedelta(days=4)) -> Any:
    return fetch_history(SYMBOL, "5", start, end, credentials=CREDENTIALS, log_dir=tmp_path / "logs", pause_s=0.0)


def test_history_arrives_as_checked_bars_in_indian_time(emulator: Emulator, tmp_path: Path) -> None:
    bars = fetch(tmp_path)
    assert len(bars) == 5 * 20
    assert str(bars["timestamp"].iloc[0]) == "2023-01-02 09:15:00+05:30"
    assert bars["close"].tolist() == [100.0 + 0.05 * bar for bar in range(20)] * 5
    assert emulator.authorisations == {f"APP-100:{TOKEN}"}


def test_long_ranges_are_asked_in_chunks_that_meet_without_overlap(emulator: Emulator, tmp_path: Path) -> None:
    end = MONDAY + timedelta(days=249)
    fetch(tmp_path, MONDAY, end)
    ranges = [tuple(date.fromisoformat(r[k]) for k in ("range_from", "range_to")) for r in emulator.requests]
    assert (ranges[0][0], ranges[-1][1], len(ranges)) == (MONDAY, end, 3)
    for (_, last), (following, _) in pairwise(ranges):
        assert following == last + timedelta(days=1)
    assert all((last - first).days < 100 for first, last in ranges)


def test_a_chunk_without_data_is_no_error(emulator: Emulator, tmp_path: Path) -> None:
    def only_late(request: dict[str, str]) -> Answer:
        early = request["range_from"] < "2023-04-01"
        return (200, b'{"s": "no_data", "candles": []}') if early else ok(candles(request))

    emulator.answer = only_late
    assert len(fetch(tmp_path, MONDAY, MONDAY + timedelta(days=120))) > 0


def test_the_candle_that_is_still_forming_is_dropped(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtTenToTen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2023, 1, 2, 4, 20, 30, tzinfo=UTC).astimezone(tz)  # 09:50:30 in India

    monkeypatch.setattr(fyers, "datetime", AtTenToTen)
    bars = fetch(tmp_path, MONDAY, MONDAY)
    assert [f"{time:%H:%M}" for time in bars["timestamp"]] == [f"09:{minute}" for minute in range(15, 50, 5)]


@pytest.mark.parametrize(
    ("answer", "kind", "code", "retryable"),
    [
        (error(401, -8, "token expired"), ConfigError, "logged_out", False),
        (error(401, -16), ConfigError, "logged_out", False),
        (error(429, 429), BrokerError, "rate_limited", True),
        (error(400, -300), DataError, "bad_request", False),
        (error(400, -50), DataError, "bad_request", False),
        ((502, b"<html>bad gateway</html>"), BrokerError, "unavailable", True),
        ((200, b"[]"), BrokerError, "unavailable", True),
        ((200, b'{"s": "ok"}'), DataError, "data_error", False),
        (ok([]), DataError, "no_data", False),
        (ok([[1672631100, 1, 2]]), DataError, "data_error", False),
        (ok([[1672631100, 100, 90, 95, 99, 0], [1672631400, 100, 101, 99, "x", 0]]), DataError, "bad_bars", False),
        (ok([["soon", 100, 101, 99, 100, 0]]), DataError, "bad_bars", False),
        (ok([[1e18, 100, 101, 99, 100, 0]]), DataError, "bad_bars", False),
    ],
)
def test_every_refusal_is_a_named_error(
    emulator: Emulator, tmp_path: Path, answer: Answer, kind: type[HrmSystemError], code: str, retryable: bool
) -> None:
    emulator.answer = lambda _: answer
    with pytest.raises(kind, match=SYMBOL) as refused:
        fetch(tmp_path)
    assert (refused.value.code, refused.value.retryable) == (code, retryable)


def test_a_refused_connection_is_unavailable(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fyers_apiv3 import fyersModel

    monkeypatch.setattr(fyersModel.Config, "DATA_API", "http://127.0.0.1:9/data")
    with pytest.raises(BrokerError, match="check the network"):
        fetch(tmp_path)


def test_a_server_that_hangs_is_given_up(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(fyers, "TIMEOUT_S", (1.0, 0.2))

    def hang(_: dict[str, str]) -> Answer:
        released.wait(20)
        return ok([])

    emulator.answer = hang
    try:
        with pytest.raises(BrokerError) as refused:
            fetch(tmp_path)
    finally:
        released.set()
    assert refused.value.retryable


def test_the_token_is_in_no_error_no_log_and_no_repr(
    emulator: Emulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.answer = lambda _: error(400, -77, f"cannot accept {TOKEN}")
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerError, match="cannot accept") as refused:
        fetch(tmp_path)
    assert TOKEN not in f"{refused.value!r} {CREDENTIALS!r} {caplog.text}"


def test_the_sdk_writes_only_into_its_private_log_folder(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    fetch(tmp_path)
    assert not list((tmp_path / "cwd").iterdir())
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "logs" / "fyersApi.log").exists()


def test_without_the_sdk_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fyers_apiv3.fyersModel", None)
    with pytest.raises(ConfigError, match=r"extra \[fyers\]"):
        fetch(tmp_path)


@pytest.mark.parametrize("environ", [{}, {"FYERS_CLIENT_ID": "A"}, {"FYERS_ACCESS_TOKEN": ""}])
def test_missing_credentials_are_named(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="FYERS_ACCESS_TOKEN not set"):
        Credentials.from_environment(environ)


def test_nonsense_is_refused_before_any_call(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose minutes"):
        fetch_history(SYMBOL, "7", MONDAY, MONDAY, credentials=CREDENTIALS, log_dir=tmp_path)
    with pytest.raises(DataError, match="swap them"):
        fetch(tmp_path, MONDAY, MONDAY - timedelta(days=1))
