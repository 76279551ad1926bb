"""The ASGI application: the API's endpoints, both sockets, the login page, and the emulator's own controls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from functools import partial
from html import escape
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.fyers_emulator import control, data_api, rest
from tests.fyers_emulator.calls import answered
from tests.fyers_emulator.data_socket import DataLine
from tests.fyers_emulator.exchange import Refused
from tests.fyers_emulator.order_socket import OrderLine
from tests.fyers_emulator.venue import Venue

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REDIRECTED = "<h1>Logged in to the emulator</h1><p>Paste the address of this page into the login:</p><pre>{}</pre>"


def build(venue: Venue) -> Callable[[Message, Receive, Send], Awaitable[None]]:
    """The application over a venue, for uvicorn: it cuts connections through uvicorn's transports."""
    endpoints = [
        Route(endpoint.path, partial(answered, endpoint), methods=[endpoint.method])
        for endpoint in (*rest.ENDPOINTS, *data_api.ENDPOINTS)
    ]
    login = [Route("/api/v3/generate-authcode", _generate_authcode), Route("/emulator/redirected", _redirected)]
    sockets = [WebSocketRoute("/hsm", _data_socket), WebSocketRoute("/trade", _order_socket)]
    inner = Starlette(routes=[*endpoints, *login, *sockets, *control.ROUTES])
    inner.state.venue = venue

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                now = formatdate(venue.clock.told(), usegmt=True).encode()
                message["headers"] = [*message.get("headers", []), (b"date", now)]
            await send(message)

        scope["cut"] = partial(_cut, send)
        await inner(scope, receive, dated)

    return app


def _cut(send: Send) -> None:
    """End a connection as a broken network does; uvicorn's `send` is a method of what holds the transport."""
    send.__self__.transport.abort()  # type: ignore[attr-defined]


async def _generate_authcode(request: Request) -> Response:
    venue: Venue = request.app.state.venue
    try:
        return RedirectResponse(venue.logins.redirect(dict(request.query_params)), status_code=303)
    except Refused as refused:
        content = {"s": "error", "code": refused.code, "message": refused.message}
        return JSONResponse(content, status_code=refused.status)


async def _redirected(request: Request) -> Response:
    return HTMLResponse(REDIRECTED.format(escape(str(request.url))))


async def _data_socket(websocket: WebSocket) -> None:
    venue: Venue = websocket.app.state.venue
    line = DataLine(websocket, venue)
    venue.data_lines.add(line)
    try:
        await line.hold(line.hear)
    finally:
        venue.data_lines.discard(line)


async def _order_socket(websocket: WebSocket) -> None:
    venue: Venue = websocket.app.state.venue
    try:
        venue.logins.check(websocket.headers.get("authorization"))
    except Refused:
        await websocket.close()
        return
    line = OrderLine(websocket)
    venue.order_lines.add(line)
    try:
        await line.hold(line.hear)
    finally:
        venue.order_lines.discard(line)
