"""The door for websockets: which may be opened, and from which pages. Who asks is settled by a ticket, inside.

A browser sends no header of ours with the request that opens one, but sends its cookies to whatever page asks it to. So
a page of another origin is refused here, whoever is logged in there; a program has no origin.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.scopes import Directory

log = structlog.get_logger()


async def opened(app: ASGIApp, directory: Directory, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the app for a websocket that may be opened; refuse any other before a frame of it is read (403)."""
    why = refused(directory, scope)
    if why is None:
        await app(scope, receive, send)
        return
    client = scope["client"][0] if scope.get("client") else None
    log.warning("refused", why=why, path=scope["path"][:200], client=client)
    await receive()
    await send({"type": "websocket.close", "code": 4403, "reason": why})


def refused(directory: Directory, scope: Scope) -> str | None:
    """Why it may not be opened; None if it may."""
    if not any(pattern.match(scope["path"]) for pattern in directory.sockets):
        return "no_such_socket"
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if not origins:
        return None
    return None if len(origins) == len(hosts) == 1 and _is_own(origins[0], hosts[0]) else "foreign_origin"


def _is_own(origin: bytes, host: bytes) -> bool:
    try:
        page = urlsplit(origin.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return False
    return page.scheme in ("http", "https") and page.netloc.lower() == host.decode("latin-1").lower()
