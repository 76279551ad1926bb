"""The door: who asks, for what, how often and how much is settled before a body is read. Deny by default.

What is refused is answered here and never reaches a route: 401, 403, 404, 405, 408, 413, 429, each as problem+json.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.settings import Serving
from serving import sockets
from serving.auth import Authenticator
from serving.limits import BURST_S, KIND_OF, Allowance, Kind, allowances
from serving.problems import SECURITY_HEADERS, problem
from serving.scopes import Directory, Found, Principal, Unknown

log = structlog.get_logger()

SMALL_BODY_BYTES = 16 * 1024  # of anything but a decision and a plan
PLAN_BODY_BYTES = 64 * 1024  # of a change: a start may bring a plan
BODY_WITHIN_S = 10.0  # from the headers to the last byte of the body
FAILURES_PER_S = 5.0  # refusals of one address that are logged, and tokens of it that are looked into
RAW_SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
RawHeaders = list[tuple[bytes, bytes]]
COMMANDS = {Kind.CHANGES, Kind.ABORTS}


@dataclass(frozen=True)
class Refusal:
    status: int
    code: str
    detail: str
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> Response:
        answer = problem(self.status, self.code, self.detail)
        answer.headers.update(dict(self.headers))
        return answer


class Door:
    """ASGI middleware of the app whose `routes` it knows."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        serving: Serving,
        routes: Sequence[BaseRoute],
        refused: Callable[[Refusal, Scope], None] | None = None,
    ) -> None:
        """`refused` is told of every refusal, and of what; `user` is in the scope of a caller who is known."""
        self.app = app
        self._refused = refused
        self._authenticator = authenticator
        self._directory = Directory(routes)
        self._allowances = allowances(serving.rate_limits)
        self._failures = Allowance(FAILURES_PER_S)
        self._body_bytes = {Kind.DECISIONS: serving.max_body_kb * 1024, Kind.CHANGES: PLAN_BODY_BYTES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await sockets.opened(self.app, self._directory, scope, receive, send)
            elif scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _secured(message["headers"])
            await send(message)

        admitted = self._admit(scope)
        if isinstance(admitted, Refusal):
            await self._refuse(admitted, scope, receive, secured)
        else:
            await self._serve(scope, Body(receive, admitted), secured)

    def _admit(self, scope: Scope) -> Refusal | int:
        """How many bytes the body may have, or why the request goes no further."""
        found = self._directory.find(scope["method"], scope["path"])
        if found.access.public or (found.access.local and _on_loopback(scope)):
            return SMALL_BODY_BYTES
        now = time.monotonic()
        who = self._caller(scope, now)
        if isinstance(who, Unknown):
            return self._unknown(scope, who, now)
        scope["user"] = who  # `request.user` of an endpoint
        refusal = _unfit(found, who)
        if refusal is None:
            return self._counted(scope, who, KIND_OF.get(found.access.scope, Kind.READS), now)
        self._note(scope, who.id, now, refusal.code)
        return refusal

    def _caller(self, scope: Scope, now: float) -> Principal | Unknown:
        """A flood of bad tokens costs no more signatures than its address is allowed; loopback is always heard."""
        authorization = [value for name, value in scope["headers"] if name == b"authorization"]
        scope["who_now"] = partial(self._now, authorization)  # for an answer that outlives its request
        who = self._authenticator.who(authorization)
        if who is Unknown.UNTRIED and (_on_loopback(scope) or not self._failures.is_spent(_address(scope), now)):
            return self._authenticator.look_into(authorization[0])
        return who

    def _now(self, authorization: list[bytes]) -> Principal | Unknown:
        """Whose these credentials are by now: they were good once."""
        who = self._authenticator.who(authorization)
        return self._authenticator.look_into(authorization[0]) if who is Unknown.UNTRIED else who

    def _unknown(self, scope: Scope, why: Unknown, now: float) -> Refusal:
        wait_s = self._note(scope, _address(scope), now, why)
        if wait_s and not _on_loopback(scope):
            detail = "too many requests without valid credentials from this address"
            return Refusal(429, "too_many_failures", detail, _retry_after(wait_s))
        detail = "needs `Authorization: Bearer` with an API key or the token in api_token"
        if why is Unknown.MISSING:
            return Refusal(401, "unauthorized", detail, (("WWW-Authenticate", "Bearer"),))
        expired = "have expired" if why is Unknown.EXPIRED else "are not valid"
        challenge = ("WWW-Authenticate", 'Bearer error="invalid_token"')
        return Refusal(401, "unauthorized", f"these credentials {expired}: {detail}", (challenge,))

    def _counted(self, scope: Scope, who: Principal, kind: Kind, now: float) -> Refusal | int:
        allowance = self._allowances[kind]
        wait_s = allowance.wait_s(who.id, now)
        if wait_s:
            self._note(scope, who.id, now, "rate_limited")
            detail = f"more than {allowance.per_s:g} {kind} a second; wait {wait_s:.3f} s"
            return Refusal(429, "rate_limited", detail, (*_retry_after(wait_s), *_rate_limit(kind, allowance, wait_s)))
        if kind in COMMANDS:
            log.info("command", method=scope["method"], path=scope["path"], caller=who.id)
        return self._body_bytes.get(kind, SMALL_BODY_BYTES)

    def _note(self, scope: Scope, caller: str, now: float, why: str) -> float:
        """Log a refusal, if its caller has not filled the log yet: then the seconds until it is heard again."""
        wait_s = self._failures.wait_s(caller, now)
        if not wait_s:
            client = scope["client"][0] if scope.get("client") else None
            log.warning(
                "refused", why=why, method=scope["method"], path=scope["path"][:200], client=client, caller=caller
            )
        return wait_s

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        if self._refused is not None:
            self._refused(refusal, scope)
        await refusal.response()(scope, receive, send)

    async def _serve(self, scope: Scope, body: Body, send: Send) -> None:
        """Run the app; if its body is refused while it streams, answer so in its place."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > body.limit_bytes:
            await self._refuse(body.too_large(), scope, body.receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if body.refusal is None or started:
                started = True
                await send(message)

        with contextlib.suppress(ClientDisconnect):  # it left, or was cut off: the app has nobody to answer
            await self.app(scope, body.receive, watched)
        if body.refusal is not None and not started:
            await self._refuse(body.refusal, scope, body.receive, send)


class Body:
    """A request's body as it arrives, within a size and a time.

    One that exceeds either ends as if the client had left: what was cut off must not pass for a whole request.
    """

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.refusal: Refusal | None = None
        self._receive = receive
        self._until = asyncio.get_running_loop().time() + BODY_WITHIN_S
        self._seen = 0
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # whether the client is still there
        if self.refusal is not None:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body was not here within {BODY_WITHIN_S:g} s"
            self.refusal = Refusal(408, "body_too_slow", detail, (("Connection", "close"),))
            return {"type": "http.disconnect"}
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self.limit_bytes:
            self.refusal = self.too_large()
            return {"type": "http.disconnect"}
        return message

    def too_large(self) -> Refusal:
        return Refusal(413, "body_too_large", f"a body has at most {self.limit_bytes} bytes here")


def _secured(headers: RawHeaders) -> RawHeaders:
    """With what every answer says, unless it says otherwise itself: a file that never changes may be kept."""
    said = {name for name, _ in headers}
    return [*headers, *(each for each in RAW_SECURITY_HEADERS if each[0] not in said)]


def _unfit(found: Found, who: Principal) -> Refusal | None:
    """Why nothing may be called there, or not by this caller."""
    if found.status == 404:
        return Refusal(404, "not_found", "there is no such path; GET /openapi.json lists those there are")
    if found.status == 405:
        return Refusal(405, "method_not_allowed", f"allowed: {found.allow}", (("Allow", found.allow),))
    if found.status == 403:
        return Refusal(403, "not_declared", "this route does not say who may call it, so nobody may")
    if not who.may(found.access.scope):
        detail = (
            f"needs the scope {found.access.scope}; `hrm keys create --scope {found.access.scope}` makes such a key"
        )
        challenge = f'Bearer error="insufficient_scope", scope="{found.access.scope}"'
        return Refusal(403, "scope_missing", detail, (("WWW-Authenticate", challenge),))
    return None


def _retry_after(wait_s: float) -> tuple[tuple[str, str], ...]:
    return (("Retry-After", str(math.ceil(wait_s))),)


def _rate_limit(kind: Kind, allowance: Allowance, wait_s: float) -> tuple[tuple[str, str], ...]:
    """draft-ietf-httpapi-ratelimit-headers-10."""
    return (
        ("RateLimit-Policy", f'"{kind}";q={allowance.burst};w={BURST_S:g}'),
        ("RateLimit", f'"{kind}";r=0;t={math.ceil(wait_s)}'),
    )


def _address(scope: Scope) -> str:
    """Of whoever sends: the host, or the network of 64 bits that one subscriber of IPv6 has."""
    host = str(scope["client"][0]) if scope.get("client") else ""
    try:
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    except ValueError:
        return host


def _on_loopback(scope: Scope) -> bool:
    client = scope.get("client")
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False
