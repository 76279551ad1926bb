"""HTTP/1.1 by httptools (llhttp), with the limits on what is not a body that it does not have by itself.

Half of h11's time per request. A head that has no end, or trailers that have none, are refused before anybody knows
who sends them.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # as h11 allows


class Http(HttpToolsProtocol):
    """uvicorn's protocol; 400 and an end to the connection once a head, or what follows a body, passes the limit."""

    _beside_body_bytes = 0  # since the message began, or since the last of its body
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._beside_body_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"Request line and headers, and trailers, have at most {MAX_HEAD_BYTES} bytes.")
            return
        self._beside_body_bytes += len(data)
        super().data_received(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is no header: the request was admitted without it
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._beside_body_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head, self._beside_body_bytes = True, 0
        super().on_message_complete()
