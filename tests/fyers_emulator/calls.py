"""One call of the REST API: who may, how often, what goes wrong with it, and its place in the log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.fyers_emulator.exchange import Refused
from tests.fyers_emulator.faults import Fault, Passing
from tests.fyers_emulator.venue import Venue

NO_ACKNOWLEDGEMENT = 201
BAD_GATEWAY = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True)
class Call:
    venue: Venue
    query: dict[str, str]
    body: Any
    authorization: str | None


@dataclass(frozen=True)
class Endpoint:
    """What is at one method and path of the API."""

    method: str
    path: str
    carry_out: Callable[[Call], dict[str, Any]]  # raises Refused
    order: Callable[[Call], Passing] | None = None  # whose order a call is about
    public: bool = False  # no token is needed, or it is checked by `carry_out`

    def passing(self, call: Call) -> Passing:
        return Passing(route=f"{self.method} {self.path}") if self.order is None else self.order(call)


async def answered(endpoint: Endpoint, request: Request) -> Response:
    """The answer to one call, with whatever the faults make of it."""
    venue: Venue = request.app.state.venue
    body = _json(await request.body())
    call = Call(venue, dict(request.query_params), body, request.headers.get("authorization"))
    try:
        response = await _answer(endpoint, call, request)
    except Refused as refused:
        content = {"s": "error", "code": refused.code, "message": refused.message}
        response = JSONResponse(content, status_code=refused.status)
    venue.note("call", method=endpoint.method, path=endpoint.path, status=response.status_code)
    return response


async def _answer(endpoint: Endpoint, call: Call, request: Request) -> Response:
    venue = call.venue
    wait_s = venue.limits.wait_s(_now())
    if wait_s is not None:
        return _too_many(wait_s)
    if not endpoint.public:
        venue.logins.check(call.authorization)
    passing = endpoint.passing(call)
    before = venue.faults.take(passing, "hang", "delayed_accept", "rate_limited", "refused", "unauthorized")
    instead = None if before is None else await _before(before, venue, request)
    if instead is not None:
        return instead
    gateway = venue.faults.take(passing, "bad_gateway")
    if gateway and not gateway.spec.done:
        return _bad_gateway()
    content = endpoint.carry_out(call)
    if gateway:
        return _bad_gateway()
    return await _after(venue.faults.take(passing, "lost_ack", "no_ack"), content, request)


async def _before(fault: Fault, venue: Venue, request: Request) -> Response | None:
    """What is answered instead of carrying the call out; None: it is carried out after all."""
    spec = fault.spec
    if spec.kind == "hang":
        await fault.hold()
        return await _cut(request)
    if spec.kind == "delayed_accept":
        await asyncio.sleep(spec.delay_s)
        return None
    if spec.kind == "rate_limited":
        venue.limits.block(_now(), spec.block_s)
        return _too_many(max(spec.retry_after_s, spec.block_s))
    if spec.kind == "unauthorized":
        raise Refused(-15, "Please provide valid token", 401)
    raise Refused(-99, spec.message)


async def _after(fault: Fault | None, content: dict[str, Any], request: Request) -> Response:
    if fault is None:
        return JSONResponse(content)
    if fault.spec.kind == "no_ack":
        return JSONResponse({**content, "code": NO_ACKNOWLEDGEMENT, "message": "No acknowledgement from the exchange"})
    if fault.spec.hang_s:
        await fault.hold()
    return await _cut(request)


async def _cut(request: Request) -> Response:
    """The connection ends without an answer; what is returned goes nowhere."""
    request.scope["cut"]()
    while (await request.receive())["type"] != "http.disconnect":
        continue
    return Response(status_code=499)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return None


def _too_many(wait_s: float) -> Response:
    content = {"s": "error", "code": -429, "message": "request limit reached"}
    return JSONResponse(content, status_code=429, headers={"Retry-After": str(max(1, round(wait_s + 0.5)))})


def _bad_gateway() -> Response:
    return Response(BAD_GATEWAY, status_code=502, media_type="text/html")
