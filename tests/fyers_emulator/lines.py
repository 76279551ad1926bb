"""One connected socket: what is to be sent waits in its outbox, so that whoever tells something never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.websockets import WebSocket


class Line:
    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._outbox: asyncio.Queue[str | bytes] = asyncio.Queue()

    def tell(self, message: str | bytes) -> None:
        self._outbox.put_nowait(message)

    def cut(self) -> None:
        """As a network does it: no goodbye."""
        self._websocket.scope["cut"]()

    async def hold(self, hear: Callable[[str | bytes], None]) -> None:
        """Send what is told and hear what comes, until the connection ends. Accepts it first."""
        await self._websocket.accept()
        sending = asyncio.create_task(self._send())
        try:
            while (event := await self._websocket.receive())["type"] != "websocket.disconnect":
                hear(event.get("text") or event.get("bytes") or b"")
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)  # it may have met the end of the connection first

    async def _send(self) -> None:
        while True:
            message = await self._outbox.get()
            if isinstance(message, str):
                await self._websocket.send_text(message)
            else:
                await self._websocket.send_bytes(message)
