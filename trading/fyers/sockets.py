"""One connection after another to a socket of the broker, in one thread of ours.

The SDK's own sockets run four threads each, print, sleep, forget subscriptions when they reconnect and cannot always be
closed. Here the SDK only speaks and reads the protocol; connecting, waiting, pinging, starting anew and ending are
`Stream`'s. Each connection has a new object of the SDK: nothing of the last one is left in it.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import requests
import structlog
from websocket import (
    WebSocket,
    WebSocketConnectionClosedException,
    WebSocketException,
    WebSocketTimeoutException,
    create_connection,
)

from core.errors import HrmSystemError
from trading.fyers.client import Access
from trading.fyers.sdk import QUIET, TIMEOUT_S, confine_logs

CONNECT_S = 10.0
POLL_S = 0.25  # how soon a wish to end is noticed
PING_EVERY_S = 10.0
READY_S = 15.0  # for login and subscription to be answered
SETTLED_S = 10.0  # a connection that lived so long was a good one
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0

log = structlog.get_logger(__name__)


class Dialogue(Protocol):
    """What is said on one connection."""

    @property
    def max_silence_s(self) -> float | None:
        """A good server says something as often; None: it may be silent."""

    @property
    def ready(self) -> bool:
        """Logged in and subscribed."""

    def hear(self, message: str | bytes) -> None:
        """Raises what ends the connection."""

    def ping(self) -> None: ...


@dataclass(frozen=True)
class Line:
    """Where a connection goes, and what it begins with."""

    url: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # the token is in them


class Stream:
    def __init__(self, name: str, access: Access, line: Line, begin: Callable[[WebSocket], Dialogue]) -> None:
        self._name = name
        self._hide = access.credentials.hide
        self._line = line
        self._begin = begin
        self._closed = threading.Event()
        self._anew = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"fyers-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def restart(self) -> None:
        """Connect anew, now."""
        self._anew.set()

    def close(self) -> None:
        """Returns when the thread has ended."""
        self._closed.set()
        self._anew.set()  # it may be waiting to connect again
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        wait_s = FIRST_WAIT_S / 2
        while not self._closed.is_set():
            self._anew.clear()
            began = time.monotonic()
            try:
                self._converse()
            except Exception as error:  # whatever it was, the next one begins: a dead stream looks like a quiet market
                wait_s = FIRST_WAIT_S if time.monotonic() - began > SETTLED_S else min(2 * wait_s, LONGEST_WAIT_S)
                self._lost(error, wait_s)
                self._anew.wait(wait_s)

    def _converse(self) -> None:
        """One connection, until it breaks (raises) or is to end. A wish that came before is granted by it."""
        socket = create_connection(self._line.url, timeout=CONNECT_S, header=self._line.headers, redirect_limit=0)
        try:
            socket.settimeout(POLL_S)
            self._listen(socket, self._begin(socket))
        finally:
            socket.close(timeout=1)
            # close() leaves it open if the other side spoke of closing first
            socket.shutdown()  # type: ignore[no-untyped-call] # the library has types, but not here

    def _listen(self, socket: WebSocket, dialogue: Dialogue) -> None:
        began = heard = pinged = time.monotonic()
        while not (self._closed.is_set() or self._anew.is_set()):
            message = _received(socket)
            now = time.monotonic()
            if message is not None:
                heard = now
                dialogue.hear(message)
            if now - pinged >= PING_EVERY_S:
                pinged = now
                dialogue.ping()
            if not dialogue.ready and now - began > READY_S:
                raise TimeoutError(f"no answer to login or subscription within {READY_S:.0f} s")
            if dialogue.max_silence_s is not None and now - heard > dialogue.max_silence_s:
                raise TimeoutError(f"silent for {dialogue.max_silence_s:.0f} s")

    def _lost(self, error: Exception, wait_s: float) -> None:
        expected = isinstance(error, WebSocketException | OSError | HrmSystemError)
        said = self._hide(str(error))[:200]
        tell = log.warning if expected else log.exception
        tell("fyers_stream_lost", stream=self._name, problem=type(error).__name__, said=said, again_in_s=wait_s)


def _received(socket: WebSocket) -> str | bytes | None:
    """The next message; None if there is none yet. Raises once the connection has ended."""
    try:
        message = socket.recv()
    except WebSocketTimeoutException:
        return None
    if not socket.connected:
        raise WebSocketConnectionClosedException("closed by the broker")
    return message


def module(name: str) -> Any:
    """data_ws or order_ws of the SDK, in its cage."""
    with _stand_in_for_pkg_resources():
        found: Any = importlib.import_module(f"fyers_apiv3.FyersWebsocket.{name}")
    found.logging = QUIET
    if name == "data_ws":
        found.requests = SimpleNamespace(post=_timed_post, get=requests.get)  # its one `get` has a timeout
    return found


def made(cls: Any, access: Access, **options: Any) -> Any:
    """A new object of an SDK's socket class, past its __new__, which hands out the first one for ever."""
    one = object.__new__(cls)
    one.__init__(reconnect=False, **options)
    confine_logs(access.log_dir, access.credentials.hide)
    return one


def _timed_post(**options: Any) -> requests.Response:
    return requests.post(timeout=TIMEOUT_S, allow_redirects=False, **options)


@contextmanager
def _stand_in_for_pkg_resources() -> Iterator[None]:
    """The SDK's sockets find one file by setuptools' pkg_resources: slow, warns, and gone from setuptools 81 on."""
    if "pkg_resources" in sys.modules:
        yield
        return
    stand_in: Any = ModuleType("pkg_resources")
    stand_in.resource_filename = lambda package, name: str(files(package) / name)
    sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]
