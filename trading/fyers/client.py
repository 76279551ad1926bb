"""One call of the broker's API and what can become of it.

The SDK never raises: a refused connection, an HTML error page and a server's refusal all come back as a dict, which is
one shared object, and the code -99 is both "rejected" and "no network". So what counts is what came over the wire:
a `Reply`, with a status only if the server answered and a body only if that was a JSON object.

    logged out      ConfigError logged_out: a person logs in again
    too many calls  RateLimitError, with the time to wait where it is known; until then nothing is sent
    unavailable     BrokerError, retryable: no answer, a 5xx, a page that is no JSON
    bad request     DataError bad_request: symbol, dates
    refused         BrokerError: everything else that a server says no to
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import structlog

from core.errors import BrokerError, ConfigError, DataError, HrmSystemError
from core.settings import Settings
from trading.fyers.login import LOG_IN, Credentials, credentials
from trading.fyers.pace import AT_ONCE, DESK, Pace, Share

if TYPE_CHECKING:
    from requests import Response

PACE_FILE = "fyers_calls"
LOGGED_OUT = {-8, -15, -16, -17}
RATE_LIMITED = -429
BAD_REQUEST = {-50: "check resolution and dates", -300: "check the symbol, such as NSE:NIFTY50-INDEX"}
LONGEST_MESSAGE = 200
SHORTEST_BLOCK_S = 1.0  # after a refusal for too many calls that names no time

log = structlog.get_logger(__name__)


class RateLimitError(BrokerError):
    """Too many calls. `retry_after_s`: when to come again, None where the broker does not say."""

    code = "rate_limited"
    retryable = True

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Access:
    """Who asks, where, and where what belongs to it is kept."""

    credentials: Credentials
    state_dir: Path
    base_url: str | None = None  # of an emulator
    now_ns: Callable[[], int] = time.time_ns
    paced: bool = True  # False: an emulator that counts nothing

    @classmethod
    def of(cls, settings: Settings) -> Access:
        """As the settings say, with the token of today. Raises ConfigError."""
        state_dir, base_url = settings.paths.state_dir, settings.fyers.base_url
        return cls(credentials(state_dir), state_dir, base_url, paced=base_url is None)

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "logs"

    def socket_url(self, url: str, path: str) -> str:
        """`url` of the broker, or `path` at an emulator."""
        return url if self.base_url is None else self.base_url.replace("http", "ws", 1) + path

    def pace(self) -> Pace:
        return Pace(self.state_dir / PACE_FILE)


@dataclass(frozen=True)
class Reply:
    """What came back. `status` None: nothing did. `body` {}: it was no JSON object."""

    status: int | None
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Response | None) -> Reply:
        if answer is None:
            return cls(None, {})
        try:
            body = answer.json()
        except ValueError:
            body = None
        return cls(answer.status_code, body if isinstance(body, dict) else {}, answer.headers)

    @property
    def accepted(self) -> bool:
        return self.status == 200 and self.body.get("s") in ("ok", "no_data")

    @property
    def code(self) -> int | None:
        given = self.body.get("code")
        return given if isinstance(given, int) else self.status

    @property
    def said(self) -> str:
        """The server's message as one line. It may show what is secret."""
        if not self.body:
            return "no answer" if self.status is None else "no JSON in the answer"
        return " ".join(str(self.body.get("message", "")).split())

    @property
    def logged_out(self) -> bool:
        return self.status == 401 or self.code in LOGGED_OUT

    @property
    def rate_limited(self) -> bool:
        return self.status == 429 or self.code in (RATE_LIMITED, -RATE_LIMITED)

    @property
    def retry_after_s(self) -> float | None:
        """Seconds, or a date, as HTTP allows."""
        given = self.headers.get("Retry-After", "")
        try:
            seconds = float(given)
        except ValueError:
            at_s = _http_date_s(given)
            return None if at_s is None else max(0.0, at_s - time.time())
        return max(0.0, seconds) if math.isfinite(seconds) else None


class Client:
    """For one thread: the SDK's client is not made for two."""

    def __init__(self, access: Access) -> None:
        cage = sdk()
        self._access = access
        self._pace = access.pace()
        token = access.credentials.access_token.get_secret_value()
        self._model, self._wire = cage.model(access.credentials.client_id, token, access.base_url)
        cage.confine_logs(access.log_dir, access.credentials.hide)
        self.http_date: tuple[int, int] | None = None  # server's time of its last answer, and this machine's; ns

    def call(self, name: str, data: object = None, *, share: Share = DESK) -> Reply:
        """The SDK's method `name`, once its turn has come. Raises nothing of what network and server do."""
        left_s = self._pace.wait(share if self._access.paced else AT_ONCE)
        if left_s > 0:
            log.warning("fyers_not_asked", call=name, blocked_s=round(left_s))
            return _not_sent(left_s)
        self._wire.answer = None
        method = getattr(self._model, name)
        try:
            method() if data is None else method(data)
        except (
            Exception
        ):  # the request may have gone out, and what came back is on the wire, whatever the SDK made of it
            log.exception("fyers_sdk_failed", call=name)
        reply = Reply.of(self._wire.answer)
        self._note(name, reply)
        return reply

    def ask(self, name: str, data: object = None, *, what: str, share: Share = DESK) -> dict[str, Any]:
        """The body of an accepted answer. Raises as the module says, with `what` was asked for in the text."""
        reply = self.call(name, data, share=share)
        if reply.accepted:
            return reply.body
        raise self.refusal(reply, what)

    def refusal(self, reply: Reply, what: str) -> HrmSystemError:
        said = f"Fyers {what}: {self._said(reply)} ({reply.code})"
        if reply.logged_out:
            return ConfigError(f"{said}; {LOG_IN}", code="logged_out")
        if reply.rate_limited:
            wait_s = reply.retry_after_s
            when = "a minute" if wait_s is None else f"{wait_s:.0f} s"
            return RateLimitError(f"{said}; wait {when} and try again", wait_s)
        if not reply.body or reply.status is None or reply.status >= 500:
            return BrokerError(f"{said}; check the network and try again", code="unavailable", retryable=True)
        if reply.code in BAD_REQUEST:
            return DataError(f"{said}; {BAD_REQUEST[reply.code]}", code="bad_request")
        return BrokerError(f"{said}; nothing was done", code="refused")

    def close(self) -> None:
        self._wire.session.close()

    def _note(self, name: str, reply: Reply) -> None:
        if reply.rate_limited:
            self._pace.block(max(reply.retry_after_s or 0.0, SHORTEST_BLOCK_S))
        at_s = _http_date_s(reply.headers.get("Date", ""))
        if at_s is not None:
            self.http_date = (int(at_s) * 10**9, self._access.now_ns())
        if not reply.accepted:
            log.warning("fyers_refused", call=name, status=reply.status, code=reply.code, said=self._said(reply))

    def _said(self, reply: Reply) -> str:
        return self._access.credentials.hide(reply.said)[:LONGEST_MESSAGE]  # hidden first: half a token is one too


class Clients:
    """A client for each thread that asks; closed together."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._own = threading.local()
        self._all: list[Client] = []
        self._lock = threading.Lock()

    def here(self) -> Client:
        found: Client | None = getattr(self._own, "client", None)
        if found is None:
            found = self._own.client = Client(self.access)
            with self._lock:
                self._all.append(found)
        return found

    @property
    def http_date(self) -> tuple[int, int] | None:
        """The newest of them all."""
        with self._lock:
            told = [client.http_date for client in self._all if client.http_date is not None]
        return max(told, key=lambda pair: pair[1], default=None)

    def close(self) -> None:
        with self._lock:
            for client in self._all:
                client.close()


def sdk() -> ModuleType:
    """The SDK in its cage. Raises ConfigError `missing_extra`."""
    try:
        from trading.fyers import sdk as cage
    except ImportError as error:
        raise ConfigError(
            f"the Fyers SDK is not usable ({error}); install this package with the extra [fyers]",
            code="missing_extra",
        ) from None
    return cage


def _not_sent(left_s: float) -> Reply:
    """What is answered here while the broker has shut the account out: certainly not sent."""
    message = f"not sent: the account is shut out for another {left_s:.0f} s"
    body = {"s": "error", "code": RATE_LIMITED, "message": message}
    return Reply(429, body, {"Retry-After": f"{left_s:.3f}"})


def _http_date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
