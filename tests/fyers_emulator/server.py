"""One uvicorn server on loopback around a venue."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import uvicorn

from tests.fyers_emulator.app import build
from tests.fyers_emulator.venue import Venue

HOST = "127.0.0.1"
Beside = Callable[[Venue], Awaitable[None]]


def bound(port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Callers may connect at once, they are answered when it serves."""
    # By its protocol asyncio knows that it is TCP, and sends small answers at once.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def address(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"


async def serve(listener: socket.socket, *beside: Beside) -> None:
    """Until a signal, or until something that runs beside it ends in an error."""
    venue = Venue()
    config = uvicorn.Config(
        build(venue),
        loop="asyncio",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        log_level="warning",
        access_log=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    tasks = [asyncio.create_task(_beside(each, venue, server)) for each in beside]
    try:
        await server.serve(sockets=[listener])
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):  # not a cancellation: that is how it ends
                raise ended


async def _beside(each: Beside, venue: Venue, server: uvicorn.Server) -> None:
    try:
        await each(venue)
    except Exception:
        server.should_exit = True
        raise
