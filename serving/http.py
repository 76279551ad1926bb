"""HTTP/1.1 by httptools (llhttp), with the limits on what is not a body that it does not have by itself.

Half of h11's time per request. A head that has no end or does not come, or trailers that have no end, are refused
before anybody knows who sends them: connections that only wait would be in the way of an abort's.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # as h11 allows
HEAD_WITHIN_S = 30.0  # from its first byte, or the start of the connection; between requests uvicorn's own limit holds


class Http(HttpToolsProtocol):
    """uvicorn's protocol; 400 and an end to the connection once a head, or what follows a body, passes the limit."""

    _beside_body_bytes = 0  # since the message began, or since the last of its body
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._beside_body_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"Request line and headers, and trailers, have at most {MAX_HEAD_BYTES} bytes.")
            return
        self._beside_body_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        if self._head_timer is None:
            self._wait_for_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is no header: the request was admitted without it
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._beside_body_bytes = True, 0
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
