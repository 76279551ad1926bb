"""The broker's SDK in its cage. Imports the SDK: only for those who are about to use it.

What it does by itself, and what is done about it here:
    opens log files where it stands, one more for each object    one file in a private folder, bounded, without secrets
    waits for ever, follows redirects                            a timeout for every call, no redirect
    answers a broken network and a refusal with the same code    `Wire` keeps what came back, if anything did
    keeps its addresses in globals                               each client has its own
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests
from fyers_apiv3 import fyersModel

HOST = "https://api-t1.fyers.in"  # the SDK's own
API = f"{HOST}/api/v3"
TIMEOUT_S = (3.05, 10.0)  # connect, read
LOGGERS = ("FyersAPI", "FyersAPIRequest", "FyersDataSocket")
LOG_FILE = "fyers_sdk.log"
LOG_BYTES = 1_000_000

_confining = threading.Lock()


def _no_file(*_: object) -> logging.Handler:
    return logging.NullHandler()


QUIET = SimpleNamespace(FileHandler=_no_file)  # in the place of `logging` in the SDK's modules, which use nothing else
fyersModel.logging = QUIET


class Wire:
    """What goes over one session, and the last answer of it: None when none came."""

    def __init__(self, session: requests.Session, base_url: str | None) -> None:
        self.answer: requests.Response | None = None
        self.session = session
        self._send = session.request
        self._base_url = base_url
        if base_url is not None:
            session.trust_env = False  # no proxy stands before an emulator
        session.request = self._request  # type: ignore[assignment] # what the SDK calls ends here

    def _request(self, method: str, url: str, **options: Any) -> requests.Response:
        options |= {"timeout": TIMEOUT_S, "allow_redirects": False}
        self.answer = self._send(method, at(url, self._base_url), **options)
        return self.answer


def at(url: str, base_url: str | None) -> str:
    """An address of the broker, or the same one at an emulator."""
    return url if base_url is None else url.replace(HOST, base_url)


def model(client_id: str, token: str, base_url: str | None) -> tuple[Any, Wire]:
    """A client of the SDK and its wire."""
    made = fyersModel.FyersModel(client_id=client_id, token=token)
    return made, Wire(made.service.session, base_url)


def confine_logs(folder: Path, hide: Callable[[str], str]) -> None:
    """Whatever the SDK logs from now on goes to one file in `folder`, if it is an error, and through `hide`.

    To be called after the SDK's objects are made: the first of them sets the loggers up.
    """
    with _confining:
        handler = _handler(folder / LOG_FILE)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers, logger.filters, logger.propagate = [handler], [_Hiding(hide)], False
            logger.setLevel(logging.ERROR)


def _handler(file: Path) -> logging.Handler:
    """The one in use, or a new one in its place."""
    old = [one for one in logging.getLogger(LOGGERS[0]).handlers if isinstance(one, RotatingFileHandler)]
    if old and Path(old[0].baseFilename) == file.absolute():
        return old[0]
    for one in old:
        one.close()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    return handler


class _Hiding(logging.Filter):
    """Before any handler sees a record, with its traceback."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        super().__init__()
        self._hide = hide
        self._plain = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = self._hide(self._plain.format(record))
        record.args = record.exc_info = record.exc_text = None
        return True
