"""Prices from Fyers: trading/ticks.py's `Feed` over the data socket, and asked for over REST.

Nothing is judged here: what cannot be read comes as a tick all the same (price nan, time 0), and the bar builder counts
it. Only what the SDK itself takes out never comes: values that did not change, frames that it cannot parse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from core.errors import BrokerError, ConfigError
from trading.fyers.client import Access, Clients, RateLimitError, sdk
from trading.fyers.login import LOG_IN
from trading.fyers.pace import AT_ONCE, DESK
from trading.instruments import instrument
from trading.ticks import Tick

if TYPE_CHECKING:
    from websocket import WebSocket

    from trading.fyers.sockets import Stream

URL = "wss://socket.fyers.in/hsm/v1-5/prod"  # the SDK's own
QUOTES_A_CALL = 50
MIDNIGHTS_S = (0, 66_600)  # of the day in UTC: midnight there, and in India
SECOND_NS = 10**9
NEVER_NS = 0

Tell = Callable[[Tick], None]

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Quoted:
    """What was said about a symbol, when it was asked for, and the time that its price got."""

    values: Mapping[str, Any]
    asked_ns: int
    at_ns: int


class FyersFeed:
    def __init__(self, access: Access) -> None:
        self._access = access
        self._clients = Clients(access)
        self._stream: Stream | None = None
        self._quoted: dict[str, _Quoted] = {}

    def start(self, tell: Tell, symbols: Sequence[str]) -> None:
        """Symbols are names of config/instruments.yaml, or the broker's own, such as NSE:NIFTY26NOVFUT.

        Raises ConfigError `missing_extra`, DataError `unknown_symbol`.
        """
        sdk()  # the extra is there
        from trading.fyers import sockets

        names = {fyers_symbol(symbol): symbol for symbol in symbols}

        def begin(socket: WebSocket) -> _Ticks:
            return _Ticks(socket, self._access, names, tell)

        line = sockets.Line(self._access.socket_url(URL, "/hsm"))
        self._stream = sockets.Stream("ticks", self._access, line, begin)
        self._stream.start()

    def quotes(self, symbols: Sequence[str]) -> list[Tick]:
        """The last prices; symbols the broker knows no price of are left out.

        A quote has no time of its price, only the day. Its time is the instant at which it was asked for the time
        before, if the answer has changed since: the price is no older. What nothing moves does not get fresher.
        """
        names = {fyers_symbol(symbol): symbol for symbol in symbols}
        found: list[Tick] = []
        for first in range(0, len(names), QUOTES_A_CALL):
            asked = list(names)[first : first + QUOTES_A_CALL]
            asked_ns = self._access.now_ns()
            body = self._clients.here().ask("quotes", {"symbols": ",".join(asked)}, what="quotes")
            rows = body.get("d")
            if not isinstance(rows, list):
                raise BrokerError("Fyers quotes: an answer without quotes; try again", code="malformed", retryable=True)
            found += [self._tick(row, names, asked_ns) for row in rows if _is_quote(row) and row["n"] in names]
        return found

    def restart(self) -> None:
        if self._stream is not None:
            self._stream.restart()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._clients.close()

    def _tick(self, row: Mapping[str, Any], names: Mapping[str, str], asked_ns: int) -> Tick:
        symbol, values = names[row["n"]], row["v"]
        before = self._quoted.get(symbol)
        at_ns = _time_ns(values.get("tt"))
        if at_ns == NEVER_NS and before is not None:
            at_ns = before.asked_ns if before.values != values else before.at_ns
        self._quoted[symbol] = _Quoted(values, asked_ns, at_ns)
        return Tick(symbol, _number(values.get("lp")), at_ns, self._access.now_ns())


class _Ticks:
    """The data socket's side of one connection."""

    max_silence_s = None  # a quiet market says nothing; whether it may be quiet is the watchdog's to say

    def __init__(self, socket: WebSocket, access: Access, names: Mapping[str, str], tell: Tell) -> None:
        from trading.fyers import sockets

        self._socket, self._access, self._names, self._tell = socket, access, names, tell
        self._data_ws = sockets.module("data_ws")
        self._sdk = sockets.made(
            self._data_ws.FyersDataSocket,
            access,
            access_token=access.credentials.access_token.get_secret_value(),
            on_message=self._message,
            on_error=self._error,
        )
        self._problem: Exception | None = None
        self._known = False
        self._subscribed = False
        self._sdk.add_message = socket.send_binary  # at once and from this thread, not through a queue
        self._log_in()

    @property
    def ready(self) -> bool:
        return self._subscribed

    def hear(self, message: str | bytes) -> None:
        known = self._known
        self._sdk._FyersDataSocket__response_msg(message)
        if self._known and not known:
            self._subscribe()
        if self._problem is not None:
            raise self._problem

    def ping(self) -> None:
        self._socket.send_binary(bytes([0, 1, 11]))

    def _log_in(self) -> None:
        if not self._sdk.access_token_to_hsmtoken():
            raise ConfigError(f"Fyers prices: the token has expired or is none; {LOG_IN}", code="logged_out")
        self._socket.send_binary(self._sdk._FyersDataSocket__access_token_msg())
        self._socket.send_binary(self._sdk._FyersDataSocket__full_mode_msg())

    def _subscribe(self) -> None:
        topics = self._topics()
        self._sdk._FyersDataSocket__symbol_conversion = lambda _: topics
        self._sdk.subscribe(symbols=list(self._names))

    def _topics(self) -> dict[str, str]:
        """What the socket calls the symbols. Raises BrokerError if it is not told; unknown symbols are left out."""
        blocked_s = self._access.pace().wait(DESK if self._access.paced else AT_ONCE)
        if blocked_s > 0:
            raise RateLimitError("Fyers prices: the account is shut out", blocked_s)
        conversion = self._data_ws.SymbolConversion(self._sdk._FyersDataSocket__access_token, "SymbolUpdate", "")
        conversion.symbols_token_api = sdk().at(conversion.symbols_token_api, self._access.base_url)
        if self._access.base_url is not None:
            conversion.load_index_hsm_mapping_from_api = dict  # from the SDK's own file, not from the network
        answer = conversion.symbol_to_hsmtoken(list(self._names))
        if not answer or not answer[0]:
            said = answer[3] if answer else "no answer"
            raise BrokerError(f"Fyers prices: no topics for the symbols ({said})", code="no_topics", retryable=True)
        topics: dict[str, str] = answer[0]
        left_out = sorted(set(self._names) - set(topics.values()))
        if left_out:
            log.error("fyers_symbols_unknown", symbols=left_out)
        return topics

    def _message(self, message: Mapping[str, Any]) -> None:
        if "symbol" in message:
            self._tell(self._tick(message))
        elif message.get("type") == "cn":
            self._known = True
        elif message.get("type") == "sub":
            self._subscribed = True

    def _tick(self, message: Mapping[str, Any]) -> Tick:
        symbol = str(message["symbol"])
        at_ns = _time_ns(message.get("exch_feed_time"))
        return Tick(self._names.get(symbol, symbol), _number(message.get("ltp")), at_ns, self._access.now_ns())

    def _error(self, message: object) -> None:
        """Login or subscription refused, or an exception of whoever was told a tick, which the SDK caught."""
        if isinstance(message, Exception):
            self._problem = message
            return
        said = self._access.credentials.hide(str(message))[:200]
        log.warning("fyers_ticks_error", said=said)
        if isinstance(message, Mapping) and message.get("type") in ("cn", "sub"):
            self._problem = BrokerError(f"Fyers prices: {said}", code="refused", retryable=True)


def fyers_symbol(name: str) -> str:
    """Of an instrument its index, or itself where it has none. Raises DataError `unknown_symbol`."""
    if ":" in name:
        return name
    known = instrument(name)
    return known.index or known.symbol or known.name


def _is_quote(row: object) -> bool:
    return (
        isinstance(row, dict)
        and row.get("s") == "ok"
        and isinstance(row.get("n"), str)
        and isinstance(row.get("v"), dict)
    )


def _number(told: object) -> float:
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else math.nan


def _time_ns(told: object) -> int:
    """Nanoseconds of seconds since the epoch, as a number or as text; NEVER_NS for a day, or what is neither."""
    try:
        seconds = int(told)  # type: ignore[call-overload] # whatever it is, it is a number or an error
    except (TypeError, ValueError, OverflowError):
        return NEVER_NS
    return NEVER_NS if seconds % 86_400 in MIDNIGHTS_S else int(seconds) * SECOND_NS
