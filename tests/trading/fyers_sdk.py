"""The broker's real SDK, pointed at the emulator: its clients, its sockets, and what they were told.

Its sleeps (seconds before it subscribes, reconnects, ends) are cut short, and it writes no log files; nothing else of
it is touched.
"""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fyers_emulator.process import CLIENT_ID, Emulator

INDEX_NAMES = {"NSE:NIFTY50-INDEX": "Nifty 50", "NSE:NIFTYBANK-INDEX": "Nifty Bank"}
DEADLINE_S = 60.0


def eventually(holds: Callable[[], Any], what: str = "it did not come about") -> Any:
    """Whatever `holds` says first that is true."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if answer := holds():
            return answer
        time.sleep(0.01)
    raise AssertionError(what)


def point_at(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """REST, symbol tokens and names of indices."""
    model = pytest.importorskip("fyers_apiv3.fyersModel", reason="needs the extra [fyers]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which says that it is deprecated
        from fyers_apiv3.FyersWebsocket import data_ws, order_ws
    monkeypatch.setattr(logging, "FileHandler", lambda *_, **__: logging.NullHandler())
    monkeypatch.setattr(model.Config, "API", f"{emulator.url}/api/v3")
    monkeypatch.setattr(model.Config, "DATA_API", f"{emulator.url}/data")
    hasty = SimpleNamespace(sleep=lambda s: time.sleep(min(s, 0.05)), time=time.time)
    for module in (data_ws, order_ws):
        monkeypatch.setattr(module, "time", hasty)
    conversion = data_ws.SymbolConversion
    made = conversion.__init__

    def pointed(self: Any, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        self.symbols_token_api = f"{emulator.url}/data/symbol-token"

    monkeypatch.setattr(conversion, "__init__", pointed)
    monkeypatch.setattr(conversion, "_index_hsm_mapping_cache", INDEX_NAMES)


@contextmanager
def client(token: str, timeout_s: float = 10.0) -> Iterator[Any]:
    from fyers_apiv3.fyersModel import FyersModel

    made = FyersModel(client_id=CLIENT_ID, token=token)
    session = made.service.session
    session.request = functools.partial(session.request, timeout=timeout_s)
    try:
        yield made
    finally:
        session.close()


class Told:
    """What a socket has told, in order."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.errors: list[Any] = []

    def of(self, **wanted: Any) -> list[dict[str, Any]]:
        """Messages with these values, such as symbol or type."""
        return [m for m in list(self.messages) if isinstance(m, dict) and wanted.items() <= m.items()]


@contextmanager
def data_socket(emulator: Emulator, token: str, *symbols: str, **options: Any) -> Iterator[Told]:
    """Connected, and following `symbols` (again after each reconnection)."""
    from fyers_apiv3.FyersWebsocket import data_ws

    told, kind = Told(), options.pop("data_type", "SymbolUpdate")
    data_ws.FyersDataSocket._instance = None
    socket = data_ws.FyersDataSocket(
        access_token=token, on_message=told.messages.append, on_error=told.errors.append, **options
    )
    socket._FyersDataSocket__url = emulator.url.replace("http", "ws") + "/hsm"
    subscribed = 0

    def subscribe() -> None:
        nonlocal subscribed
        eventually(lambda: len(told.of(type="cn")) > subscribed, "the data socket did not log in")
        subscribed = len(told.of(type="cn"))
        socket.subscribe(list(symbols), kind)

    socket.OnOpen = subscribe if symbols else None
    try:
        socket.connect()
        yield told
    finally:
        _close(socket, emulator, "data")


@contextmanager
def order_socket(emulator: Emulator, token: str) -> Iterator[Told]:
    """Connected, and subscribed to orders, trades and positions (again after each reconnection)."""
    from fyers_apiv3.FyersWebsocket import order_ws

    told = Told()
    order_ws.FyersOrderSocket._instance = None
    hear = told.messages.append
    socket = order_ws.FyersOrderSocket(
        access_token=f"{CLIENT_ID}:{token}",
        on_orders=hear,
        on_trades=hear,
        on_positions=hear,
        on_general=hear,
        on_error=told.errors.append,
        on_close=told.errors.append,
    )
    socket._FyersOrderSocket__url = emulator.url.replace("http", "ws") + "/trade"

    def subscribe() -> None:
        eventually(socket.is_connected, "the order socket did not connect")
        socket.subscribe("OnOrders,OnTrades,OnPositions")

    socket.onopen = subscribe
    socket.keep_running()
    try:
        socket.connect()
        eventually(lambda: told.of(code=1605), "the order socket was not subscribed")
        yield told
    finally:
        _close(socket, emulator, "orders")


def _close(socket: Any, emulator: Emulator, name: str) -> None:
    """From the other end first: closed from here, its reader may wait ten seconds more."""
    socket.restart_flag = False
    emulator.fault("disconnect", sockets=[name])
    (socket.ws_thread if name == "data" else socket.t).join(DEADLINE_S)
    socket.close_connection()
