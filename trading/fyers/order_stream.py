"""News of orders and trades from Fyers as they happen, over the order socket.

A help and no more: what was said while it was not connected, or what cannot be read, is never said again. `missed`
tells so, and a snapshot of the books says what is true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

import structlog

from core.errors import BrokerError
from trading.broker import OrderReport, Trade
from trading.fyers import rows
from trading.fyers.client import Access, sdk

if TYPE_CHECKING:
    from websocket import WebSocket

    from trading.fyers.sockets import Stream

URL = "wss://socket.fyers.in/trade/v3"  # the SDK's own
TOPICS = "OnOrders,OnTrades"
SUBSCRIBED = 1605

Tell = Callable[[OrderReport | Trade], None]
Missed = Callable[[], None]

log = structlog.get_logger(__name__)


class OrderStream:
    """Tells from a thread of its own, until it is closed."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._stream: Stream | None = None

    def start(self, tell: Tell, missed: Missed) -> None:
        """`missed` is called whenever it is connected, the first time too, and after what cannot be read.

        Raises ConfigError `missing_extra`.
        """
        sdk()  # the extra is there
        from trading.fyers import sockets

        def begin(socket: WebSocket) -> _News:
            return _News(socket, self._access, tell, missed)

        line = sockets.Line(
            self._access.socket_url(URL, "/trade"), headers={"authorization": self._access.credentials.header}
        )
        self._stream = sockets.Stream("orders", self._access, line, begin)
        self._stream.start()

    def restart(self) -> None:
        if self._stream is not None:
            self._stream.restart()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class _News:
    """The order socket's side of one connection."""

    max_silence_s = 35.0  # three pings without an answer

    def __init__(self, socket: WebSocket, access: Access, tell: Tell, missed: Missed) -> None:
        from trading.fyers import sockets

        self._socket, self._access, self._tell, self._missed = socket, access, tell, missed
        self._problem: Exception | None = None
        self._subscribed = False
        self._sdk = sockets.made(
            sockets.module("order_ws").FyersOrderSocket,
            access,
            access_token=access.credentials.header,
            on_orders=self._order,
            on_trades=self._trade,
            on_positions=_nothing,
            on_general=self._general,
            on_error=self._error,
        )
        self._sdk._FyersOrderSocket__ws_object = socket
        self._sdk.subscribe(TOPICS)

    @property
    def ready(self) -> bool:
        return self._subscribed

    def hear(self, message: str | bytes) -> None:
        self._sdk._FyersOrderSocket__on_message(message)
        if self._problem is not None:
            raise self._problem

    def ping(self) -> None:
        self._socket.send("ping")

    def _order(self, message: object) -> None:
        self._read(message, "orders", rows.order_report)

    def _trade(self, message: object) -> None:
        self._read(message, "trades", rows.trade)

    def _read(self, message: object, topic: str, row: Callable[[object], OrderReport | Trade]) -> None:
        content = (
            message.get(topic) if isinstance(message, Mapping) else None
        )  # the SDK makes None of what it cannot map
        try:
            news = row(content)
        except BrokerError as error:
            log.warning("fyers_news_unreadable", topic=topic, problem=str(error))
            self._missed()
        else:
            self._tell(news)

    def _general(self, message: object) -> None:
        if isinstance(message, Mapping) and message.get("code") == SUBSCRIBED:
            self._subscribed = True
            self._missed()
        elif isinstance(message, Mapping) and message.get("s") == "error":
            said = self._access.credentials.hide(str(message.get("message")))[:200]
            self._problem = BrokerError(f"Fyers orders: {said}", code="refused", retryable=True)

    def _error(self, message: object) -> None:
        """An exception of whoever was told, which the SDK caught, or a message that is no JSON."""
        if isinstance(message, JSONDecodeError):
            log.warning("fyers_news_unreadable", topic="", problem="no JSON")
            self._missed()
        elif isinstance(message, Exception):
            self._problem = message
        else:
            log.warning("fyers_news_error", said=self._access.credentials.hide(str(message))[:200])


def _nothing(_: Any) -> None:
    """Positions come with the snapshots."""
