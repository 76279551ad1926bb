"""The door: a bearer token and a body limit, before anything is parsed. Deny by default.

Only health and metrics are open, and only to clients on the loopback interface.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import ConfigError
from serving.problems import problem

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
TOKEN_FILE = "api_token"  # noqa: S105 - a file name
MIN_TOKEN_LENGTH = 16


def read_or_create_token(state_dir: Path) -> str:
    """The service's token from `<state_dir>/api_token` (0600), made on first use. Raises ConfigError."""
    file = state_dir / TOKEN_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        _create(file)
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: the API token is not readable: {error}; check its owner and mode") from None
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(f"{file}: token shorter than {MIN_TOKEN_LENGTH} characters; delete it for a new one")
    return token


def _create(file: Path) -> None:
    """Whole or absent, and never readable by others: written beside, then linked, so that one of two wins."""
    if file.exists():
        return
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32) + "\n")
        os.link(temporary, file)
    except FileExistsError:
        pass  # another process made one first: that one counts
    finally:
        temporary.unlink(missing_ok=True)


class Door:
    """ASGI middleware: 401 without the token, 413 above the body limit."""

    def __init__(self, app: ASGIApp, token: str, max_body_kb: int) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()
        self._max_body_bytes = max_body_kb * 1024

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # websockets: there are none
        headers = dict(scope["headers"])
        if not self._may_enter(scope, headers.get(b"authorization", b"")):
            refusal = problem(401, "unauthorized", "needs `Authorization: Bearer` with the token in api_token")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            await refusal(scope, receive, send)
            return
        limited = _Body(receive, self._max_body_bytes)
        if limited.declared_too_large(headers.get(b"content-length", b"0")):
            await self._too_large()(scope, receive, send)
            return
        await self._serve(scope, limited, send)

    async def _serve(self, scope: Scope, body: _Body, send: Send) -> None:
        """Run the app; if the body turned out too large while it streamed, answer 413 in its place."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if body.overflowed and not started:
                return
            started = True
            await send(message)

        await self.app(scope, body.receive, watched)
        if body.overflowed and not started:
            await self._too_large()(scope, body.receive, send)

    def _may_enter(self, scope: Scope, authorization: bytes) -> bool:
        if scope["path"] in OPEN_PATHS and _on_loopback(scope):
            return True
        return hmac.compare_digest(authorization, self._expected)

    def _too_large(self) -> ASGIApp:
        return problem(413, "body_too_large", f"a body has at most {self._max_body_bytes} bytes")


class _Body:
    """Counts the bytes of a request as they arrive; ends the stream at the limit."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self._receive = receive
        self._limit = limit_bytes
        self._seen = 0
        self.overflowed = False

    def declared_too_large(self, content_length: bytes) -> bool:
        return content_length.isdigit() and int(content_length) > self._limit

    async def receive(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit:
            self.overflowed = True
            return {"type": "http.request", "body": b"", "more_body": False}
        return message


def _on_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
