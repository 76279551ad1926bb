"""Who may call what: every route says beside itself which scope it needs, and a route that says nothing is shut.

    @router.post("/v1/rollout/abort")
    @needs(Scope.ROLLOUT_ABORT)
    async def post_abort(...)

The door (serving/door.py) reads it before a body is: `Directory` finds the route that the app's own router will choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Literal, TypeVar

from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, WebSocketRoute, compile_path

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])
REMEMBERED_PATHS, LONGEST_REMEMBERED = 1024, 256


class Scope(StrEnum):
    DECIDE = "decide"  # decisions of whoever the rollout says decides, and their outcomes
    INFER = "infer"  # a model by its name (/v2)
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"  # load and unload
    ROLLOUT_READ = "rollout:read"
    ROLLOUT_PROMOTE = "rollout:promote"  # start, promote, pause, resume
    ROLLOUT_APPROVE = "rollout:approve"  # approve, which whoever started may not
    ROLLOUT_ABORT = "rollout:abort"  # abort, rollback; of trading: kill, resume
    TRADE_WRITE = "trade:write"  # orders of a person's own
    METRICS_READ = "metrics:read"
    ADMIN = "admin"  # everything


@dataclass(frozen=True)
class Principal:
    """Who is asking. `id` is what allowances are counted by and what logs name; it is no secret."""

    id: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope | None) -> bool:
        return scope is None or scope in self.scopes or Scope.ADMIN in self.scopes


class Unknown(StrEnum):
    """Why it is not known who is asking: what the log says. The caller hears of `EXPIRED` alone."""

    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    INVALID = "invalid"
    EXPIRED = "expired"
    UNTRIED = "untried"  # a token whose signature was not looked into


@dataclass(frozen=True)
class Access:
    """What a route asks of its caller. `scope` None: any valid credentials. `local`: none at all on loopback.

    `ticket`: a websocket, whose endpoint asks for one itself: a browser can send no header with it. `public`: none at
    all, for bytes that are the same for everybody and hold no data: the form that credentials are typed into.
    """

    scope: Scope | None
    local: bool = False
    ticket: bool = False
    public: bool = False


@dataclass(frozen=True)
class Found:
    """What the app has for a method and a path: 200 with `access`, else why nothing is called there."""

    status: Literal[200, 403, 404, 405]
    access: Access = Access(Scope.ADMIN)
    allow: str = ""  # the methods of a 405


def needs(
    scope: Scope | None, *, local: bool = False, ticket: bool = False, public: bool = False
) -> Callable[[Endpoint], Endpoint]:
    """Declare what an endpoint needs; to stand below the router's decorator. It costs a request nothing."""

    def declare(endpoint: Endpoint) -> Endpoint:
        access = Access(scope, local, ticket, public)
        endpoint.__access__ = access  # type: ignore[attr-defined] # of a function, which takes any
        return endpoint

    return declare


class Directory:
    """The routes of an app, found as its router finds them: the first that matches in the order they were added."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        """`routes` may grow until the first request."""
        self._routes = routes
        self._remembered = lru_cache(REMEMBERED_PATHS)(self._find)

    @cached_property
    def entries(self) -> list[tuple[re.Pattern[str], frozenset[str], Access | None]]:
        """(pattern, methods, what it needs) of every route; no methods: whatever is mounted there takes all."""
        return [
            (_pattern(route), frozenset(route.methods or ()), getattr(route.endpoint, "__access__", None))
            for route in iter_route_contexts(self._routes)
            if not isinstance(route.original_route, WebSocketRoute)
        ]

    @cached_property
    def sockets(self) -> list[re.Pattern[str]]:
        """Of the websockets that may be opened: those that ask for a ticket."""
        found = (each for each in iter_route_contexts(self._routes) if isinstance(each.original_route, WebSocketRoute))
        return [compile_path(each.path or "")[0] for each in found if _asks_for_ticket(each)]

    def find(self, method: str, path: str) -> Found:
        """A long path is nobody's but an attacker's: it is not kept."""
        return self._remembered(method, path) if len(path) <= LONGEST_REMEMBERED else self._find(method, path)

    def _find(self, method: str, path: str) -> Found:
        allowed: set[str] = set()
        for pattern, methods, access in self.entries:
            if not pattern.match(path):
                continue
            if not methods or method in methods:
                return Found(200, access) if access else Found(403)
            allowed |= methods
        return Found(405, allow=", ".join(sorted(allowed))) if allowed else Found(404)


def _asks_for_ticket(route: RouteContext) -> bool:
    access: Access | None = getattr(route.endpoint, "__access__", None)
    return access is not None and access.ticket


def _pattern(route: RouteContext) -> re.Pattern[str]:
    mounted = "/{path:path}" if route.methods is None else ""
    return compile_path((route.path or "") + mounted)[0]
