"""A server that costs next to nothing, to weigh the load generator: `python -m benchmarks.serving_echo PORT`."""

from __future__ import annotations

import asyncio
import sys

_BODY = b'{"action":4,"segments":1}' + b" " * 400  # about as long as a decision
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY) + _BODY


class _Echo(asyncio.Protocol):
    """Answers a request when its last byte has come; requests are never pipelined."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own; for the type checker
        self._transport = transport
        self._missing = 0

    def data_received(self, data: bytes) -> None:
        if not self._missing:  # the head comes whole: it is far shorter than a segment of loopback
            head, _, body = data.partition(b"\r\n\r\n")
            self._missing = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) - len(body)
        else:
            self._missing -= len(data)
        if self._missing <= 0:
            self._missing = 0
            self._transport.write(_ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Echo, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
