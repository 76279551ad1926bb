"""HTTP/1.1 by httptools (llhttp), with the limit on a request's head that it does not have by itself.

Half of h11's time per request. A head that has no end is refused before anybody knows who sends it.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # as h11 allows


class Http(HttpToolsProtocol):
    """uvicorn's protocol; 400 and an end to the connection once a request line and its headers pass the limit."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"Request line and headers have at most {MAX_HEAD_BYTES} bytes.")
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()
