"""Sessions of browsers: a cookie stands for a credential that stays here, so that no page ever holds one.

A cookie is an opaque number; what it stands for is put back into the request before the door (serving/door.py) sees
it. The door judges it as any other: a key that was revoked or has lost a scope opens nothing more, session or not.
Whatever changes something must carry the session's token in a header, which no other site can read or send.

Sessions live in this process, for at most a trading day, and for `IDLE_S` after the last request.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Receive, Scope, Send

LOG_IN = "/dashboard/session"
COOKIE, TOKEN_HEADER = "hrm_session", b"x-csrf-token"
LIFETIME_S = 12 * 3600.0
IDLE_S = 15 * 60.0
ROTATE_AFTER_S = 10 * 60.0
GRACE_S = 30.0  # the number before a rotation: requests that are on their way, and other tabs
MOST, MOST_OF_ONE = 1000, 20
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass
class Session:
    """Of one browser. Times are monotonic, in seconds."""

    caller: str
    credential: bytes = field(repr=False)  # the whole value of an Authorization header
    ends: float
    csrf: str = field(repr=False)
    seen: float


@dataclass
class _Entry:
    session: Session
    made: float
    ends: float  # of this number, not of the session


class Sessions:
    """By their numbers. Safe in threads; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, caller: str, credential: bytes) -> tuple[str, Session] | None:
        """A new session and its number; None while others have all the room. One caller's oldest makes way for it."""
        now = self._clock()
        session = Session(caller, credential, now + LIFETIME_S, secrets.token_urlsafe(32), now)
        with self._lock:
            self._sweep(now)
            mine = [number for number, entry in self._entries.items() if entry.session.caller == caller]
            for number in mine[: max(0, len(mine) - MOST_OF_ONE + 1)]:
                del self._entries[number]
            if len(self._entries) >= MOST:
                return None
            return self._add(session, now), session

    def find(self, number: str) -> Session | None:
        """The session, which counts as used."""
        now = self._clock()
        with self._lock:
            entry = self._entries.get(number)
            if entry is None or not _lives(entry, now):
                return None
            entry.session.seen = now
            return entry.session

    def rotated(self, number: str) -> str:
        """The number to go on with: another one if this is old."""
        now = self._clock()
        with self._lock:
            entry = self._entries.get(number)
            if entry is None or now - entry.made < ROTATE_AFTER_S or entry.ends <= now + GRACE_S:
                return number
            entry.ends = now + GRACE_S
            return self._add(entry.session, now)

    def end(self, number: str) -> None:
        """Whatever stands for the same session ends with it."""
        with self._lock:
            entry = self._entries.get(number)
            if entry is not None:
                session = entry.session
                self._entries = {key: one for key, one in self._entries.items() if one.session is not session}

    def _add(self, session: Session, now: float) -> str:
        number = secrets.token_urlsafe(32)
        self._entries[number] = _Entry(session, now, session.ends)
        return number

    def _sweep(self, now: float) -> None:
        self._entries = {number: entry for number, entry in self._entries.items() if _lives(entry, now)}


def _lives(entry: _Entry, now: float) -> bool:
    return now < entry.ends and now < entry.session.seen + IDLE_S


class SessionCookies:
    """ASGI middleware outside the door: a cookie becomes the Authorization header that it stands for.

    A header of the caller's own always counts instead. Without the token nothing that changes anything goes through.
    """

    def __init__(self, app: ASGIApp, *, sessions: Sessions) -> None:
        self.app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            session = self._session(scope)
            if session is not None:
                scope["headers"] = [*scope["headers"], (b"authorization", session.credential)]
        await self.app(scope, receive, send)

    def _session(self, scope: Scope) -> Session | None:
        headers = [(name, value) for name, value in scope["headers"] if name in (b"authorization", TOKEN_HEADER)]
        number = number_of(scope)
        if number is None or any(name == b"authorization" for name, _ in headers) or _is_log_in(scope):
            return None
        session = self._sessions.find(number)
        if session is None or scope["method"] in SAFE:
            return session
        tokens = [value for name, value in headers if name == TOKEN_HEADER]
        return session if len(tokens) == 1 and hmac.compare_digest(tokens[0], session.csrf.encode()) else None


def _is_log_in(scope: Scope) -> bool:
    """Which needs the key itself: no session makes another, or it would never end."""
    return (scope["method"], scope["path"]) == ("POST", LOG_IN)


def number_of(scope: Scope) -> str | None:
    """What the browser's cookie says. Others of the same host may be written as they like: they are passed over."""
    values = [value for name, value in scope["headers"] if name == b"cookie"]
    return cookie_parser(b"; ".join(values).decode("latin-1")).get(COOKIE)
