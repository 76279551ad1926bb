"""Logging in: credentials arrive as everywhere, in an Authorization header, and leave as a cookie that holds none."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from backend.dashboard.sessions import COOKIE, LIFETIME_S, LOG_IN, Session, Sessions, number_of
from serving import problems
from serving.openapi import failures
from serving.scopes import Principal, Scope, needs


class SessionState(BaseModel):
    """`csrf` is what whatever changes something has to bring along, in the header X-CSRF-Token."""

    caller: str
    scopes: list[Scope]
    csrf: str


def router(sessions: Sessions) -> APIRouter:
    routes = APIRouter(prefix=LOG_IN, tags=["dashboard"])

    @routes.post("", response_model=SessionState, responses=failures(503))
    @needs(None)
    async def begin(request: Request) -> Response:
        """A session for whoever these credentials are. One that the browser had before ends."""
        if before := number_of(request.scope):
            sessions.end(before)
        credential = request.headers["authorization"].encode("latin-1")  # the door has found it good
        begun = sessions.begin(request.user.id, credential)
        if begun is None:
            return problems.problem(503, "too_many_sessions", "all sessions are taken; try again in some minutes")
        number, session = begun
        return _answer(request, number, session)

    @routes.get("", response_model=SessionState, responses=failures(404))
    @needs(None)
    async def current(request: Request) -> Response:
        """Who is logged in, what they may do, and the token that commands need. Its number is renewed now and then."""
        number = number_of(request.scope)
        session = sessions.find(number) if number else None
        if number is None or session is None:
            return problems.problem(404, "no_session", "these credentials came without a session; log in at /dashboard")
        return _answer(request, sessions.rotated(number), session)

    @routes.delete("", status_code=204, response_model=None)
    @needs(None)
    async def end(request: Request) -> Response:
        if number := number_of(request.scope):
            sessions.end(number)
        gone = Response(status_code=204)
        gone.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
        return gone

    return routes


def _answer(request: Request, number: str, session: Session) -> JSONResponse:
    who: Principal = request.user
    told = SessionState(caller=who.id, scopes=sorted(who.scopes), csrf=session.csrf)
    answer = JSONResponse(told.model_dump(mode="json"))
    secure = request.url.scheme == "https"  # over plain HTTP on loopback a browser would drop a Secure one
    answer.set_cookie(
        COOKIE, number, max_age=int(LIFETIME_S), path="/", httponly=True, samesite="strict", secure=secure
    )
    return answer
