"""A real HTTP server (uvicorn in a thread) that notes what comes and answers as it is told."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from core.delivery_settings import DeliverySettings, Notifications

LIMIT_S = 30.0  # the longest that a plan allows


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Says:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    times: int = 1  # the body comes so often, a little apart


@dataclass
class Receiver:
    """`says` answers by path; what it does not know is answered with 200 and `{}`."""

    url: str = ""
    says: dict[str, Says] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    decide: Callable[[Seen], Says | None] = lambda _: None  # before `says`

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return
        request = await _request(scope, receive)
        self.seen.append(request)
        said = self.decide(request) or self.says.get(request.path, Says())
        await asyncio.sleep(said.after_s)
        headers = [(name.encode(), value.encode()) for name, value in said.headers.items()]
        await send({"type": "http.response.start", "status": said.status, "headers": headers})
        for _ in range(said.times):
            await send({"type": "http.response.body", "body": said.body, "more_body": True})
            await asyncio.sleep(0.02 if said.times > 1 else 0.0)
        await send({"type": "http.response.body", "body": b""})

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


async def _request(scope: Any, receive: Callable[[], Awaitable[Any]]) -> Seen:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    return Seen(scope["method"], scope["path"], scope["query_string"].decode(), headers, body)


@contextmanager
def receiving(certificate: tuple[Path, Path] | None = None) -> Iterator[Receiver]:
    """On a free loopback port; with TLS if there is a certificate and its key."""
    receiver = Receiver()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        tls: dict[str, Any] = dict(zip(("ssl_certfile", "ssl_keyfile"), certificate or (), strict=False))
        config = uvicorn.Config(
            receiver, log_level="critical", ws="none", lifespan="off", timeout_graceful_shutdown=1, **tls
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started)
        receiver.url = f"http{'s' if certificate else ''}://localhost:{listener.getsockname()[1]}"
        try:
            yield receiver
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


async def happens(condition: Callable[[], bool]) -> None:
    """The same on an event loop."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def delivery_settings(*allowed_hosts: str, private_networks: bool = False, **notifications: Any) -> DeliverySettings:
    told = Notifications.model_validate({"dedupe_s": 300.0, "webhooks": (), "email": None, **notifications})
    return DeliverySettings(allowed_hosts=allowed_hosts, private_networks=private_networks, notifications=told)
