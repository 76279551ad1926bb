"""Token, secret, code and the socket's key are shown nowhere: a day of everything, good and bad, is searched."""

from __future__ import annotations

import base64
import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fyers_account import FUTURE, INDEX, PRICE, until
from pydantic import SecretStr
from test_fyers_history import WEEK
from test_fyers_login import REDIRECT, redirected

from core.errors import HrmSystemError
from tests.fyers_emulator.process import Emulator
from trading.broker import Ticket
from trading.fyers.broker import FyersBroker
from trading.fyers.client import Access, Clients
from trading.fyers.feed import FyersFeed
from trading.fyers.history import fetch_history
from trading.fyers.login import App, code_in, exchange, login_page, store
from trading.fyers.order_stream import OrderStream

SECRET = "a-wrong-secret-of-the-app"


def test_what_is_secret_is_in_no_log_no_file_no_repr_and_no_error(
    emulator: Emulator,
    access: Access,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shown: list[str] = []

    def see(what: Callable[[], object]) -> None:
        try:
            shown.append(repr(what()))
        except HrmSystemError as error:
            shown.append("".join(traceback.format_exception(error)) + repr(error))

    with caplog.at_level(logging.DEBUG):
        app = App(emulator.client_id, SecretStr(emulator.secret), REDIRECT)
        page = login_page(app, "s", emulator.url)
        code = code_in(redirected(page), "s")
        see(lambda: exchange(replace(app, secret=SecretStr(SECRET)), code, emulator.url))
        own = replace(access, credentials=exchange(app, code, emulator.url))
        store(own.credentials, own.state_dir)
        see(lambda: exchange(app, code, emulator.url))
        token = own.credentials.access_token.get_secret_value()
        _a_day(emulator, own, token, see)
        for thing in (app, code, own, own.credentials, Clients(own).here()):
            see(lambda thing=thing: thing)

    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "fyers_token.json"]
    shown += [file.read_text(errors="replace") for file in files]
    out, err = capfd.readouterr()
    shown += [page, out, err]
    shown += [record.getMessage() for record in caplog.records if not record.name.startswith("http")]  # the browser's
    everything = "\n".join(shown)
    assert {"fyers_sdk.log", "fyers_calls"} <= {file.name for file in files}
    assert "cannot accept ***" in everything  # the search looks where they would be
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==="))
    for secret in (token, token[:60], code.get_secret_value(), emulator.secret, SECRET, claims["hsm_key"]):
        assert secret not in everything


def _a_day(emulator: Emulator, own: Access, token: str, see: Callable[[Callable[[], object]], None]) -> None:
    """Orders, books, history and streams; a broker that repeats the token; an end of the session."""
    emulator.ticks({INDEX: PRICE})
    broker, feed, stream, clients = FyersBroker(own), FyersFeed(own), OrderStream(own), Clients(own)
    ticks: list[object] = []
    missed: list[None] = []
    feed.start(ticks.append, ["NIFTY", FUTURE])
    stream.start(lambda _: None, lambda: missed.append(None))
    until(lambda: ticks and missed)
    order = Ticket("NIFTY:1", FUTURE, 65, PRICE + 50)
    see(lambda: broker.place(order))
    for route in ("POST /api/v3/orders/sync", "GET /api/v3/orders", "GET /data/history"):
        emulator.fault("refused", route=route, message=f"RED: cannot accept {token} of {own.credentials.header}")
    see(lambda: broker.place(order))
    see(broker.snapshot)
    see(lambda: fetch_history(clients.here(), WEEK))
    see(broker.snapshot)
    emulator.fault("malformed_tick", how="truncated")
    emulator.fault("token_expiry")
    see(lambda: broker.place(order))
    see(broker.snapshot)
    see(lambda: feed.quotes(["NIFTY"]))
    broker.cancel("1")
    for thing in (broker, feed, stream, clients, feed._stream, stream._stream, stream._stream and stream._stream._line):
        see(lambda thing=thing: thing)
    for used in (broker, feed, stream, clients):
        used.close()
