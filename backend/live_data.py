"""`WS /ws/live-data/{user_id}` and the tickets that open it: what happens, as it happens (docs/adr/0032-backend.md).

The first frame, within 5 s, says who is there:

    {"type": "authenticate", "ticket": "...", "symbols": ["NIFTY"], "resume_from": {"epoch": "...", "seq": 41}}

without `symbols` everything is sent; without `resume_from`, or where what was missed is not there any more (`gap`), a
snapshot comes first. Then messages of the stream (backend/hub.py) and a heartbeat every 3 s. A client has nothing more
to say. Close codes: 4401 not authenticated, or not any more; 4403 not yours; 4408 nothing said in time; 1013 too slow,
or too many; 1003 and 1008 not understood.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal
from urllib.parse import quote

import structlog
from fastapi import APIRouter, FastAPI, Request, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from backend.hub import Client, Hub, now
from backend.tail import Tail
from backend.tickets import GOOD_FOR_S, MOST_OF_ONE, Holder, Tickets
from core.settings import Settings
from serving import problems
from serving.openapi import failures
from serving.scopes import Scope, needs

AUTHENTICATE_WITHIN_S = 5.0
HEARTBEAT_S = 3.0
CLOSE_WITHIN_S = 5.0  # of one that does not read: then the connection is cut
MOST_CLIENTS, MOST_STRANGERS = 512, 256
UNAUTHENTICATED, NOT_YOURS, TOO_LATE = 4401, 4403, 4408
NOT_TEXT, NOT_UNDERSTOOD, TRY_LATER = 1003, 1008, 1013

log = structlog.get_logger(__name__)


class ResumeFrom(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    epoch: Annotated[str, Field(max_length=64)]
    seq: Annotated[int, Field(ge=0)]


class Authenticate(BaseModel):
    """The first frame of a client."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["authenticate"]
    ticket: Annotated[str, Field(max_length=128)]
    symbols: Annotated[frozenset[Annotated[str, Field(max_length=64)]], Field(max_length=256)] | None = None
    resume_from: ResumeFrom | None = None


class Ticket(BaseModel):
    """Opens one connection to `path` within `expires_in_s`."""

    ticket: str
    user_id: str
    path: str
    expires_in_s: float


class Closed(Exception):  # noqa: N818 - the end of a connection is no error
    """Why a connection is at its end."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def router(settings: Settings) -> APIRouter:
    """One stream, read by one task (backend/tail.py) for all clients of this process."""
    hub, tickets, tail = Hub(), Tickets(), Tail(settings)

    @asynccontextmanager
    async def following(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(tail.follow(hub.publish))
        task.add_done_callback(_tell_if_failed)
        yield
        task.cancel()
        await asyncio.wait([task])

    routes, live = APIRouter(tags=["live-data"], lifespan=following), LiveData(hub, tickets)

    @routes.post("/api/live-data/tickets", response_model=Ticket, responses=failures(503))
    @needs(Scope.ROLLOUT_READ)
    async def ticket(request: Request) -> Response | dict[str, Any]:
        """A ticket for one websocket."""
        who = request.user
        given = tickets.give(Holder(who, request.scope["who_now"]))
        if given is None:
            detail = f"more than {MOST_OF_ONE} tickets wait to be used; each is good for {GOOD_FOR_S:g} s"
            return problems.problem(503, "overloaded", detail)
        return {
            "ticket": given,
            "user_id": who.id,
            "path": f"/ws/live-data/{quote(who.id)}",
            "expires_in_s": GOOD_FOR_S,
        }

    @routes.get("/api/live-data")
    @needs(Scope.ROLLOUT_READ)
    async def stream() -> dict[str, Any]:
        """How the stream is: its epoch, the newest number, who listens, and who was too slow."""
        return {
            "epoch": hub.epoch,
            "seq": hub.seq,
            "clients": len(hub.clients),
            "dropped_slow_clients": hub.dropped_slow,
            "problems": tail.problems,
        }

    @routes.websocket("/ws/live-data/{user_id:path}")
    @needs(Scope.ROLLOUT_READ, ticket=True)
    async def live_data(websocket: WebSocket, user_id: str) -> None:
        await live.serve(websocket, user_id)

    return routes


class LiveData:
    """Connections to one hub."""

    def __init__(self, hub: Hub, tickets: Tickets) -> None:
        self.hub, self.tickets = hub, tickets
        self._strangers = 0

    async def serve(self, websocket: WebSocket, user_id: str) -> None:
        """One connection, from its beginning to its end."""
        await websocket.accept()
        try:
            asked, holder = await self._introduced(websocket, user_id)
            await self._send(websocket, asked, holder)
        except* WebSocketDisconnect:
            pass  # it left
        except* Closed as ends:
            end = ends.exceptions[0]
            assert isinstance(end, Closed)  # noqa: S101 - the group is of one, and of these
            log.info("live_data_closed", code=end.code, reason=end.reason, user=user_id[:128])
            await _close(websocket, end)

    async def _introduced(self, websocket: WebSocket, user_id: str) -> tuple[Authenticate, Holder]:
        """Who it is, by the first frame. Raises Closed."""
        if self._strangers >= MOST_STRANGERS or len(self.hub.clients) >= MOST_CLIENTS:
            raise Closed(TRY_LATER, "too many connections")
        self._strangers += 1
        try:
            async with asyncio.timeout(AUTHENTICATE_WITHIN_S):
                asked = _read(await websocket.receive())
        except TimeoutError:
            raise Closed(TOO_LATE, f"no ticket within {AUTHENTICATE_WITHIN_S:g} s") from None
        finally:
            self._strangers -= 1
        holder = self.tickets.take(asked.ticket)
        if holder is None or not holder.may_still(Scope.ROLLOUT_READ):
            raise Closed(UNAUTHENTICATED, "this ticket is used, too old, or never was; POST /api/live-data/tickets")
        if holder.principal.id != user_id:
            raise Closed(NOT_YOURS, "this ticket is another user's")
        return asked, holder

    async def _send(self, websocket: WebSocket, asked: Authenticate, holder: Holder) -> None:
        """Everything, until it ends, which it does with a Closed or a WebSocketDisconnect, in a group."""
        client = self._joined(asked)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_forward(websocket, client))
                tasks.create_task(_beat(websocket, self.hub, holder))
                tasks.create_task(_listen(websocket))
        finally:
            self.hub.leave(client)

    def _joined(self, asked: Authenticate) -> Client:
        """A client that is told how things stand, or what it missed, before anything else."""
        hub, since = self.hub, asked.resume_from
        missed = None if since is None else hub.since(since.epoch, since.seq)
        if missed is not None:
            return hub.join(asked.symbols, [_told(hub, "resumed")], missed)
        gap = [] if since is None else [_told(hub, "gap")]
        return hub.join(asked.symbols, [*gap, hub.snapshot(asked.symbols)])


def _tell_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("stream_ended", remedy="restart the backend", exc_info=task.exception())


async def _forward(websocket: WebSocket, client: Client) -> None:
    while (text := await client.next()) is not None:
        await websocket.send_text(text)
    raise Closed(TRY_LATER, "too slow: what was missed can be resumed from")


async def _beat(websocket: WebSocket, hub: Hub, holder: Holder) -> None:
    """Says that the line is alive, as long as whoever listens still may."""
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        if not holder.may_still(Scope.ROLLOUT_READ):
            raise Closed(UNAUTHENTICATED, "these credentials are not good any more")
        await websocket.send_text(_told(hub, "heartbeat"))


async def _listen(websocket: WebSocket) -> None:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    raise Closed(NOT_UNDERSTOOD, "nothing more is to be said here; connect again for other symbols")


async def _close(websocket: WebSocket, end: Closed) -> None:
    """One that does not read hears nothing: then the connection is simply cut."""
    with contextlib.suppress(TimeoutError, WebSocketDisconnect):
        async with asyncio.timeout(CLOSE_WITHIN_S):
            await websocket.close(end.code, end.reason)


def _read(message: Message) -> Authenticate:
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    if message.get("text") is None:
        raise Closed(NOT_TEXT, "frames are text")
    try:
        return Authenticate.model_validate_json(message["text"])
    except ValidationError:
        raise Closed(NOT_UNDERSTOOD, "the first frame is {type: authenticate, ticket: ...}") from None


def _told(hub: Hub, kind: str) -> str:
    """A message beside the stream: it has the number of the newest one, and none of its own."""
    return json.dumps({"type": kind, "seq": hub.seq, "epoch": hub.epoch, "timestamp": now()})
